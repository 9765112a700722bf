"""Scores of judged answers, with their intervals, and the table of them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.mt_bench.judgments import Judge, Judgment, prompts
from tasks.mt_bench.questions import BENCHES, digest, read_questions


def summary(
    folder: Path, bench: str, answers: Mapping[int, Sequence[str]], by: Judge, saved: Mapping[str, Judgment]
) -> dict[str, Any]:
    """The scores of a model's answers from the saved judgments: 1 to 10, None where there are none.

    n: the number of judgments if complete; judged: those with a reply; n_valid: those with a rating. mean:
    over all ratings, of all turns and passes. low, high: its 95% interval, by 10,000 bootstrap samples of the
    questions."""
    questions = read_questions(folder, bench)
    requests = prompts(folder, bench, questions, answers)
    category = {q.id: q.category for q in questions}
    replies = [
        ({"question": number, "turn": str(turn), "category": category[number], "pass": attempt}, saved[key])
        for (number, turn), messages in requests.items()
        for attempt, key in enumerate(by.keys(messages))
        if key in saved
    ]
    valid = [(labels, judgment.rating) for labels, judgment in replies if judgment.rating is not None]

    def scores(label: str, value: Any) -> list[float]:
        return [score for labels, score in valid if labels[label] == value]

    def means(label: str, values: Iterable[Any]) -> dict[Any, float | None]:
        return {value: _mean(scores(label, value)) for value in values}

    low, high = _interval([scores("question", number) for number in category])
    return {
        "bench": bench,
        "judge": by.name,
        "passes": by.passes,
        "n": len(requests) * by.passes,
        "judged": len(replies),
        "n_valid": len(valid),
        "mean": _mean([score for _, score in valid]),
        "low": low,
        "high": high,
        "turns": means("turn", [str(turn + 1) for turn in range(BENCHES[bench])]),
        "categories": means("category", category.values()),
        "pass_means": list(means("pass", range(by.passes)).values()),
        "answers": digest([[q.id, list(answers[q.id])] for q in questions])[:16],
        "tokens": {
            "prompt": sum(judgment.prompt_tokens for _, judgment in replies),
            "completion": sum(judgment.completion_tokens for _, judgment in replies),
        },
    }


def _mean(scores: Sequence[float]) -> float | None:
    return float(np.mean(scores)) if scores else None


def _interval(scores: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile of the mean of all scores, over 10,000 bootstrap samples of the items.
    scores: of each item."""
    scores = [item for item in scores if item]
    if not scores:
        return None, None
    sums, counts = np.array([sum(item) for item in scores]), np.array([len(item) for item in scores])
    drawn = np.random.Generator(np.random.Philox(0)).integers(0, len(scores), (10_000, len(scores)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each summary (with its "model"), and a line below for each incomplete one."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    turns, categories = list(summaries[0]["turns"]), list(summaries[0]["categories"])
    rows = [["model", "judge", "mean", "95% interval", *(f"turn {t}" for t in turns), *categories, "valid"]]
    for s in summaries:
        interval = "-" if s["low"] is None else f"{s['low']:.2f} to {s['high']:.2f}"
        means = map(cell, [*s["turns"].values(), *s["categories"].values()])
        valid = f"{s['n_valid']} of {s['n']}"
        rows.append([s["model"], s["judge"], cell(s["mean"]), interval, *means, valid])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [f"{{:<{w}}}" if i < 2 else f"{{:>{w}}}" for i, w in enumerate(widths)]
    lines = ["  ".join(aligned).format(*row) for row in rows]
    for s in summaries:
        if s["judged"] < s["n"]:
            lines.append(f"{s['model']}: incomplete, {s['judged']} of {s['n']} judged by {s['judge']}")
    return "\n".join(lines)
