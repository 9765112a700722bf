"""What a table of cells is: the runs that it is made from (`View`), and its description
(`TableSpec`), which makes its cells. specs.py has the kinds of tables."""

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
    """The runs that a table is made from, and what is shown of them.

    select: how the epoch is chosen (paper, crossfit or half). seeds: how many a complete
    cell has (None: as many as the table's spec says). tasks, models: those that are
    shown (empty: all). methods: the rows of conf/method whose printed numbers are shown
    (empty: all). origin: what the table calls these runs: ours, published or another
    name. others: how much a table shows, below a row of the paper, of what independent
    groups report on it ("false": nothing; "true": one line; "all": a line for each group).
    columns: columns of `frame.runs` that are shown beside the table's own."""

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
    """A part of a table, as specs.yaml describes it; the head of that file explains the
    fields. The numbers of this kind are the dev metric, or come from formulas. The
    subclasses in specs.py have other numbers."""

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
        # what queries in specs.yaml call @glue, @llamas and @names
        names = {"glue": [*GLUE], "llamas": [*LLAMAS], "names": [*self.row_names]}
        return runs.query(self.runs, local_dict=names, engine="python")

    def parts(self, view: View) -> list[View]:
        """A view for each table of a model that this part makes: here one, with all of
        the part's runs. Other kinds split runs that may not share a table."""
        return [replace(view, runs=self.select_runs(view.runs))]

    def cells_in_columns(self, view: View) -> pd.DataFrame:
        """The cells of the table, each with its `table_column`
        (`frame.assign_table_columns`)."""
        return assign_table_columns(self.cells(view))

    def cells(self, view: View) -> pd.DataFrame:
        """The cells of the view's runs. `column` names the column of the table: one of
        the part's formulas or, without formulas, the task. `variant` tells the lines of
        a row apart; in tables of this kind it is always "", as a row has one line."""
        seeds = view.seeds or self.seeds
        if self.formulas:
            frame = cells(view.runs, self.numbers, seeds)
            return frame.assign(column_label=frame.column)
        # the column of `frame.runs` with the metric at the chosen epoch
        select = "value" if view.select == "paper" else view.select
        return columns_of_tasks(cells(view.runs, select, seeds))

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The numbers of each run by the formulas of specs.yaml, a line for each number, in
        the columns that `frame.cells` asks for: number, column and variant."""
        columns = runs[[*MEDIAN_COLUMNS, *TEXT_SCORES, "steps"]].astype(float)
        numbers = {
            column: columns.eval(formula) for column, formula in self.formulas.items()
        }
        return melted(pd.DataFrame(numbers, runs.index)).assign(variant="")

    def compared_cells(self, cells: pd.DataFrame) -> pd.DataFrame:
        """The cells that are compared with the paper's: those whose whole variant matches
        the pattern compared_variants ("" matches the variant "" alone) and, where a row was
        measured in several ways on a task, those nearest to its recipe."""
        variants = cells.variant.astype(str)
        is_compared = variants.str.fullmatch(self.compared_variants)
        return cells[is_compared & cells.is_nearest]

    def entry(self, cell: Cell, verdict: str) -> Entry:
        """What the table shows of a cell. verdict: the verdict on it beside the paper's
        number ("" without one), which the entry keeps for CSV and is not in its text."""
        decimals = DECIMALS.get(cell.column, 1)
        entry = cell_entry(cell, self.middle, decimals, verdict, self.skips_missing)
        if not isinstance(entry, Number):
            return entry
        if not self.has_spread:
            entry = replace(entry, spread=math.nan)
        if cell.wanted < self.seeds:
            # The reader asked for fewer seeds than the paper has (seeds=1). Such a cell
            # counts as complete, so readers see its few seeds only in their number.
            entry = replace(entry, counted=True)
        return entry

    def describe(self, view: View, cells: pd.DataFrame) -> str:
        """The note that says what the table's numbers are: medians or means over seeds, and
        of which epoch. cells: of the table."""
        epochs = " or ".join(sorted({*cells.reported})) or "reported"
        middles = f"{self.middle.capitalize()}s over seeds"
        sentence_on_epoch = SELECTED.get(view.select, "")
        if not sentence_on_epoch:  # the epoch is chosen as in the paper
            usual = f"{middles} of the {epochs} epoch, +- sample standard deviation."
            return str(self.description or usual)
        # `crossfit` is the last epoch's score where tables report that; `half` is not.
        if self.formulas or (epochs == "last" and view.select == "crossfit"):
            sentence_on_epoch = (
                "select= changes nothing here: the last epoch is reported."
            )
        return f"{self.description or f'{middles}.'} {sentence_on_epoch}"

    def deviations(self, runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
        """How the table differs from the paper's, beside the deviations that its runs
        recorded: rows whose size this project chose; other numbers of images per class
        than the paper's 10; why scores are missing, such as without Java. runs: of the
        table's model. cells: of the table."""
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
            # by their texts, as None (all images) has no order among numbers
            counts = [*map(_shots_text, sorted({*shots} - {10}, key=str))]
            if counts:
                deviations.append(f"{task}: {' or '.join(counts)} images a class")
        reasons = set[str]()
        for texts in in_cells(runs, cells).texts:
            for scores in texts or []:
                reasons |= {*(scores.get("unavailable") or {}).values()}
        return deviations + sorted(reasons)


def _shots_text(count: float | None) -> str:
    """A number of images per class; "all" for None and NaN."""
    return "all" if count is None or math.isnan(count) else f"{count:g}"


# --- the columns of the long frame


def columns_of_tasks(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells for a table whose columns are tasks: `column` and `column_label` are those
    of the cell's task, and no row has variants."""
    return cells.assign(column=cells.task, column_label=cells.task_label, variant="")


def melted(numbers: pd.DataFrame, *shared_columns: str) -> pd.DataFrame:
    """The numbers of each run, a line a run, as a long frame with a line for each number:
    `number`, and `column`, the name of the column that it stood in. shared_columns: those
    that are no numbers and are repeated on each line."""
    return numbers.melt(
        shared_columns, var_name="column", value_name="number", ignore_index=False
    )


def complete_cells(
    runs: pd.DataFrame, numbers: pd.DataFrame, shown_numbers: pd.DataFrame
) -> pd.DataFrame:
    """Numbers of runs, completed so that all runs of a cell have the same variants and
    columns: a run that lacks a number gets a line with NaN.

    numbers, shown_numbers: of `melted`, with variant; their index is that of `runs`. A
    variant and column that one run of a cell has in shown_numbers gets a line for each
    run of this cell. Others get none. Of several numbers of one run, variant and column
    the first one counts."""
    line_key = ["run", "variant", "column"]
    lines_by_run = runs[CELL_KEY].join(
        shown_numbers[["variant", "column"]], how="inner"
    )
    lines_by_cell = lines_by_run.drop_duplicates()
    cell_of_run = runs[CELL_KEY].rename_axis("run").reset_index()
    every_line = cell_of_run.merge(lines_by_cell, on=CELL_KEY)
    known_lines = numbers.rename_axis("run").reset_index()[[*line_key, "number"]]
    known_lines = known_lines.drop_duplicates(line_key)
    joined = every_line.merge(known_lines, "left", line_key)
    return joined.set_index("run").drop(columns=CELL_KEY)
