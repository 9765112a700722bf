"""Prints what the paper does not: intervals over seeds, differences between paired runs
of one seed, and verdicts.

vera-bench stats             every cell of the ledger
vera-bench stats table2      the cells of one table
vera-bench stats sweep=last  the runs of a sweep (task=, model=, method=)
vera-bench stats row=lora    a row and its comparisons with the others
vera-bench stats more=true   also the sign test, the median and P(better)

docs/stats.md explains each number and names its source.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from analysis import tables
from analysis.command import Selection, open_rows, own_and_published, row_name
from analysis.frame import reported_cells, tasks_by_way
from analysis.notes import notes, unfinished_notices
from analysis.paired import (
    comparison_table,
    note_on_uncompared_cells,
    paired_differences,
)
from analysis.paper import GPT2, LLAMAS, ROBERTA, VIT
from analysis.paper_comparison import verdict_summary
from analysis.render import (
    NONE,
    Cell,
    Entry,
    Number,
    Table,
    diverged_mark,
    entry_of_runs,
    render,
)
from runs.command.advice import require_known
from runs.command.errors import UserError
from runs.command.parser import entry_point, read_command_line, setting
from runs.record.intervals import interval_name, median_interval

#: The models of the paper.
MODELS = {**ROBERTA, **GPT2, **VIT, **LLAMAS}
#: The verdict on each cell, by the ids of its runs.
Verdicts = dict[tuple[str, ...], str]


def statistics_tables(
    runs: pd.DataFrame,
    row: str = "vera",
    paper_verdicts: pd.DataFrame | None = None,
    own_cells_only: bool = False,
    with_details: bool = False,
) -> list[Table]:
    """Two tables for each model: its cells (interval, best against last epoch, what
    choosing the epoch adds), and the differences of one row from the others.

    row: that row; "" for no differences. paper_verdicts: the verdicts beside the paper,
    if the caller has them already; None computes them (`tables.verdicts`).
    own_cells_only: of the cells, only those of the row. with_details: see
    `comparison_table`."""
    cells = reported_cells(runs)
    statistics = list[Table]()
    verdicts = verdicts_by_runs(runs, paper_verdicts) if len(cells) else {}
    differences = paired_differences(runs, row)
    for model, cells_of_model in cells.groupby("model"):
        shown_cells = cells_of_model
        if own_cells_only:
            shown_cells = cells_of_model[cells_of_model.row == row]
        if len(shown_cells):
            runs_of_model = runs[runs.model == model]
            statistics.append(_cells_table(shown_cells, runs_of_model, verdicts))
        lines = differences[differences.model == model]
        if len(lines):
            labels = " and ".join(dict.fromkeys(lines.left))
            title = f"{model}: {labels} minus the other methods"
            table = comparison_table(lines, title, with_details)
            table.notes += note_on_uncompared_cells(cells_of_model, lines, row)
            statistics.append(table)
    return statistics


def median_interval_entry(
    values: Iterable[float], ids: Iterable[str], decimals: int
) -> Entry:
    """The interval of the median of those values that are not NaN, as an entry; "-" for
    fewer than two. ids: of the runs that have the values."""
    known_values = [value for value in values if not math.isnan(value)]
    low, high = median_interval(known_values) or (math.nan, math.nan)
    return entry_of_runs(low, ids, high=high, decimals=decimals)


# --- cells


def verdicts_by_runs(
    runs: pd.DataFrame, paper_verdicts: pd.DataFrame | None = None
) -> Verdicts:
    """The verdict on each of our cells that the paper has, too. If the cell has several
    numbers with different verdicts, these are counted instead. paper_verdicts: as in
    `statistics_tables`."""
    paper_verdicts = tables.verdicts(runs) if paper_verdicts is None else paper_verdicts
    by_cell = (
        paper_verdicts[paper_verdicts.ran].groupby("ids", sort=False).verdict.agg(list)
    )
    return {ids: _joined_verdict(verdicts) for ids, verdicts in by_cell.items()}


def _joined_verdict(verdicts: list[str]) -> str:
    """The verdict on a cell, by those on its numbers: the one that all have; else their
    summary (`verdict_summary`); else, where that counts none of them, all of them."""
    distinct = list(dict.fromkeys(verdicts))
    if len(distinct) == 1:
        return distinct[0]
    return verdict_summary(verdicts) or ", ".join(distinct)


def _cells_table(cells: pd.DataFrame, runs: pd.DataFrame, verdicts: Verdicts) -> Table:
    """A table with a line for each of these cells (`frame.reported_cells`), all of one
    model. runs: all runs of the model, for the notes."""
    model = cells.model.iloc[0]
    interval_header = interval_name(cells.n)  # fewer seeds give a range and no interval
    without_verdict = "not in the paper" if model in MODELS else "other model"
    ordered = cells.assign(task=tasks_by_way(cells)).sort_values(["task", "row"])
    lines = list[dict[str, Entry]]()
    for cell in ordered.itertuples():
        line = _cell_line(cell, interval_header)
        line["verdict"] = verdicts.get(cell.ids, without_verdict)
        lines.append(line)
    description = "Best to optimism are of the dev set's metric (docs/stats.md)."
    table_notes = notes(runs[runs.kind == "result"], cells, description=description)
    return Table.of(f"{model}: cells", lines, table_notes, model)


def _cell_line(cell: Cell, interval_header: str) -> dict[str, Entry]:
    """The line of a cell, without its verdict. The median and its interval are of the
    reported score, which may be a score of texts; best to optimism are of the dev
    metric. interval_header: the name of the interval's column."""
    reported_decimals = int(cell.digits)
    metric_format: Any = {"ids": cell.ids, "decimals": int(cell.decimals)}
    # Where the last epoch is reported, none is chosen.
    chooses_epoch = cell.reported == "best"
    wanted_and_diverged = f"/{cell.wanted}{diverged_mark(cell)}"
    # of the known values, while cell.median is NaN if one is missing
    median = pd.Series(cell.values).median()
    crossfit: Entry = NONE
    optimism: Entry = NONE
    if chooses_epoch:
        crossfit = entry_of_runs(cell.crossfit, **metric_format)
        optimism = entry_of_runs(cell.optimism, sign=True, **metric_format)
    return {
        "method": cell.label,
        "task": cell.task,
        "metric": cell.name,
        "seeds": Number(cell.n, form="count", mark=wanted_and_diverged),
        "median": entry_of_runs(median, cell.ids, decimals=reported_decimals),
        interval_header: median_interval_entry(
            cell.values, cell.ids, reported_decimals
        ),
        "best": entry_of_runs(cell.best, **metric_format),
        "last": entry_of_runs(cell.last, **metric_format),
        "cross-fitted": crossfit,
        "optimism": optimism,
    }


# --- the command


@dataclass(frozen=True)
class Settings(Selection):
    """Which cells are shown, and how."""

    row: str | None = setting(
        None, "this row's cells alone, and its differences from the others (vera)"
    )
    more: bool = setting(
        False, "with the sign test, the median's bootstrap and P(better)"
    )
    format: Literal["md", "latex", "csv"] = setting("md", "how the tables are printed")


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="[TABLE]")
    settings = line.settings
    name = "".join(line.positional)
    row = row_name(settings.row or "vera")
    own_and_published_runs = own_and_published(open_rows(settings))
    # Own and published runs have separate tables. They are selected together, so that a
    # table or row is an error only if neither of them has it.
    selected = pd.concat(own_and_published_runs, ignore_index=True)
    if name:
        selected = in_table(selected, name)
    if selected.empty:
        of_name = f" of {name}" if name else ""
        hint = "make help lists what runs them" if name else "make demo"
        folder = f"{settings.output}/records"
        raise UserError(f"no records{of_name} in {folder} yet ({hint})")
    if settings.row:
        selected = _row_with_others(selected, row)
    shown_tables = list[Table]()
    suffixes = ("", " (published)")
    for runs, suffix in zip(own_and_published_runs, suffixes, strict=True):
        statistics = statistics_tables(
            runs[runs.id.isin(selected.id)],
            row,
            own_cells_only=bool(settings.row),
            with_details=settings.more,
        )
        shown_tables += [
            replace(table, title=f"{table.title}{suffix}") for table in statistics
        ]
    if not shown_tables:
        reasons = "".join(f": {note}" for note in unfinished_notices(selected))
        raise UserError(
            f"no finished run in {settings.output}/records for that{reasons}"
        )
    print(render(shown_tables, settings.format))
    return 0


def _row_with_others(runs: pd.DataFrame, row: str) -> pd.DataFrame:
    """All of the runs, if one of the row's runs is a result that can be compared with the
    others; otherwise the row's runs alone. Raises UserError for a row that no run
    has."""
    require_known("row", row, sorted(set(runs.row)))
    own_runs = runs[runs.row == row]
    return runs if (own_runs.kind == "result").any() else own_runs


def in_table(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The runs on the models and tasks of a table, of whichever row. name: of the table.
    Raises UserError for an unknown table, and for one without records."""
    if name in tables.WITHOUT_RECORDS:
        raise UserError(f"{name} is of formulas or recipes, and has no records")
    require_known("table", name, tables.TABLES)
    keys = {
        (table.model, task)
        for table in tables.tables_of_runs(name, runs)
        for task in table.tasks.values()
    }
    is_in_table = [key in keys for key in zip(runs.model, runs.task, strict=True)]
    return runs[is_in_table]


if __name__ == "__main__":
    entry_point(main)
