"""What a table of cells is, and what its cells are. specs.py has the kinds of
tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.frame import (
    CELL_KEY,
    MEDIANS,
    cells,
    in_cells,
    place_in_columns,
)
from analysis.notes import SELECTED
from analysis.paper import DECIMALS, GLUE, LLAMAS
from analysis.render import Cell, Entry, Number, number
from runs.record.ledger import in_conf
from runs.record.schema import TEXT_SCORES


@dataclass(frozen=True)
class View:
    """The runs that a table is made from, and how.

    select: how the epoch is chosen (paper, crossfit or half). seeds: of a complete cell
    (None: the table's). tasks, models: those that are shown (empty: all). whose: whose
    runs these are. others: what independent groups report below a row of the paper
    (true: a line; all: a line each). columns: further numbers of `frame.runs`."""

    runs: pd.DataFrame
    select: str = "paper"
    seeds: int | None = None
    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    whose: str = "ours"
    others: str = "false"
    columns: Sequence[str] = ()


@dataclass(kw_only=True)
class TableSpec:
    """A part of a table. specs.yaml explains its fields. Its cells are those of the
    metric."""

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
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
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
        """Those of the runs that the table is made of, finished or not."""
        names = {"glue": [*GLUE], "llamas": [*LLAMAS], "names": [*self.row_names]}
        return runs.query(self.runs, local_dict=names, engine="python")

    def parts(self, view: View) -> list[View]:
        """The view split by what may not share a table: here one view, of its runs."""
        return [replace(view, runs=self.select_runs(view.runs))]

    def frame(self, view: View) -> pd.DataFrame:
        """The long frame of the table: its cells, with the column of the table that
        each stands in."""
        return place_in_columns(self.cells(view))

    def cells(self, view: View) -> pd.DataFrame:
        """The cells of its runs with their column, by default the task, and the variant
        of the row's line."""
        seeds = view.seeds or self.seeds
        if self.formulas:
            frame = cells(view.runs, self.numbers, seeds)
            return frame.assign(column_label=frame.column)
        select = "value" if view.select == "paper" else view.select
        return columns_of_tasks(cells(view.runs, select, seeds))

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The numbers of each run by column, for `frame.cells`."""
        columns = runs[[*MEDIANS, *TEXT_SCORES, "steps"]].astype(float)
        evaluated = {
            column: columns.eval(text) for column, text in self.formulas.items()
        }
        by_column = pd.DataFrame(evaluated, runs.index)
        return melted(by_column).assign(variant="")

    def compares(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Those of its cells that stand beside the paper's: of a row that was measured
        in several ways on a task, the nearest to its recipe."""
        is_compared = cells.variant.astype(str).str.fullmatch(self.compared_variants)
        return cells[is_compared & cells.is_nearest]

    def entry(self, cell: Cell, verdict: str) -> Entry:
        """A cell as a number of the table."""
        decimals = DECIMALS.get(cell.column, 1)
        entry = number(cell, self.middle, decimals, verdict, self.skips_missing)
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
    """A frame with a column for each number as a long one, with a line for each number:
    `column` has its column's name, `number` the number. ids: columns that stay."""
    return numbers.melt(ids, var_name="column", value_name="number", ignore_index=False)


def complete_cells(
    runs: pd.DataFrame, numbers: pd.DataFrame, wanted_columns: pd.DataFrame
) -> pd.DataFrame:
    """The numbers of `melted`, with a line for every run of a cell in each variant and
    column that `wanted_columns` has for one of its runs: NaN where a run lacks the
    number."""
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
