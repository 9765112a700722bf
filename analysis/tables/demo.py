"""The demo: every method on a small task, with what it costs."""

from dataclasses import replace

import pandas as pd

from analysis.notes import CROSSFIT, notes
from analysis.render import NONE, Cell, Entry, Number, Table, count, diverged, of_runs
from analysis.tables.view import View
from runs.record.text import plural

HEADER = ["method", "trainable", "vs LoRA", "best ep.", "spread", "last ep.", "s/run", "adapter", "head"]


def demo(view: View) -> list[Table]:
    """Every method on the demo's task, with what it costs: a table for each model and number of rows."""
    of_task = view.runs.task == "reviews"
    trials = view.runs[of_task & (view.runs.kind == "trial")]
    view = replace(view.of(of_task & (view.runs.kind == "result")), trials=trials)
    sizes = view.runs.groupby(["asked_train_rows", "asked_dev_rows"], sort=True).groups
    tables = []
    for index in sizes.values():
        part = view.of(view.runs.index.isin(index))
        cells = part.cells(0)
        tables += [_of_model(part, of, len(sizes) > 1) for _, of in cells.groupby("model", sort=True)]
    return tables


def _of_model(view: View, cells: pd.DataFrame, with_size: bool) -> Table:
    """with_size: whether its title has the number of rows, as there are tables of others."""
    unknown = cells.runs - cells.n
    cells = cells.assign(unknown=unknown, less=-cells["median"]).sort_values(
        ["unknown", "less"], kind="stable"
    )
    first, counts = cells.iloc[0], set(cells.runs)
    lora = cells[cells.row == "lora"].parameters
    one_count = cells.complete.all() and len(counts) == 1
    over = f"median of {plural(max(counts), 'seed')}" if one_count else "median over the seeds there are"
    size = f"{first.train_rows:,} training and {first.dev_rows:,} dev rows"
    over += f", {size}" if with_size else ""
    title = f"{first.task_label} ({first.model_label}, {over}): dev {first.metric}"
    runs = view.runs[view.runs.model == first.model]
    how = f"trainable: without the classification head. {size}."
    if view.select == "crossfit":
        how += f" {CROSSFIT}"
    elif (runs.evaluations == 1).all():
        how += " The last epoch alone is evaluated."
    ends = _at_an_end(view, cells)
    if ends:
        how += (
            f" {END.strip()}: its rate is at an end of the grid that was tried; one beyond could be better."
        )
    rows = [
        _row(cell, int(lora.iloc[0]) if len(lora) else 0, END * (cell.row in ends))
        for cell in cells.itertuples()
    ]
    return Table(
        title + view.title,
        HEADER,
        rows,
        notes(runs, cells, how=how),
        first.model,
        {"reviews": first.task_label},
        ("best",),
    )


#: Marks a row whose rate is at an end of its grid.
END = " ^"


def _at_an_end(view: View, cells: pd.DataFrame) -> set[str]:
    """The rows with a rate that is the lowest or highest of those that trials on held-out rows tried."""
    trials = view.trials.groupby(["model", "row"])
    found = set[str]()
    for name in ("lr", "lr_head"):
        ends = trials[name].agg(["min", "max", "nunique"])
        for cell in cells.itertuples():
            if (cell.model, cell.row) in ends.index:
                low, high, count = ends.loc[(cell.model, cell.row)]
                if count > 1 and getattr(cell, name) in (low, high):
                    found.add(cell.row)
    return found


def _row(cell: Cell, lora: int, mark: str) -> list[Entry]:
    missing = "" if cell.complete else f" ({cell.n}/{cell.wanted} seeds)"
    trains = cell.parameters > 0
    return [
        cell.label + mark + missing,
        count(cell),
        Number(cell.parameters / lora, form="ratio", ids=cell.ids) if lora and trains else NONE,
        Number(cell.median, n=cell.n, mark=diverged(cell), ids=cell.ids),
        of_runs(cell.spread, cell.ids),
        Number(cell.last, n=cell.n, ids=cell.ids),
        Number(cell.seconds, decimals=0, ids=cell.ids),
        of_runs(cell.adapter_bytes if trains else None, cell.ids, form="bytes"),
        Number(4 * cell.head_parameters, form="bytes", ids=cell.ids),
    ]
