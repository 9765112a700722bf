"""Two rows compared by the differences of runs of one seed: the one paired analysis
that statistics, tables (against=) and study pages print."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import (
    mark_left_out,
    measurement_texts,
    pairs,
    tasks_by_way,
    with_reported_scores,
)
from analysis.inference import (
    Mean,
    holm,
    mean_of,
    probability_of_improvement,
    sign_test,
)
from analysis.notes import enumeration
from analysis.render import Entry, Number, Table, entry_of_runs
from runs.record.intervals import median_interval
from runs.record.text import plural

#: Scores with so many decimals are in points. Others are not averaged over tasks.
DECIMALS_OF_POINTS = 1
#: A p below this is called significant.
SIGNIFICANT = 0.05
#: The note where a difference is significant by its own p, and not by Holm's.
NOTE_ON_FINDINGS = (
    "vera-bench findings tests one claim over all tasks, by the 95% CI, without "
    "correction: it can contradict a claim although p (Holm) here is above 0.05."
)
#: The columns of `paired_differences`.
COLUMNS = [
    "model",
    "task",
    "other",
    "left",
    "right",
    "pairs",
    "differences",
    "mean",
    "low",
    "high",
    "p",
    "holm",
    "better",
    "digits",
    "ids",
]


def paired_differences(
    runs: pd.DataFrame, row: str, as_reference: bool = False
) -> pd.DataFrame:
    """A row minus every other row of its model: a line for each task (and for each way of
    measuring it) where both have runs of one seed that were measured on the same, and
    one over all of the row's tasks. A positive difference means that the left row is
    better, also for scores of which lower is better.

    row: the left row; with as_reference the right one, so that differences are every
    other row minus it.

    Columns:

    - model; task, with how it was measured where there are several ways ("" over tasks).
    - other, the other row; left and right, the labels of both.
    - differences, a tuple by seed (over tasks: each task's mean); pairs, their number.
    - mean, low, high, p: the mean difference, its 95% interval, and p by Student's t.
    - holm: p by Holm's correction for all comparisons of the model. Those over tasks are
      corrected on their own.
    - better: in what share of all pairs of a left and a right run, of whichever seeds, the
      left one is better; equal ones count half (NaN over tasks).
    - digits: the decimals of the score. ids: of the runs."""
    scored = with_reported_scores(mark_left_out(runs))
    scored = scored[scored.left_out == ""]
    texts_by_id = pd.Series([*measurement_texts(scored)], scored.id, dtype=object)
    joined = pairs(scored, row)
    joined = joined.sort_values(["model", "row_other"], kind="stable")
    joined = joined.assign(measurement_text=joined.id.map(texts_by_id).astype(object))
    joined["task_by_way"] = tasks_by_way(joined)
    if as_reference:
        swapped = {"x": "y", "y": "x", "label": "label_other", "label_other": "label"}
        joined = joined.rename(columns=swapped).assign(difference=-joined.difference)
    lines = list[dict[str, Any]]()
    for model, of_model in joined.groupby("model", sort=False):
        by_task = [*_lines_by_task(of_model)]
        over_tasks = [*_lines_over_tasks(by_task, of_model.task.nunique())]
        for group in (by_task, over_tasks):
            corrected_p = holm([line["p"] for line in group])
            for line, p in zip(group, corrected_p, strict=True):
                lines.append(line | {"model": model, "holm": float(p)})
    return pd.DataFrame(lines, columns=COLUMNS)


def _lines_by_task(joined: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The lines of `paired_differences` on each task, without model and holm, and with
    conf_task, the task without how it was measured. joined: the pairs of one model
    (`frame.pairs`), with task_by_way."""
    groups = joined.groupby(["row_other", "task_by_way"], sort=False)
    for (other_row, task), group in groups:
        group = group.sort_values("seed", kind="stable")
        differences = tuple(group.difference)
        yield {
            "task": task,
            "conf_task": group.task.iloc[0],
            "other": other_row,
            "left": group.label.iloc[0],
            "right": group.label_other.iloc[0],
            "pairs": len(differences),
            "differences": differences,
            **_mean_columns(mean_of(differences)),
            "better": probability_of_improvement(group.x, group.y),
            "digits": int(group.digits.min()),
            "ids": (*group.id, *group.id_other),
        }


def _lines_over_tasks(
    by_task: list[dict[str, Any]], task_count: int
) -> Iterator[dict[str, Any]]:
    """The lines of `paired_differences` over tasks: one for each other row that has all
    tasks, two or more, if their scores are in points. Interval and p follow from how far
    the tasks' means lie apart. A task that was measured in several ways counts once, with
    the mean of these.

    by_task: the lines of `_lines_by_task`. task_count: how many tasks the row has."""
    frame = pd.DataFrame(by_task, columns=[*COLUMNS, "conf_task"])
    for other_row, group in frame.groupby("other", sort=False):
        in_points = (group.digits == DECIMALS_OF_POINTS).all()
        means = group.groupby("conf_task", sort=False)["mean"].mean()
        if task_count < 2 or len(means) < task_count or not in_points:
            continue
        yield {
            "task": "",
            "other": other_row,
            "left": group.left.iloc[0],
            "right": group.right.iloc[0],
            "pairs": task_count,
            "differences": tuple(means),
            **_mean_columns(mean_of(means)),
            "better": np.nan,
            "digits": DECIMALS_OF_POINTS,
            "ids": tuple(group.ids.sum()),  # the tuples of all tasks, joined
        }


def _mean_columns(mean: Mean) -> dict[str, float]:
    """A mean with its interval and p, as columns of `paired_differences`."""
    low, high = mean.interval()
    return {
        "mean": float(mean.mean),
        "low": float(low),
        "high": float(high),
        "p": float(mean.p()),
    }


# --- as a table


def comparison_table(
    lines: pd.DataFrame, title: str, with_details: bool = False
) -> Table:
    """Comparisons of one model as a table. lines: rows of `paired_differences`.
    with_details: also how many pairs were won, lost and equal, the median with its
    bootstrap interval, the sign test and P(better)."""
    rows = [_table_line(line, with_details) for line in lines.itertuples()]
    count_over_tasks = int((lines.task == "").sum())
    comparisons = plural(len(lines) - count_over_tasks, "comparison")
    what_holm_corrects = (
        f"is corrected for the {comparisons} of the rows and tasks selected"
    )
    if len(lines) == 1:
        what_holm_corrects = (
            "equals p, as the rows and tasks selected make one comparison"
        )
    means = "Mean differences in pairs of runs of one seed"
    if count_over_tasks:
        what_holm_corrects += f", and separately for the {count_over_tasks} over tasks"
        means += " (over tasks: of the tasks' means)"
    notes = [
        f"{means}, by Student's t. Positive: the first row is better.",
        f"p (Holm) {what_holm_corrects}. How to read it: docs/stats.md.",
        "95% CI and p are not corrected and leave out the choice of dev rows. Use p for "
        "one comparison that you chose before looking, and p (Holm) for the best of a "
        "table.",
    ]
    if ((lines.p < SIGNIFICANT) & (lines.holm >= SIGNIFICANT)).any():
        notes.append(NOTE_ON_FINDINGS)
    return Table.of(title, rows, notes, lines.model.iloc[0])


def _table_line(line: Any, with_details: bool) -> dict[str, Entry]:
    """The entries of one comparison. line: a row of `paired_differences`."""
    signed: Any = {"ids": line.ids, "decimals": line.digits, "sign": True}
    entries: dict[str, Entry] = {
        "difference": f"{line.left} minus {line.right}",
        # over tasks, each of them is a pair
        "task": line.task or f"all {line.pairs}",
        "pairs": Number(line.pairs, form="count", ids=line.ids),
        "mean": entry_of_runs(line.mean, **signed),
        "95% CI": entry_of_runs(line.low, high=line.high, **signed),
        "p": entry_of_runs(line.p, line.ids, form="p"),
        "p (Holm)": entry_of_runs(line.holm, line.ids, form="p"),
    }
    return entries | _detail_entries(line) if with_details else entries


def _detail_entries(line: Any) -> dict[str, Entry]:
    """The entries that more=true adds to a comparison. line: a row of
    `paired_differences`."""
    differences = pd.Series(line.differences)
    won = int((differences > 0).sum())
    lost = int((differences < 0).sum())
    counts = {"won": won, "lost": lost, "equal": len(differences) - won - lost}
    entries: dict[str, Entry] = {
        name: Number(count, form="count", ids=line.ids)
        for name, count in counts.items()
    }
    # None for a single pair: the entry is then "-"
    low, high = median_interval([*differences]) or (None, np.nan)
    signed: Any = {"ids": line.ids, "decimals": line.digits, "sign": True}
    entries["median"] = entry_of_runs(differences.median(), **signed)
    entries["95% of median"] = entry_of_runs(low, high=high, **signed)
    entries["p (sign test)"] = entry_of_runs(sign_test(differences), line.ids, form="p")
    entries["P(better)"] = entry_of_runs(line.better, line.ids, decimals=2)
    return entries


def note_on_uncompared_cells(
    cells: pd.DataFrame, lines: pd.DataFrame, row: str
) -> list[str]:
    """A note that names the cells which no run of `row` has been paired with, though the
    row has run on their task; an empty list if there is no such cell. cells: of one
    model. lines: its `paired_differences` from the row."""
    compared = set(zip(lines.other, lines.task, strict=True))
    tasks = cells[cells.row == row].task
    other_cells = cells[cells.task.isin(tasks) & (cells.row != row)]
    other_cells = other_cells.assign(task_by_way=tasks_by_way(other_cells))
    names = [
        f"{cell.label} on {cell.task_by_way}"
        for cell in other_cells.itertuples()
        if (cell.row, cell.task_by_way) not in compared
    ]
    if not names:
        return []
    reason = "Not compared, as no seed has the same data and protocol"
    return [f"{reason}: {enumeration(names, 'cells')}."]
