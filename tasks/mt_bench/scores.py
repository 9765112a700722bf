"""Scores of judged answers, with their intervals, and the table of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from tasks.mt_bench.judging import (
    Judge,
    Judgment,
    Outcome,
    read_judgments,
    request_judgments,
)
from tasks.mt_bench.questions import (
    BENCHES,
    Messages,
    json_hash,
    prompts,
    read_questions,
)

if TYPE_CHECKING:
    import pandas as pd

#: A data folder, a bench, and a model's answers to its questions.
System = tuple[Path, str, Mapping[int, Sequence[str]]]
#: How many bootstrap samples an interval is computed from.
SAMPLES = 10_000


class Summary(TypedDict):
    """The scores of a model's answers from the saved judgments: 1 to 10, None where
    there are none.

    n: how many judgments there are when all are made; judged: how many are saved; n_valid:
    how many of these have a rating. mean: over all ratings, of all turns and passes. low,
    high: its 95% interval (see `_interval`). turns, categories, pass_means: the mean of
    each. answers: a hash of them. tokens: those that the judge has read and written, under
    "prompt" and "completion"."""

    bench: str
    judge: str
    passes: int
    n: int
    judged: int
    n_valid: int
    mean: float | None
    low: float | None
    high: float | None
    turns: dict[str, float | None]
    categories: dict[str, float | None]
    pass_means: list[float | None]
    answers: str
    tokens: dict[str, int]


def judge_systems(
    systems: Sequence[System],
    judge: Judge,
    file: Path,
    options: Mapping[str, Any] | None,
) -> tuple[Outcome, list[Summary]]:
    """Requests the judgments of the systems' answers that `file` lacks, and summarises all
    judgments of each system.

    Args:
        file: of the judgments.
        options: keyword arguments of `request_judgments`, whose errors this raises. None
            sends no request.

    Returns how the judging went, and the summary of each system."""
    outcome = Outcome()
    if options is not None:
        messages: list[Messages] = []
        for folder, bench, answers in systems:
            questions = read_questions(folder, bench)
            messages += prompts(folder, bench, questions, answers).values()
        outcome = request_judgments(messages, judge, file, progress=True, **options)
    saved = read_judgments(file)
    return outcome, [bench_summary(*system, judge, saved) for system in systems]


def bench_summary(
    folder: Path,
    bench: str,
    answers: Mapping[int, Sequence[str]],
    judge: Judge,
    saved: Mapping[str, Judgment],
) -> Summary:
    """The scores of a model's answers from the saved judgments. folder: see
    `bench_folder`. answers: by the question's number. saved: the judgments by key."""
    questions = read_questions(folder, bench)
    messages_by_turn = prompts(folder, bench, questions, answers)
    categories = {question.id: question.category for question in questions}
    rows = []
    for (number, turn), messages in messages_by_turn.items():
        # An answer is judged once in each pass, under a key of its own
        for judge_pass, key in enumerate(judge.keys(messages)):
            if key in saved:
                row = _row(saved[key], number, turn, judge_pass)
                rows.append(row | {"category": categories[number]})
    frame = _frame(rows)
    rated = frame.dropna(subset="rating")
    low, high = _interval(rated)
    turns = [str(turn + 1) for turn in range(BENCHES[bench])]
    answer_texts = [[question.id, list(answers[question.id])] for question in questions]
    pass_means = _means(frame, "judge_pass", range(judge.passes))
    return {
        "bench": bench,
        "judge": judge.name,
        "passes": judge.passes,
        "n": len(messages_by_turn) * judge.passes,
        "judged": len(frame),
        "n_valid": len(rated),
        "mean": float(rated["rating"].mean()) if len(rated) else None,
        "low": low,
        "high": high,
        "turns": _means(frame, "turn", turns),
        "categories": _means(frame, "category", list(categories.values())),
        "pass_means": list(pass_means.values()),
        "answers": json_hash(answer_texts)[:16],
        "tokens": {key: int(frame[key].sum()) for key in ("prompt", "completion")},
    }


def _row(judgment: Judgment, number: int, turn: int, judge_pass: int) -> dict[str, Any]:
    """A row of the frame of judgments, without its category. number: the question's.
    judge_pass: the number of the judge's pass, from 0."""
    return {
        "question": number,
        "turn": str(turn),
        "judge_pass": judge_pass,
        "rating": judgment.rating,
        "prompt": judgment.prompt_tokens,
        "completion": judgment.completion_tokens,
    }


#: The columns of the frame of judgments.
COLUMNS = (
    "question",
    "turn",
    "category",
    "judge_pass",
    "rating",
    "prompt",
    "completion",
)


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    """The frame of judgments, a row for each; it may be empty."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"rating": float})


def _means(
    frame: "pd.DataFrame", column: str, values: Sequence[Any]
) -> dict[Any, float | None]:
    """The mean rating for each of these values of a column; None for a value without a
    rating."""
    means = frame.groupby(column)["rating"].mean().dropna()
    return {value: float(means[value]) if value in means else None for value in values}


def _interval(rated: "pd.DataFrame") -> tuple[float | None, float | None]:
    """The 95% interval of the mean rating: its 2.5th and 97.5th percentile over SAMPLES
    bootstrap samples of the questions. Questions are drawn, and not ratings, since those of
    one question resemble each other. (None, None) without a rating."""
    if rated.empty:
        return None, None
    by_question = rated.groupby("question", sort=False)["rating"]
    sums = by_question.sum().to_numpy()
    counts = by_question.count().to_numpy()
    generator = np.random.Generator(np.random.Philox(0))
    drawn = generator.integers(0, len(sums), (SAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def bench_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row for each summary, and a line below for each incomplete one.

    summaries: of `bench_summary`, each with one key more, the model's name (model)."""
    import pandas as pd

    frame = pd.DataFrame([_table_row(summary) for summary in summaries])
    frame = frame.fillna(np.nan)  # a column of None alone would say None
    lines = [frame.to_string(index=False, float_format="{:.2f}".format, na_rep="-")]
    for summary in summaries:
        if summary["judged"] < summary["n"]:
            lines.append(
                f"{summary['model']}: incomplete, {summary['judged']} of {summary['n']} "
                f"judged by {summary['judge']}"
            )
    return "\n".join(lines)


def _table_row(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a summary by the table's columns."""
    interval = "-"
    if summary["low"] is not None:
        interval = f"{summary['low']:.2f} to {summary['high']:.2f}"
    row = {
        "model": summary["model"],
        "judge": summary["judge"],
        "mean": summary["mean"],
        "95% interval": interval,
    }
    for turn, mean in summary["turns"].items():
        row[f"turn {turn}"] = mean
    row |= summary["categories"]
    row["valid"] = f"{summary['n_valid']} of {summary['n']}"
    return row
