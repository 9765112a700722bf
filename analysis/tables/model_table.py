"""How the table of one model is made: the paper's rows, what others report of them, ours
below them with the difference, and rows that the paper does not have. A `TableSpec` says
what the table has, and makes its cells."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from analysis import paper_comparison
from analysis.frame import CELL_KEY, SEEDS, comparable_costs
from analysis.notes import notes
from analysis.others import METHODS, range_texts, report_lines, reports_of
from analysis.paper import DECIMALS, GLUE, IMAGES, printed_numbers
from analysis.render import NONE, Cell, Entry, Number, Table, trained_count
from analysis.tables.side_columns import SideColumns, forgetting_notes
from analysis.tables.spec import TableSpec, View

#: A line of a table: its entries by column.
Line = dict[str, Entry]


class Column(NamedTuple):
    """A column of numbers.

    label: what is written above it. base: the `column` of its cells, the task or the
    score. Cells that were measured in another way than most have a column of their own
    with the same base."""

    label: str
    base: str


@dataclass
class ModelTable:
    """Makes the table of one model (`table`).

    runs: of the table and model. cells: theirs (`TableSpec.cells_in_columns`); costs that
    cannot be compared and cells in no column are removed from them. printed: the paper's
    numbers of the model, with these cells beside them (`compare_with_paper`). lines: of
    the table, which `table` adds."""

    spec: TableSpec
    view: View
    model: str
    runs: pd.DataFrame
    cells: pd.DataFrame
    printed: pd.DataFrame
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cells = comparable_costs(self.cells)
        if not self.spec.tasks:
            # Cells in no column are not shown. (A table of one task keeps all cells: the
            # demo has its scores in side columns.) `columns`, cached, is made from all.
            self.cells = self.cells[self.cells.table_column.isin(self.columns)]

    # --- columns

    @cached_property
    def has_paper_model(self) -> bool:
        """Whether the paper has this model in the table."""
        return self.model in self.spec.models

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns of numbers in their order, the paper's and those of the runs, by the
        `table_column` of the cells in each."""
        spec = self.spec
        ran = self.cells
        if spec.tasks:
            ran = ran[ran.column.isin(spec.columns)]
        elif spec.is_ablation and self.has_paper_model:
            ran = ran[:0]  # the paper's columns alone
        elif spec.is_ablation:
            # VeRA itself is no ablation: a task on which it ran alone gets no column.
            ran = ran[ran.row != "vera"]
        printed = self._printed_columns()
        # The labels in the order of columns. A key that comes twice keeps its first
        # position and takes the later label.
        labels = dict(spec.columns) if self.has_paper_model else {}
        if spec.models and not spec.tasks:
            labels |= GLUE | IMAGES  # other tasks, of which the runs may have some
        labels |= spec.columns
        order = [*labels]
        columns_by_key = {column: Column(labels[column], column) for column in printed}
        for cell in ran.drop_duplicates("table_column").itertuples():
            label = labels.get(cell.column, cell.column_label)
            if cell.measurement_text:
                label += f", {cell.measurement_text}"
            columns_by_key[cell.table_column] = Column(label, cell.column)

        def order_key(key: str) -> tuple[Any, ...]:
            base = columns_by_key[key].base
            position = order.index(base) if base in order else len(order)
            # the usual way of measuring, whose key is the base itself, comes first
            return position, base, key != base, key

        ordered_keys = sorted(columns_by_key, key=order_key)
        return {key: columns_by_key[key] for key in ordered_keys}

    def _printed_columns(self) -> list[str]:
        """The keys of the paper's columns that are shown even without runs: all scores of
        one task; or, on a model of the paper, the tasks that the user asks for."""
        columns = list(self.spec.columns)
        if self.spec.tasks:
            return columns
        if not self.has_paper_model:
            return []
        return [column for column in columns if column in (self.view.tasks or columns)]

    @cached_property
    def has_average(self) -> bool:
        """Whether the table has a column with averages: table 2 with all of its tasks."""
        bases = {column.base for column in self.columns.values()}
        return self.spec.name == "table2" and bases == {*GLUE}

    @cached_property
    def paper_averages(self) -> pd.Series:
        """The means over tasks that the paper prints for this model, by method and printed
        count of parameters."""
        printed = printed_numbers()
        is_average = (printed.table == self.spec.name) & (printed.column == "avg")
        of_model = printed[is_average & (printed.model == self.model)]
        return of_model.set_index(["method", "size"]).value

    # --- what the lines are made from

    @cached_property
    def line_cells_by_row(self) -> dict[str, list[list[Cell]]]:
        """The cells of each row of ours: a list for each of the row's lines. There is a
        line for each variant and, in a table whose columns are scores of one task, for
        each task and way of measuring it."""
        lines_by_row = dict[str, dict[Any, list[Cell]]]()
        for cell in self.cells.itertuples():
            line_key = ("", "", cell.variant)
            if self.spec.tasks:
                line_key = (cell.task, cell.measurement_text, cell.variant)
            lines = lines_by_row.setdefault(cell.row, {})
            lines.setdefault(line_key, []).append(cell)
        return {row: [*lines.values()] for row, lines in lines_by_row.items()}

    @cached_property
    def reports(self) -> pd.DataFrame:
        """What independent groups report of this model's rows."""
        is_shown = self.spec.has_reports and self.view.others != "false"
        # without columns there are no reports
        columns = [*self.columns, "avg"] if is_shown else []
        return reports_of(self.model, columns, self.spec.compared_cells(self.cells))

    @cached_property
    def side_columns(self) -> SideColumns:
        """The columns beside the numbers."""
        return SideColumns.from_table(
            self.spec, self.view.columns, self.runs, self.cells
        )

    # --- the table

    def table(self) -> Table:
        """The table with its notes. To be called once, because it adds to `lines`."""
        for _, group in self.printed.groupby(["method", "size"], sort=False):
            self._add_printed_row(group)
        for row in self._further_rows():
            if row in {*self.reports.row}:
                # no row of the paper stands above these lines and names the method
                name: Line = {self.spec.head[0]: METHODS.get(row, row)}
                self.lines += [line | name for line in self._report_lines(row)]
            self._add_own_row(row, self.printed[:0])
        header = self._header()
        no_numbers = dict.fromkeys(self.columns, NONE)
        if self.has_average:
            no_numbers["avg"] = NONE
        rows = list[list[Entry]]()
        for line in self.lines:
            complete_line = no_numbers | line
            rows.append([complete_line.get(key, "") for key in header])
        return Table(
            self._title(),
            [*header.values()],
            rows,
            self._notes(),
            self.model,
            self._task_by_label(),
        )

    def _further_rows(self) -> list[str]:
        """The rows that the paper does not have in this table, in the order of the spec
        (row_order None: of the cells). In a table without rows of the paper they include
        those that others report."""
        rows = dict.fromkeys(self.line_cells_by_row)
        if self.printed.empty:
            rows |= dict.fromkeys(self.reports.row)
        printed = {*self.printed.row, *self.printed.like}
        further = [row for row in rows if row not in printed]
        first_rows = self.spec.row_order
        if first_rows is None:
            return further
        ordered = [row for row in first_rows if row in further]
        return ordered + sorted({*further} - {*ordered})

    def _header(self) -> dict[str, str]:
        """What is written above each column of the table, by the column's key in lines.
        The key of a side column begins with +, because a score may have its name."""
        spec = self.spec
        header = {name: name for name in spec.head}
        header |= {key: column.label for key, column in self.columns.items()}
        if self.has_average:
            header["avg"] = "Avg"
        header |= {f"+{name}": name for name in self.side_columns.column_names}
        return header | {name: name for name in spec.tail}

    @cached_property
    def _row_cells(self) -> pd.DataFrame:
        """The cells by CELL_KEY, each once: a cell with several scores has several lines
        in `cells`."""
        return self.cells.drop_duplicates(CELL_KEY)

    def _title(self) -> str:
        # in a title {0} is the model's name, and {1} the first cell
        title = self.spec.title if self.has_paper_model else self.spec.other_title
        first_cell = next(self._row_cells.itertuples(), None)
        name = self.spec.models.get(self.model, self.model)
        origin = "" if self.view.origin == "ours" else f" ({self.view.origin})"
        return f"{title.format(name, first_cell)}{origin}"

    def _notes(self) -> list[str]:
        spec, cells = self.spec, self._row_cells
        deviations = spec.deviations(self.runs, cells) if spec.models else ()
        notes_on_runs = notes(
            self.runs,
            cells,
            deviations,
            description=spec.describe(self.view, cells),
            reference="paper" if spec.models else "recipe",
        )
        return [
            *notes_on_runs,
            *forgetting_notes(self.side_columns),
            *self.side_columns.cost_notes(),
        ]

    def _task_by_label(self) -> dict[str, str]:
        """The task that each column stands for, by the column's label. In a table whose
        columns are scores of one task, the tasks by their own labels."""
        if self.spec.tasks:
            by_task = dict(self.spec.tasks)
            by_task |= zip(self.cells.task, self.cells.task_label, strict=True)
            return {label: task for task, label in by_task.items()}
        tasks = dict[str, str](
            zip(self.cells.table_column, self.cells.task, strict=True)
        )
        return {
            column.label: tasks.get(key) or column.base
            for key, column in self.columns.items()
        }

    # --- the paper's rows

    def _add_printed_row(self, group: pd.DataFrame) -> None:
        """Adds the lines of a row of the paper: its numbers, what others report of it, our
        row, and the difference. If the paper's row started from MNLI on some tasks, two
        rows of ours follow: the one that did not, and the one that did.

        group: the numbers of the paper's row (`printed`). Their `like`, the row of ours
        that each is compared with, differs from `row` where the paper started from MNLI."""
        first = group.iloc[0]
        spec = self.spec
        starts_from_mnli = (group.like != group.row).any()
        line: Line = {}
        if spec.tasks:
            # A score that the paper does not print stays empty. In tables whose columns
            # are tasks, `table` shows NONE for it.
            line |= dict.fromkeys(self.columns, "")
        for printed in group.itertuples():
            mark = "*" if printed.like != printed.row else ""
            decimals = DECIMALS.get(printed.column, 1)
            for key, column in self.columns.items():
                if column.base == printed.column:
                    line[key] = Number(
                        printed.value, printed.spread, decimals=decimals, mark=mark
                    )
        if self.has_average:
            line["avg"] = Number(self.paper_averages[first.method, first["size"]])
        line[spec.head[0]] = spec.row_names.get(first.row, first.method)
        line["params"] = first["size"]
        line["source"] = "paper, * from MNLI" if starts_from_mnli else "paper"
        line["status"] = "quoted"
        line |= {f"+{name}": entry for name, entry in spec.quoted.items()}
        self.lines += [line, *self._report_lines(first.row)]
        reports = self.reports[self.reports.row == first.row]
        range_text = range_texts(reports[reports.same_sites])
        bases = {column.base for column in self.columns.values()}
        group = group[group.column.isin(bases)]
        for row in dict.fromkeys([first.row, *group.like]):
            if row in self.line_cells_by_row:
                self._add_own_row(row, group, range_text)
                range_text = ""  # the first of our rows has said it

    def _report_lines(self, row: str) -> list[Line]:
        """The lines on what others report of a row; none where they report nothing, or the
        view leaves them out."""
        if self.reports.empty:
            return []
        reports = self.reports[self.reports.row == row]
        return report_lines(reports, each_source=self.view.others == "all")

    # --- our rows

    def _add_own_row(self, row: str, group: pd.DataFrame, range_text: str = "") -> None:
        """Adds the lines of a row of ours, each with its difference from the paper's.

        row: of ours. group: the numbers of the paper's row that it stands below; empty for
        a row that the paper does not have. Of these numbers, those whose `like` is this
        row are compared with it. If the paper started from MNLI on some tasks, `like` is
        there a row of ours that did so, too, which is shown on these tasks alone.
        range_text: whether our numbers are within what others report, which the status
        ends with."""
        compared_with_row = group[group.like == row]
        starts_from_mnli = bool((compared_with_row.row != row).any())
        mnli_tasks = compared_with_row.task.tolist() if starts_from_mnli else []
        required = self._required(mnli_tasks)
        lines = self.line_cells_by_row.get(row, [])
        if starts_from_mnli:
            lines = [
                [cell for cell in line_cells if cell.column in mnli_tasks]
                for line_cells in lines
            ]
        lines_with_cells = filter(None, lines)
        for line_number, own_cells in enumerate(lines_with_cells):
            first = own_cells[0]
            compared = compared_with_row
            if len(compared):
                # A quoted number of table 4 or 13 stands beside ours without a verdict.
                own_ids = {cell.ids for cell in own_cells}
                is_of_line = compared.ran & (compared.variant == first.variant)
                is_of_line &= compared.ids.isin(own_ids)
                compared = compared[is_of_line & (compared.verdict != "quoted")]
            averaged = own_cells
            if starts_from_mnli:
                # The paper's average over all tasks takes the others from the row that
                # did not start from MNLI.
                averaged = own_cells + self._cells_on_other_tasks(
                    group.iloc[0].row, own_cells
                )
            average = self._average(averaged)
            line = self._own_line(own_cells, compared, required)
            if average:
                line["avg"] = average
            is_first = line_number == 0
            if is_first:
                line |= self._name_and_size(first, follows_papers_row=len(group) > 0)
                statuses = [str(line["status"]), range_text]
                line["status"] = "; ".join(filter(None, statuses))
            line |= self.side_columns.entries(own_cells, is_first)
            difference_lines = self._difference_lines(
                own_cells, group, compared, average, starts_from_mnli
            )
            self.lines += [line, *difference_lines]

    def _required(self, mnli_tasks: Sequence[str]) -> list[str]:
        """The bases of the columns in which a complete row of ours has a number; none in a
        table that is not the paper's. mnli_tasks: the tasks on which a row started from
        MNLI, the only ones that it needs; empty for other rows."""
        if not self.spec.models:
            return []
        bases = list(dict.fromkeys(column.base for column in self.columns.values()))
        if self.spec.required:
            required = [*self.spec.required]
        elif mnli_tasks:
            required = [*mnli_tasks]
        else:
            required = [*self.spec.columns] if self.has_paper_model else bases
        return [base for base in bases if base in required]

    def _cells_on_other_tasks(self, row: str, own_cells: Iterable[Cell]) -> list[Cell]:
        """The cells in the first line of a row, on the tasks that own_cells lack."""
        tasks = {cell.task for cell in own_cells}
        lines = self.line_cells_by_row.get(row, [[]])
        return [cell for cell in lines[0] if cell.task not in tasks]

    def _own_line(
        self, own_cells: list[Cell], compared: pd.DataFrame, required: list[str]
    ) -> Line:
        """The numbers of a line of ours, with its source and status. "missing" stands in
        a required column without a number. own_cells: of the line. compared: the paper's
        numbers that they are compared with. required: of `_required`."""
        column_and_ids = zip(compared.column, compared.ids, strict=True)
        verdicts = dict(zip(column_and_ids, compared.verdict, strict=True))
        ran = {cell.column for cell in own_cells}
        line: Line = {base: "missing" for base in required if base not in ran}
        for cell in own_cells:
            verdict = verdicts.get((cell.column, cell.ids), "")
            line[cell.table_column] = self.spec.entry(cell, verdict)
        # a table with `quoted` columns shows the variant in one of them: the judge
        variant = "" if self.spec.quoted else own_cells[0].variant
        if variant:
            return line | {"source": f"{self.view.origin}, {variant}", "status": ""}
        status = self._status(own_cells, compared, required)
        return line | {"source": self.view.origin, "status": status}

    def _name_and_size(self, first: Cell, follows_papers_row: bool) -> Line:
        """The entries with the name and the size of a row of ours. An ablation below the
        paper's row, which has its name, has none. first: the row's first cell."""
        name = first.label
        if self.spec.is_ablation:
            name = "" if follows_papers_row else self.spec.row_names.get(first.row, "")
        return {self.spec.head[0]: name, "params": trained_count(first)}

    def _status(
        self, own_cells: list[Cell], compared: pd.DataFrame, required: list[str]
    ) -> str:
        """The status of a line of ours: its verdicts, or why it has none, and how many of
        its runs diverged. A reason below replaces what stands above it. Arguments: as in
        `_own_line`."""
        spec = self.spec
        origin = self.view.origin
        first = own_cells[0]
        # Only the cells of the kinds `Judged` and `Exact` have a state of their own.
        if state := getattr(first, "state", ""):
            return str(state)
        nearest = [cell for cell in own_cells if cell.is_nearest]
        complete = {cell.column for cell in nearest if cell.complete}
        status = origin if spec.tasks or self.has_paper_model else "other model"
        # A verdict needs the paper's choice of the epoch. In the paper's tables of one task
        # select= changes no score.
        if spec.tasks or self.view.select == "paper":
            verdicts = paper_comparison.row_status(compared, with_mean=not spec.tasks)
            status = verdicts or status
        if not complete.issuperset(required):
            status = f"{origin}, {spec.incomplete.format(first)}"
        if not compared.same_size.all():
            status = f"{origin}, another size: not compared"
        # A run with several scores of one task is in several cells, and counts once.
        diverged_by_task = {cell.task: int(cell.diverged) for cell in own_cells}
        diverged = sum(diverged_by_task.values())
        if diverged and not first.variant:
            status += f", {diverged} diverged"
        return status

    def _average(self, own_cells: list[Cell]) -> Number | None:
        """The mean over tasks of the medians over seeds, for table 2's column of averages;
        None unless every task is there with all its seeds, measured as most rows
        were."""
        # The `table_column` of a cell that was measured in another way is no name of a task.
        averaged = [cell for cell in own_cells if cell.table_column in GLUE]
        complete = {cell.table_column for cell in averaged if cell.complete}
        if not self.has_average or complete != {*GLUE}:
            return None
        ids = tuple(run for cell in averaged for run in cell.ids)
        return Number(statistics.fmean(cell.median for cell in averaged), ids=ids)

    def _difference_lines(
        self,
        own_cells: list[Cell],
        group: pd.DataFrame,
        compared: pd.DataFrame,
        average: Number | None,
        starts_from_mnli: bool,
    ) -> list[Line]:
        """A line with the differences, ours minus the paper's; none if no cell is complete
        or ours is of another size.

        own_cells: of our line. group: the numbers of the paper's row. compared: those of
        them that these cells are compared with. average: of our line. starts_from_mnli:
        whether that average takes its other tasks from another row."""
        if compared.empty:
            return []
        key_by_cell = {(cell.column, cell.ids): cell.table_column for cell in own_cells}
        complete = [row for row in compared.itertuples() if row.complete and row.n]
        if not complete or not compared.same_size.all():
            return []
        line: Line = {"source": "difference"}
        for row in complete:
            line[key_by_cell[row.column, row.ids]] = Number(
                row.difference,
                # A complete cell may have fewer seeds than a verdict needs: no interval.
                spread=row.half_width if row.n >= SEEDS else math.nan,
                decimals=DECIMALS.get(row.column, 1),
                sign=True,
                verdict=row.verdict,
                ids=row.ids,
            )
        mean = paper_comparison.mean_verdict(group[group.ran])
        # The average needs all tasks of the paper's row. They are all compared, or the row
        # that did not start from MNLI stands in for those that are not.
        if average and mean and (starts_from_mnli or len(compared) == len(group)):
            line["avg"] = replace(
                average,
                value=mean.difference,
                spread=mean.half_width,
                verdict=mean.verdict,
                sign=True,
            )
        return [line]
