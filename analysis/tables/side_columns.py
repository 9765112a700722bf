"""The columns of a table beside its scores: facts of a row, costs and forgetting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.facts import FACTS
from analysis.frame import COST_COLUMNS, in_cells, rows_sharing
from analysis.render import NONE, Cell, Entry, Number, diverged_mark, entry_of_runs
from analysis.tables.spec import TableSpec
from runs.command.errors import UserError

#: Columns of `frame.runs` that a row usually has the same value of on each of its tasks.
CONSTANTS = {
    "adapter_bytes",
    *(name for name, fact in FACTS.items() if fact.per_cell == "first"),
}


@dataclass
class SideColumns:
    """The columns beside the scores of one model's table.

    cell_columns: the columns that come from a line's first cell: by their names, the
    further arguments of `_entry_of_cell`. row_columns: those that come from all runs of a
    row's first line, with the further arguments of `_entry_of_row`. runs: the runs of the
    table. with_forgetting: the runs that measured forgetting, on the text that most of
    them used. labels_on_other_text: the labels of rows that used another text.
    rows_on_same_tasks, rows_of_same_costs: the rows whose numbers over tasks, and whose
    costs, may be compared (`rows_sharing`)."""

    cell_columns: Mapping[str, Mapping[str, Any]]
    row_columns: Mapping[str, Mapping[str, Any]]
    runs: pd.DataFrame
    with_forgetting: pd.DataFrame
    labels_on_other_text: list[str]
    rows_on_same_tasks: set[str]
    rows_of_same_costs: set[str]

    @classmethod
    def from_table(
        cls,
        spec: TableSpec,
        columns: Sequence[str],
        runs: pd.DataFrame,
        cells: pd.DataFrame,
    ) -> "SideColumns":
        """The side columns of the table of one model. columns: further columns of
        `frame.runs` that the user asks for (columns=), beside the spec's. runs, cells: of
        the table."""
        table_runs = in_cells(runs, cells)
        measured = table_runs[:0]
        if spec.has_forgetting:
            measured = table_runs[table_runs.forgetting.notna()]
        # Losses on different texts do not compare, so we show those on the most frequent
        # text. There is none if no run measured forgetting.
        usual_text = measured.forgetting_text.mode()[:1]
        with_forgetting = measured[measured.forgetting_text.isin(usual_text)]
        on_other_text = measured[~measured.row.isin(with_forgetting.row)]
        row_columns = {**spec.row_columns, **{name: {"name": name} for name in columns}}
        # Each line selects its runs, which takes pandas longer the more columns they
        # have.
        run_columns = ["id", "row", "cell", "diverged"]
        run_columns += [settings["name"] for settings in row_columns.values()]
        return cls(
            cell_columns=spec.cell_columns,
            row_columns=row_columns,
            runs=table_runs[list(dict.fromkeys(run_columns))],
            with_forgetting=with_forgetting,
            labels_on_other_text=list(dict.fromkeys(on_other_text.label)),
            rows_on_same_tasks=rows_sharing(cells, ["measurement_text"]),
            rows_of_same_costs=rows_sharing(cells, ["conditions"]),
        )

    @property
    def column_names(self) -> list[str]:
        """The names of all side columns in their order."""
        forgetting = ["forgetting"] if len(self.with_forgetting) else []
        return [*self.cell_columns, *self.row_columns, *forgetting]

    def entries(self, own_cells: Sequence[Cell], is_first: bool) -> dict[str, Entry]:
        """The entries of a line of ours, by their keys in it: "+" and the column's name,
        which may be that of a score, too. own_cells: of the line. is_first: whether it is
        its row's first line; only that one has the numbers of row_columns."""
        ids = {run for cell in own_cells for run in cell.ids}
        runs = self.runs[self.runs.id.isin(ids)]
        entry_by_name = {
            name: _entry_of_cell(own_cells[0], runs, **settings)
            for name, settings in self.cell_columns.items()
        }
        if is_first:
            for name, settings in self.row_columns.items():
                entry_by_name[name] = self._entry_of_row(runs, **settings)
            if len(self.with_forgetting):
                entry_by_name["forgetting"] = self._forgetting_entry(runs)
        return {f"+{name}": entry for name, entry in entry_by_name.items()}

    def _entry_of_row(self, runs: pd.DataFrame, name: str, form: str = "") -> Entry:
        """What a row has in a column of numbers: the median over the seeds of each cell in
        its first line, as a mean over these cells.

        The entry is "-" where rows cannot be compared in the column:

        - one of CONSTANTS, if the row's cells differ in it;
        - a cost, if the row ran on other hardware, tasks or data than most rows;
        - another number, if the row ran on other tasks than most rows.

        0 bytes, of a row that trains no adapter, are "-", too.

        runs: those of the line. name: a column of `runs`. form: how the number is written
        (render.FORMS); "" for the form that FACTS has."""
        median_by_cell = _medians_by_cell(runs, name)
        if name in CONSTANTS:
            is_shown = median_by_cell.nunique() == 1
        elif name in COST_COLUMNS:
            is_shown = runs.row.iloc[0] in self.rows_of_same_costs
        else:
            is_shown = runs.row.iloc[0] in self.rows_on_same_tasks
        value = float(median_by_cell.mean()) if is_shown else math.nan
        form = form or FACTS[name].form
        if form == "bytes" and value == 0:
            return NONE
        return entry_of_runs(value, runs.id, form=form)

    def cost_notes(self) -> list[str]:
        """A note that says which rows have a cost; none if all have one, or the table has
        no costs."""
        # what each side column is called in `frame.runs` or `frame.cells`
        frame_column_by_name = {
            name: settings["name"] for name, settings in self.row_columns.items()
        }
        for name, settings in self.cell_columns.items():
            frame_column_by_name[name] = settings["column"]
        cost_columns = [
            name
            for name, column in frame_column_by_name.items()
            if column in COST_COLUMNS
        ]
        if not cost_columns or self.rows_of_same_costs >= {*self.runs.row}:
            return []
        names = " and ".join(cost_columns)
        return [
            f"{names}: shown for the largest group of rows with the same tasks, data sizes,"
            " precision and device."
        ]

    def _forgetting_entry(self, runs: pd.DataFrame) -> Entry:
        """What these runs have forgotten: the median of those that measured it on the
        usual text, with their standard deviation; "-" if none did."""
        is_measured = self.with_forgetting.id.isin(runs.id)
        changes = self.with_forgetting[is_measured].forgetting
        if changes.empty:
            return NONE
        ids = tuple(runs.id)
        return Number(
            float(changes.median()),
            float(changes.std()),
            n=len(changes),
            wanted=len(ids),
            decimals=3,
            sign=True,
            ids=ids,
        )


def _entry_of_cell(
    cell: Cell, runs: pd.DataFrame, column: str, seeds: bool = False, **settings: Any
) -> Entry:
    """The value that a cell has in a column of `frame.cells`, as an entry. runs: those
    that it comes from. seeds: whether the entry shows how many seeds have the number
    where some lack it. settings: further fields of `Number`; with `seeds` they do not
    count."""
    value = getattr(cell, column)
    if isinstance(value, str) or value is None:
        return str(value)
    if not seeds:
        return entry_of_runs(value, runs.id, **settings)
    # at the score alone: other numbers of the line would repeat it
    mark = diverged_mark(cell) if column == "median" else ""
    return Number(value, n=cell.n, wanted=cell.wanted, mark=mark, ids=cell.ids)


def _medians_by_cell(runs: pd.DataFrame, name: str) -> pd.Series:
    """The median of a column in each cell of a row's line, over the runs that did not
    diverge; over all runs if all of the line diverged. runs: of the line. name: of the
    column. Raises UserError for a column without numbers."""
    is_diverged = runs.diverged.astype(bool)
    counted = runs[~is_diverged | is_diverged.all()]
    try:
        return pd.to_numeric(counted[name]).groupby(counted.cell).median()
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None


def forgetting_notes(columns: SideColumns) -> list[str]:
    """Notes that say what the column of forgetting shows; none without that column."""
    if columns.with_forgetting.empty:
        return []
    first_run = columns.with_forgetting.iloc[0]
    losses = columns.with_forgetting.forgetting_before.astype(float)
    lowest = f"{losses.min():.3f}"
    highest = f"{losses.max():.3f}"
    loss_range = lowest if lowest == highest else f"{lowest} to {highest}"
    notes = [
        "forgetting: cross-entropy on another text after the last epoch minus the base"
        f" model's ({loss_range}), in nats per token. Lower is better.",
        f"The text is {first_run.forgetting_name}"
        f" ({first_run.forgetting_tokens:.0f} tokens).",
    ]
    if columns.labels_on_other_text:
        labels = ", ".join(columns.labels_on_other_text)
        notes.append(f"forgetting on another text, not shown: {labels}.")
    return notes
