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
    """The scores of a model's answers by the judgments saved: 1 to 10, None where there is nothing to
    average.

    n scores are wanted, judged of them have a reply, n_valid a rating. The mean is over all valid ones, of
    all turns and passes; low and high bound 95% of it over 10,000 resamples of the questions, each with all
    its turns and passes."""
    questions = read_questions(folder, bench)
    wanted = prompts(folder, bench, questions, answers)
    category = {q.id: q.category for q in questions}
    replies = [
        ((number, str(turn), category[number], sitting), saved[key])
        for (number, turn), messages in wanted.items()
        for sitting, key in enumerate(by.keys(messages))
        if key in saved
    ]
    valid = [(place, judgment.rating) for place, judgment in replies if judgment.rating is not None]

    def scores(part: int, value: Any) -> list[float]:
        return [score for place, score in valid if place[part] == value]

    def means(part: int, values: Iterable[Any]) -> dict[Any, float | None]:
        return {value: _mean(scores(part, value)) for value in values}

    low, high = _interval([scores(0, number) for number in category])
    return {
        "bench": bench,
        "judge": by.name,
        "passes": by.passes,
        "n": len(wanted) * by.passes,
        "judged": len(replies),
        "n_valid": len(valid),
        "mean": _mean([score for _, score in valid]),
        "low": low,
        "high": high,
        "turns": means(1, [str(turn + 1) for turn in range(BENCHES[bench])]),
        "categories": means(2, category.values()),
        "pass_means": list(means(3, range(by.passes)).values()),
        "answers": digest([[q.id, list(answers[q.id])] for q in questions])[:16],
        "tokens": {
            "prompt": sum(judgment.prompt_tokens for _, judgment in replies),
            "completion": sum(judgment.completion_tokens for _, judgment in replies),
        },
    }


def _mean(scores: Sequence[float]) -> float | None:
    return float(np.mean(scores)) if scores else None


def _interval(
    scores: Sequence[Sequence[float]], resamples: int = 10_000
) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile of the pooled mean, over resamples of the items; each has its
    scores."""
    scores = [item for item in scores if item]
    if not scores:
        return None, None
    sums, counts = np.array([sum(item) for item in scores]), np.array([len(item) for item in scores])
    drawn = np.random.Generator(np.random.Philox(0)).integers(0, len(scores), (resamples, len(scores)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A line for each summary (with its "model") under a heading, and one below for each that is
    incomplete."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    turns, categories = list(summaries[0]["turns"]), list(summaries[0]["categories"])
    rows = [["model", "judge", "mean", "95% interval", *(f"turn {t}" for t in turns), *categories, "valid"]]
    for s in summaries:
        interval = "-" if s["low"] is None else f"{s['low']:.2f} to {s['high']:.2f}"
        means = [*s["turns"].values(), *s["categories"].values()]
        rows.append(
            [
                s["model"],
                s["judge"],
                cell(s["mean"]),
                interval,
                *map(cell, means),
                f"{s['n_valid']} of {s['n']}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    for s in summaries:
        if s["judged"] < s["n"]:
            lines.append(f"{s['model']}: incomplete, {s['judged']} of {s['n']} judged by {s['judge']}")
    return "\n".join(lines)
