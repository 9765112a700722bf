"""Scores of judged answers, with their intervals, and the table of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.mt_bench.judging import Judge, Judgment, Outcome, judge, read_judgments
from tasks.mt_bench.questions import BENCHES, digest, prompts, read_questions

if TYPE_CHECKING:
    import pandas as pd


def judged(
    systems: Sequence[tuple[Path, str, Mapping[int, Sequence[str]]]],
    by: Judge,
    file: Path,
    how: Mapping[str, Any] | None,
) -> tuple[Outcome, list[dict[str, Any]]]:
    """Lets a judge score systems, each its data folder, its bench and its answers, by
    what `file` lacks of them; and their summaries. how: of `judge`, whose errors it
    raises; None asks for nothing."""
    messages = (
        message
        for folder, bench, answers in systems
        for message in prompts(
            folder, bench, read_questions(folder, bench), answers
        ).values()
    )
    outcome = (
        Outcome() if how is None else judge(messages, by, file, progress=True, **how)
    )
    saved = read_judgments(file)
    return outcome, [summary(*system, by, saved) for system in systems]


def summary(
    folder: Path,
    bench: str,
    answers: Mapping[int, Sequence[str]],
    by: Judge,
    saved: Mapping[str, Judgment],
) -> dict[str, Any]:
    """The scores of a model's answers from the saved judgments: 1 to 10, None where
    there are none.

    n: the number of judgments if complete; judged: those with a reply; n_valid: those
    with a rating. mean: over all ratings, of all turns and passes. low, high: its 95%
    interval (see `_interval`)."""
    import pandas as pd

    questions = read_questions(folder, bench)
    requests = prompts(folder, bench, questions, answers)
    category = {q.id: q.category for q in questions}
    replies = [
        {
            "question": number,
            "turn": str(turn),
            "category": category[number],
            "attempt": attempt,
        }
        | {
            "rating": a.rating,
            "prompt": a.prompt_tokens,
            "completion": a.completion_tokens,
        }
        for (number, turn), messages in requests.items()
        for attempt, a in enumerate(map(saved.get, by.keys(messages)))
        if a
    ]
    columns = [
        "question",
        "turn",
        "category",
        "attempt",
        "rating",
        "prompt",
        "completion",
    ]
    frame = pd.DataFrame(replies, columns=columns).astype({"rating": float})

    def means(column: str, values: Sequence[Any]) -> dict[Any, float | None]:
        by_value = frame.groupby(column)["rating"].mean().dropna()
        return {
            value: float(by_value[value]) if value in by_value else None
            for value in values
        }

    valid = frame.dropna(subset="rating")
    low, high = _interval(valid)
    return {
        "bench": bench,
        "judge": by.name,
        "passes": by.passes,
        "n": len(requests) * by.passes,
        "judged": len(frame),
        "n_valid": len(valid),
        "mean": float(valid["rating"].mean()) if len(valid) else None,
        "low": low,
        "high": high,
        "turns": means("turn", [str(turn + 1) for turn in range(BENCHES[bench])]),
        "categories": means("category", list(category.values())),
        "pass_means": list(means("attempt", range(by.passes)).values()),
        "answers": digest([[q.id, list(answers[q.id])] for q in questions])[:16],
        "tokens": {kind: int(frame[kind].sum()) for kind in ("prompt", "completion")},
    }


def _interval(valid: "pd.DataFrame") -> tuple[float | None, float | None]:
    """2.5th and 97.5th percentile of the mean rating, over 10,000 bootstrap samples of
    the questions."""
    if valid.empty:
        return None, None
    of_question = valid.groupby("question", sort=False)["rating"]
    sums, counts = of_question.sum().to_numpy(), of_question.count().to_numpy()
    drawn = np.random.Generator(np.random.Philox(0)).integers(
        0, len(sums), (10_000, len(sums))
    )
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each summary (with its "model"), and a line below for each
    incomplete one."""
    import pandas as pd

    rows = [
        {"model": s["model"], "judge": s["judge"], "mean": s["mean"]}
        | {
            "95% interval": "-"
            if s["low"] is None
            else f"{s['low']:.2f} to {s['high']:.2f}"
        }
        | {f"turn {turn}": mean for turn, mean in s["turns"].items()}
        | s["categories"]
        | {"valid": f"{s['n_valid']} of {s['n']}"}
        for s in summaries
    ]
    frame = pd.DataFrame(rows).fillna(np.nan)  # a column of None alone would say None
    lines = [frame.to_string(index=False, float_format="{:.2f}".format, na_rep="-")]
    for s in summaries:
        if s["judged"] < s["n"]:
            lines.append(
                f"{s['model']}: incomplete, {s['judged']} of {s['n']} judged by {s['judge']}"
            )
    return "\n".join(lines)
