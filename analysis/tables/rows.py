"""Rows x tasks: whatever has run, of any task, method and model, with its cost."""

import math

import pandas as pd

from analysis.frame import by_row, in_cells, reported_cells
from analysis.notes import notes
from analysis.render import NONE, Cell, Entry, Number, Table, count, diverged, of_runs
from analysis.tables.view import View


def rows(view: View) -> list[Table]:
    """A table for each model, a row for each method and a column for each task."""
    cells = reported_cells(view.runs, view.select, view.seeds or 1)
    return [_of_model(view, model, of) for model, of in cells.groupby("model", sort=True)]


def _of_model(view: View, model: str, cells: pd.DataFrame) -> Table:
    cells = cells.assign(order=-cells.parameters).sort_values(["order", "row", "task"], kind="stable")
    labels = cells.sort_values("task").drop_duplicates("task").set_index("task").task_label.to_dict()
    on = {
        name: ", ".join(dict.fromkeys(of.sort_values("order").task_label))
        for name, of in cells.groupby("name", sort=False)
    }
    names = "; ".join(f"{name} ({of})" for name, of in on.items())
    how = f"Medians over seeds, +- sample standard deviation (seeds): {names}."
    runs = view.runs[view.runs.model == model]
    done = in_cells(runs, cells)
    lines = [_row(view, ours, list(labels), done[done.row == row]) for row, ours in by_row(cells).items()]
    header = ["method", "source", "params", *labels.values(), "s/run", "adapter"]
    title = f"{cells.model_label.iloc[0]}{view.title}"
    return Table(title, header, lines, notes(runs, cells, how=how), model, labels, ("best", "last"))


def _row(view: View, ours: dict[str, Cell], tasks: list[str], runs: pd.DataFrame) -> list[Entry]:
    """ours: the cells of a row by task. Its cost is the median over the runs of all of them that did not
    diverge."""
    first = next(iter(ours.values()))
    done = runs if runs.diverged.all() else runs[~runs.diverged.astype(bool)]
    seconds, size = (float(pd.to_numeric(done[key]).median()) for key in ("seconds", "adapter_bytes"))
    return [
        first.label,
        view.whose,
        count(first),
        *(_number(ours[task]) if task in ours else NONE for task in tasks),
        of_runs(seconds, runs.id, decimals=0 if seconds >= 10 else 1),
        of_runs(size or math.nan, runs.id, form="bytes"),
    ]


def _number(cell: Cell) -> Number:
    """The number that the task's table reports, of those that have one, with how many: "76.0 +-1.0 (5)"."""
    known = [value for value in cell.values if value == value]
    return Number(
        float(pd.Series(known, dtype=float).median()),
        cell.spread if cell.n == cell.runs else float(pd.Series(known, dtype=float).std()),
        cell.n or cell.runs,
        decimals=int(cell.digits),
        counted=True,
        mark=diverged(cell),
        ids=cell.ids,
    )
