"""What a table of cells is, and what its cells are. specs.py has the kinds of
tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.frame import (
    CELL_KEY,
    MEDIAN_COLUMNS,
    assign_table_columns,
    cells,
    in_cells,
)
from analysis.notes import SELECTED
from analysis.paper import DECIMALS, GLUE, LLAMAS
from analysis.render import Cell, Entry, Number, cell_entry
from runs.record.ledger import in_conf
from runs.record.schema import TEXT_SCORES


@dataclass(frozen=True)
class View:
    """The runs that a table is made from, and how.

    select: how the epoch is chosen (paper, crossfit or half). seeds: of a complete cell
    (None: the table's). tasks, models: those that are shown (empty: all). methods: the
    rows of conf/method whose printed numbers are shown (empty: all). origin: how the
    table calls these runs: ours, published or another name. others: whether lines
    below a row of the paper say what independent groups report (true: one line; all: one
    of each group). columns: further columns of `frame.runs`."""

    runs: pd.DataFrame
    select: str = "paper"
    seeds: int | None = None
    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    methods: Sequence[str] = ()
    origin: str = "ours"
    others: str = "false"
    columns: Sequence[str] = ()


@dataclass(kw_only=True)
class TableSpec:
    """A part of a table, as specs.yaml describes it, which explains the fields. The
    cells of this kind are those of the metric; other kinds are in specs.py."""

    name: str
    runs: str
    title: str = ""
    other_title: str = "{0}"
    models: dict[str, str]
    columns: dict[str, str]
    seeds: int = 5
    middle: str = "median"
    formulas: dict[str, str] = field(default_factory=dict)
    skips_missing: bool = False
    has_spread: bool = True
    head: Sequence[str] = ("method", "source", "params")
    cell_columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    row_columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    tail: Sequence[str] = ("status",)
    required: Sequence[str] = ()
    incomplete: str = "incomplete"
    row_order: Sequence[str] | None = ()
    part: str = ""
    is_ablation: bool = False
    row_names: dict[str, str] = field(default_factory=dict)
    quoted: dict[str, str] = field(default_factory=dict)
    compared_variants: str = ""
    tasks: dict[str, str] = field(default_factory=dict)
    description: Any = ""
    has_reports: bool = False
    has_forgetting: bool = False
    average: str = ""
    bench: str = ""

    def select_runs(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The runs that the table is made from, finished or not."""
        names = {"glue": [*GLUE], "llamas": [*LLAMAS], "names": [*self.row_names]}
        return runs.query(self.runs, local_dict=names, engine="python")

    def parts(self, view: View) -> list[View]:
        """The views of the tables that this part makes: one for all of its runs. Other
        kinds split the runs that may not share a table."""
        return [replace(view, runs=self.select_runs(view.runs))]

    def cells_in_columns(self, view: View) -> pd.DataFrame:
        """The cells of the table, each with its `table_column`
        (`frame.assign_table_columns`)."""
        return assign_table_columns(self.cells(view))

    def cells(self, view: View) -> pd.DataFrame:
        """The cells of the view's runs. `column` names the column of the table: one of
        the part's formulas or, without formulas, the task. `variant` tells the lines of
        a row apart; it is "" where a row has one line."""
        seeds = view.seeds or self.seeds
        if self.formulas:
            frame = cells(view.runs, self.numbers, seeds)
            return frame.assign(column_label=frame.column)
        select = "value" if view.select == "paper" else view.select
        return columns_of_tasks(cells(view.runs, select, seeds))

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The numbers of each run by the formulas, in the columns that `frame.cells`
        asks for."""
        columns = runs[[*MEDIAN_COLUMNS, *TEXT_SCORES, "steps"]].astype(float)
        numbers = {
            column: columns.eval(formula) for column, formula in self.formulas.items()
        }
        return melted(pd.DataFrame(numbers, runs.index)).assign(variant="")

    def compared_cells(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The cells that are compared with the paper's: where a row was measured in
        several ways on a task, those nearest to its recipe."""
        is_compared = cells.variant.astype(str).str.fullmatch(self.compared_variants)
        return cells[is_compared & cells.is_nearest]

    def entry(self, cell: Cell, verdict: str) -> Entry:
        """A cell as the table writes it. verdict: on it, beside the paper's number."""
        decimals = DECIMALS.get(cell.column, 1)
        entry = cell_entry(cell, self.middle, decimals, verdict, self.skips_missing)
        if isinstance(entry, Number) and not self.has_spread:
            return replace(entry, spread=math.nan)
        return entry

    def describe(self, view: View, cells: pd.DataFrame) -> str:
        """The note that says what its numbers are: of which epoch, and over what."""
        epochs = " or ".join(sorted({*cells.reported})) or "reported"
        middles = f"{self.middle.capitalize()}s over seeds"
        selected = SELECTED.get(view.select, "")
        if not selected:
            usual = f"{middles} of the {epochs} epoch, +- sample standard deviation."
            return str(self.description or usual)
        if self.formulas or (epochs == "last" and view.select == "crossfit"):
            selected = "select= changes nothing here: the last epoch is reported."
        return f"{self.description or f'{middles}.'} {selected}"

    def deviations(self, runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
        """How it differs from the paper's, beside its runs' own deviations: rows whose
        size this project chose; other numbers of images per class than the paper's 10;
        why scores are missing, such as without Java."""
        ran = {*zip(cells.model, cells.row, strict=True)}
        deviations = list[str]()
        for entry in in_conf("counts.yaml"):
            if entry.get("chosen") and (entry["model"], entry["method"]) in ran:
                sizes = (
                    f"{entry['count']:,} parameters for the paper's {entry['printed']}"
                )
                reason = f"size and rates chosen here, with {sizes}"
                deviations.append(f"{entry['method']}: {reason}")
        images = cells[cells.family == "images"]
        for task, shots in images.groupby("task").shots:
            counts = [*map(_shots_text, sorted({*shots} - {10}, key=str))]
            if counts:
                deviations.append(f"{task}: {' or '.join(counts)} images a class")
        reasons = set[str]()
        for texts in in_cells(runs, cells).texts:
            for scores in texts or []:
                reasons |= {*(scores.get("unavailable") or {}).values()}
        return deviations + sorted(reasons)


def _shots_text(count: float | None) -> str:
    return "all" if count is None or math.isnan(count) else f"{count:g}"


# --- the columns of the long frame


def columns_of_tasks(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with their tasks as columns."""
    return cells.assign(column=cells.task, column_label=cells.task_label, variant="")


def melted(numbers: pd.DataFrame, *ids: str) -> pd.DataFrame:
    """A frame with several numbers a line as a long one, with a line for each number:
    `column` is the name of the column that it stood in. ids: columns that stay as they
    are."""
    return numbers.melt(ids, var_name="column", value_name="number", ignore_index=False)


def complete_cells(
    runs: pd.DataFrame, numbers: pd.DataFrame, wanted_columns: pd.DataFrame
) -> pd.DataFrame:
    """The numbers of `melted`, completed such that the runs of one cell have the same
    variants and columns: NaN where a run lacks the number.

    wanted_columns: lines of `melted`; what one of them has, each run of its cell has,
    too."""
    keys = ["run", "variant", "column"]
    wanted_by_run = runs[CELL_KEY].join(
        wanted_columns[["variant", "column"]], how="inner"
    )
    wanted_by_cell = wanted_by_run.drop_duplicates()
    run_keys = runs[CELL_KEY].rename_axis("run").reset_index()
    all_lines = run_keys.merge(wanted_by_cell, on=CELL_KEY)
    known_lines = numbers.rename_axis("run").reset_index()[[*keys, "number"]]
    joined = all_lines.merge(known_lines.drop_duplicates(keys), "left", keys)
    return joined.set_index("run").drop(columns=CELL_KEY)
