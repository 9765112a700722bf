"""The columns of a table beside its scores: facts of a row, costs and forgetting."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.facts import FACTS
from analysis.frame import COSTS, in_cells, rows_sharing
from analysis.render import NONE, Cell, Entry, Number, diverged, of_runs
from analysis.tables.spec import TableSpec
from runs.command.errors import UserError

#: Columns of a row that say the same on each of its tasks.
CONSTANTS = {
    "adapter_bytes",
    *(name for name, fact in FACTS.items() if fact.per_cell == "first"),
}


@dataclass
class SideColumns:
    """The columns beside the scores of one model's table.

    of_cells: the columns that come from a row's first cell, with the arguments of
    `cell_number`. of_rows: those that come from all of a row's runs, with the arguments
    of `_row_number`. runs: those of the table. with_forgetting: those that measured
    forgetting, on the text that most of them used; labels_on_other_text: the rows that
    used another one. same_tasks, same_costs: the rows whose numbers over tasks, and
    costs, may be compared (`rows_sharing`)."""

    of_cells: Mapping[str, Mapping[str, Any]]
    of_rows: Mapping[str, Mapping[str, Any]]
    runs: pd.DataFrame
    with_forgetting: pd.DataFrame
    labels_on_other_text: list[str]
    same_tasks: set[str]
    same_costs: set[str]

    @classmethod
    def from_table(
        cls,
        spec: TableSpec,
        columns: Sequence[str],
        runs: pd.DataFrame,
        cells: pd.DataFrame,
    ) -> "SideColumns":
        """The side columns of a table. columns: further numbers of `frame.runs`."""
        table_runs = in_cells(runs, cells)
        measured = table_runs[:0]
        if spec.has_forgetting:
            measured = table_runs[table_runs.forgetting.notna()]
        usual_text = measured.forgetting_text.mode()[:1]
        with_forgetting = measured[measured.forgetting_text.isin(usual_text)]
        other_runs = measured[~measured.row.isin(with_forgetting.row)]
        of_rows = {**spec.costs, **{name: {"name": name} for name in columns}}
        # A line selects its runs, which takes pandas its time for each column
        names = ["id", "row", "cell", "diverged"]
        names += [settings["name"] for settings in of_rows.values()]
        return cls(
            spec.more,
            of_rows,
            table_runs[list(dict.fromkeys(names))],
            with_forgetting,
            list(dict.fromkeys(other_runs.label)),
            rows_sharing(cells, ["measured_apart"]),
            rows_sharing(cells, ["conditions"]),
        )

    @property
    def names(self) -> list[str]:
        """The columns in their order."""
        forgetting = ["forgetting"] if len(self.with_forgetting) else []
        return [*self.of_cells, *self.of_rows, *forgetting]

    def entries(self, own_cells: Sequence[Cell], is_first: bool) -> dict[str, Entry]:
        """The entries of a line of ours, by the keys of the table's lines. Further
        lines of a row repeat nothing of the row."""
        ids = {run for cell in own_cells for run in cell.ids}
        runs = self.runs[self.runs.id.isin(ids)]
        by_name = {
            name: cell_number(own_cells[0], runs, **settings)
            for name, settings in self.of_cells.items()
        }
        if is_first:
            for name, settings in self.of_rows.items():
                by_name[name] = self._row_number(runs, **settings)
            if len(self.with_forgetting):
                by_name["forgetting"] = self._forgetting(runs)
        return {f"+{name}": entry for name, entry in by_name.items()}

    def _row_number(self, runs: pd.DataFrame, name: str, form: str = "") -> Entry:
        """The mean over a row's cells of the median of a number of its runs that did
        not diverge; "-" where other rows have other tasks or, of costs, ran on other
        hardware or data."""
        by_cell = _medians_by_cell(runs, name)
        if name in CONSTANTS:
            is_shown = by_cell.nunique() == 1
        else:
            comparable = self.same_costs if name in COSTS else self.same_tasks
            is_shown = runs.row.iloc[0] in comparable
        value = float(by_cell.mean()) if is_shown else math.nan
        form = form or FACTS[name].form
        if form == "bytes" and value == 0:
            return NONE
        return of_runs(value, runs.id, form=form)

    def cost_notes(self) -> list[str]:
        """A note that says which rows have a cost, where some have none."""
        facts = {name: settings["name"] for name, settings in self.of_rows.items()}
        facts |= {name: settings["column"] for name, settings in self.of_cells.items()}
        costs = [name for name, fact in facts.items() if fact in COSTS]
        if not costs or self.same_costs >= {*self.runs.row}:
            return []
        names = " and ".join(costs)
        return [
            f"{names}: shown for the largest group of rows with the same tasks, data sizes,"
            " precision and device."
        ]

    def _forgetting(self, runs: pd.DataFrame) -> Entry:
        """What these runs have forgotten: the median over seeds."""
        is_shown = self.with_forgetting.id.isin(runs.id)
        changes = self.with_forgetting[is_shown].forgetting
        if changes.empty:
            return NONE
        middle, spread = float(changes.median()), float(changes.std())
        ids = tuple(runs.id)
        return Number(
            middle, spread, len(changes), len(ids), decimals=3, sign=True, ids=ids
        )


def cell_number(
    cell: Cell, runs: pd.DataFrame, column: str, seeds: bool = False, **settings: Any
) -> Entry:
    """A column of a cell as an entry. runs: of the row. seeds: whether it shows how many
    seeds have the number. settings: of Number."""
    value = getattr(cell, column)
    if isinstance(value, str) or value is None:
        return str(value)
    if not seeds:
        return of_runs(value, runs.id, **settings)
    mark = diverged(cell) if column == "median" else ""
    return Number(value, n=cell.n, wanted=cell.wanted, mark=mark, ids=cell.ids)


def _medians_by_cell(runs: pd.DataFrame, name: str) -> pd.Series:
    """The median of a number in each cell of a row, over the runs that did not diverge,
    unless all did."""
    is_diverged = runs.diverged.astype(bool)
    finished = runs[~is_diverged | is_diverged.all()]
    try:
        return pd.to_numeric(finished[name]).groupby(finished.cell).median()
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None


def forgetting_notes(columns: SideColumns) -> list[str]:
    """What the column of forgetting shows."""
    if columns.with_forgetting.empty:
        return []
    first_run = columns.with_forgetting.iloc[0]
    losses = columns.with_forgetting.forgetting_before.astype(float)
    # one number where the lowest and the highest loss print alike
    ends = dict.fromkeys(f"{loss:.3f}" for loss in (losses.min(), losses.max()))
    notes = [
        "forgetting: cross-entropy on another text after the last epoch minus the base"
        f" model's ({' to '.join(ends)}), in nats per token. Lower is better.",
        f"The text is {first_run.forgetting_name}"
        f" ({first_run.forgetting_tokens:.0f} tokens).",
    ]
    if columns.labels_on_other_text:
        labels = ", ".join(columns.labels_on_other_text)
        notes.append(f"forgetting on another text, not shown: {labels}.")
    return notes
