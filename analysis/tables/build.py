"""How a table of cells is made, for each model: the paper's rows, what others report of them, ours below them
with the difference, and rows that the paper has not. What a table is says its Spec (specs.py, judged.py)."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis import beside
from analysis.frame import SEEDS, cells, in_cells
from analysis.notes import SELECTED, notes
from analysis.others import line as others_line
from analysis.others import others_of, verdict
from analysis.paper import GLUE, IMAGES, numbers
from analysis.render import NONE, Cell, Entry, Number, Table, count, number
from analysis.tables.columns import against, forgetting, number_of

#: A row's cells by column.
Own = Mapping[str, Cell]


@dataclass(frozen=True)
class View:
    """The runs that a table is made from, and how.

    select: how the epoch is chosen (paper, crossfit or half). seeds: of a complete cell (None: the table's).
    tasks, models: those that are shown (empty: all). whose: whose runs these are. others: what independent
    groups report below a row of the paper (true: a line; all: a line each). columns: further numbers of
    `frame.runs`. against: a row to which each row's difference is a column."""

    runs: pd.DataFrame
    select: str = "paper"
    seeds: int | None = None
    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    whose: str = "ours"
    others: str = "false"
    columns: Sequence[str] = ()
    against: str | None = None

    def cells(self, seeds: int, value: str = "", column: str = "") -> pd.DataFrame:
        """The cells of its runs, with their column. seeds: of a complete one, unless others are asked for.
        value: the column of runs. column: by default the task."""
        value = value or ("value" if self.select == "paper" else self.select)
        made = cells(self.runs, value, self.seeds or seeds)
        return made.assign(column=column or made.task, column_label=made.task_label, variant="")


def reads(spec: "Spec", view: View, made: pd.DataFrame) -> str:
    """What the numbers of a table of medians or means over seeds are."""
    epochs, middle = " or ".join(sorted(set(made.reported))), spec.middle.capitalize()
    if view.select not in SELECTED:
        return f"{middle}s over seeds of the {epochs or 'reported'} epoch, +- sample standard deviation."
    if (epochs == "last" and view.select == "crossfit") or not spec.by_task:
        return "select= changes nothing here: the last epoch is reported."
    return f"{middle}s over seeds. {SELECTED[view.select]}"


@dataclass(frozen=True)
class Spec:
    """What a table is.

    title, other: of one of the paper's models, and of another one; {0} is its name, {1} its first cell.
    belongs: which runs are its. models, columns: the paper's, with their names. cells: of its runs; a cell
    has `column`, the task or the score that it is of, and `variant`, where a row has several lines (another
    way of decoding, another judge). seeds: of a complete cell. middle: median or mean. entry: a cell as a
    number. more: columns after the numbers, and how an entry comes of a row's cells and runs. head, tail:
    columns around the numbers. wanted: what a complete row has, where the columns are no tasks. status: of a
    row of ours, by its cells and the usual words. first: rows that stand before others (None: in the order of
    cells). part: of the paper's table. names: of the paper's rows, by ours. quoted: what else stands in the
    paper's rows. compared: the variants that stand beside the paper. how, notes: what its notes say. tasks:
    their names, where columns are no tasks. others, forgets: whether it has lines of what others report, and
    a column of forgetting."""

    name: str
    belongs: Callable[[pd.DataFrame], "pd.Series[bool]"]
    title: str = ""
    other: str = "{0}"
    models: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    cells: Callable[["Spec", View], pd.DataFrame] = lambda spec, view: view.cells(spec.seeds)
    seeds: int = 5
    middle: str = "median"
    decimals: Mapping[str, int] = field(default_factory=dict)
    entry: Callable[..., Entry] = number
    more: Mapping[str, Callable[[Own, pd.DataFrame], Entry]] = field(default_factory=dict)
    head: Sequence[str] = ("method", "source", "params")
    tail: Sequence[str] = ("status",)
    wanted: Sequence[str] = ()
    incomplete: str = "incomplete"
    status: Callable[[View, Cell, str], str] = lambda view, first, usual: usual
    first: Sequence[str] | None = ()
    part: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    quoted: Mapping[str, str] = field(default_factory=dict)
    compared: Callable[[str], bool] = lambda variant: variant == ""
    how: Callable[["Spec", View, pd.DataFrame], str] = reads
    notes: Callable[[str, pd.DataFrame, pd.DataFrame], Iterable[str]] = lambda model, runs, made: ()
    tasks: Mapping[str, str] = field(default_factory=dict)
    others: bool = False
    forgets: bool = False

    @property
    def by_task(self) -> bool:
        """Whether its columns are tasks."""
        return not self.tasks

    @property
    def ablation(self) -> bool:
        """Whether its rows are settings of one method."""
        return self.head[0] == "setting"

    def digits(self, column: str) -> int:
        """The decimals of a column."""
        return self.decimals.get(column, 1)


def of_paper(spec: Spec, view: View) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of a table, and the paper's numbers with them (`beside.beside`)."""
    made = spec.cells(spec, replace(view, runs=view.runs[spec.belongs(view.runs)]))
    if not spec.models:  # it has none
        return made, numbers()[:0].assign(ran=False, same_size=True, word="", variant="")
    return made, beside.beside(spec.name, made[made.variant.map(spec.compared).astype(bool)], spec.part)


def build(spec: Spec, view: View) -> list[Table]:
    """A table for each of the paper's models, and for each other model that has such runs."""
    made, printed = of_paper(spec, view)
    ran = sorted(set((made[made.row != "vera"] if spec.ablation else made).model))
    models = [model for model in dict.fromkeys([*spec.models, *ran]) if model in (view.models or [model])]
    runs = view.runs[spec.belongs(view.runs)]
    parts = [[of[of.model == model] for of in (runs, made, printed)] for model in models]
    return [_Model(spec, view, model, *part).table() for model, part in zip(models, parts, strict=True)]


class _Model:
    """A table of one model. runs: those that belong to it. made: its cells. paper: the paper's numbers with
    them. ours: the cells of each row of ours, one mapping for each of its lines. lines: those made so far:
    entries by the names of columns, and the runs of a row of ours that it begins."""

    def __init__(self, spec: Spec, view: View, model: str, *frames: pd.DataFrame) -> None:
        self.spec, self.view, self.model = spec, view, model
        self.runs, made, self.paper = frames
        papers, self.columns = model in spec.models, dict(spec.columns)
        if spec.by_task:  # the paper's tasks, and those that have run
            if spec.ablation:
                made = made[:0] if papers else made[made.row != "vera"]
            ran = dict(zip(made.column, made.column_label, strict=True))
            wanted = {of for of in spec.columns if papers and of in (view.tasks or spec.columns)} | {*ran}
            names = {**(spec.columns if papers else {}), **GLUE, **IMAGES} if spec.models else {}
            known = {of: name for of, name in names.items() if of in wanted}
            self.columns = known | {of: ran[of] for of in sorted(wanted - {*known})}
            made = frames[1][frames[1].column.isin(self.columns)]
        self.made, self.averaged = made, spec.name == "table2" and len(self.columns) == len(GLUE)
        averages = numbers().query("model == @model and table == @spec.name and column == 'avg'")
        self.averages = averages.set_index(["method", "size"]).value
        self.ours, self.used = dict[str, list[Own]](), set[str]()
        self.lines = list[tuple[dict[str, Entry], pd.DataFrame]]()
        by = ["row", "variant"] if spec.by_task else ["row", "task", "variant"]
        for (row, *_), of in self.made.groupby(by, sort=False):
            self.ours.setdefault(row, []).append({cell.column: cell for cell in of.itertuples(index=False)})
        shown = [*self.columns, "avg"] if spec.others and view.others != "false" else []
        if shown and view.select != "paper":  # others are beside their own choice of the epoch
            made = spec.cells(spec, replace(view, select="paper", runs=self.runs))
        of_paper = made[made.variant.map(spec.compared).astype(bool)].iloc[::-1].groupby("row")
        own = {row: {of.column: of for of in cells.itertuples(index=False)} for row, cells in of_paper}
        self.theirs = others_of(model, shown, own)

    def table(self) -> Table:
        """The table, with its notes."""
        spec, view, model, runs = self.spec, self.view, self.model, self.runs
        for _, group in self.paper.groupby(["method", "size"], sort=False):
            self._of_paper(group)
        rest = [row for row in self.ours if row not in self.used]
        if spec.first is not None:
            rest = sorted(rest, key=lambda row: (*(row != first for first in spec.first or ()), row))
        for row in rest:
            for i, own in enumerate(self.ours[row]):
                self._ours(own, i)
        cells = self.made.drop_duplicates(["row", "task"])
        title = spec.title if model in spec.models else spec.other
        title = title.format(spec.models.get(model, model), next(cells.itertuples(), None))
        found = notes(runs, cells, spec.notes(model, runs, cells), spec.how(spec, view, cells))
        # The columns beside the table's own
        of_model = view.runs[view.runs.model == model]
        added = forgetting(in_cells(runs, self.made)) if spec.forgets else []
        added += [number_of(name, of_model) for name in view.columns if name not in {of.name for of in added}]
        if view.against:
            added += against(view.against, of_model, [own for _, own in self.lines if len(own)])
        for line, own in self.lines:
            line |= {f"added {of.name}": of.entry(own) for of in added if len(own)}
        ends = {**dict.fromkeys(spec.more), **{f"added {of.name}": of.name for of in added}}
        ends |= dict.fromkeys(spec.tail)
        header = dict.fromkeys(spec.head) | self.columns
        header |= ({"avg": "Avg"} if self.averaged else {}) | ends
        tasks = {**spec.tasks} | cells.set_index("task").task_label.to_dict()
        of_column = dict(zip(self.made.column, self.made.task, strict=True))
        return Table(
            title if view.whose == "ours" else f"{title} ({view.whose})",
            [label or name for name, label in header.items()],
            [[line.get(name, "") for name in header] for line, _ in self.lines],
            [*found, *(note for of in added for note in of.notes)],
            model,
            {label: of_column.get(of, of) for of, label in self.columns.items()}
            if spec.by_task
            else {label: task for task, label in tasks.items()},
        )

    def _line(self, line: dict[str, Entry], own: Any = None, empty: Entry = NONE) -> None:
        """Adds a line. empty: where it has no number. own: the runs of a row of ours that it begins."""
        columns = dict.fromkeys([*self.columns, *["avg"] * self.averaged], empty)
        self.lines.append((columns | line, self.view.runs[:0] if own is None else own))

    # --- the paper's rows, and ours

    def _of_paper(self, group: pd.DataFrame) -> None:
        """The paper's row, what others report, ours, and the difference; ours twice where the paper's started
        from MNLI on some tasks."""
        spec, first, mnli = self.spec, group.iloc[0], (group.like != group.row).any()
        group = group[group.column.isin(self.columns)]
        line: dict[str, Entry] = {
            of.column: Number(
                of.value, of.spread, decimals=spec.digits(of.column), mark="*" * (of.like != of.row)
            )
            for of in group.itertuples()
        }
        if self.averaged:
            line["avg"] = Number(self.averages[first.method, first["size"]])
        line |= {spec.head[0]: spec.names.get(first.row, first.method), "params": first["size"]}
        line |= {"source": "paper, * from MNLI" if mnli else "paper", "status": "quoted", **spec.quoted}
        self._line(line, empty=NONE if spec.by_task else "")
        theirs = self.theirs[self.theirs.row == first.row]
        each, word = self.view.others == "all", verdict(theirs[theirs.same])
        for _, of in theirs.groupby(["label", "sites"] if each else "row", sort=False):
            self._line(others_line(of, each))
        for like in dict.fromkeys([first.row, *group.like]):
            of = group[group.like == like]
            self.used.add(like)
            for i, own in enumerate(self.ours.get(like, [])):
                whole = own
                if like != first.row:
                    own = {task: cell for task, cell in own.items() if task in {*of.task}}
                    plain = next(iter(self.ours.get(first.row, [])), {})
                    whole = {task: cell for task, cell in plain.items() if task not in {*of.task}} | own
                if own:
                    self._ours(own, i, of, group, whole, word)
                    word = ""

    def _ours(
        self,
        own: Own,
        again: int = 0,
        like: pd.DataFrame | None = None,
        group: pd.DataFrame | None = None,
        whole: Own | None = None,
        word: str = "",
    ) -> None:
        """Our row, and its difference to the paper's. again: how many lines the row has already. group: the
        paper's row that it stands below, and `like` its numbers that are compared with ours. whole: what its
        average is over. word: what its status goes on with."""
        spec, view, first, whole = self.spec, self.view, next(iter(own.values())), whole or own
        those, of_row = self.paper[:0], [*(spec.columns if self.model in spec.models else self.columns)]
        if like is not None:
            those = like[like.ran & (like.variant == first.variant) & (like.word != "quoted")]
            of_row = like.task.tolist() if (like.like != like.row).any() else of_row
        wanted = [column for column in self.columns if spec.models and column in (spec.wanted or of_row)]
        words = dict(zip(those.column, those.word, strict=True))
        line = dict[str, Entry](dict.fromkeys(wanted, "missing"))
        line |= {
            column: spec.entry(cell, spec.middle, spec.digits(column), words.get(column, ""))
            for column, cell in own.items()
        }
        if average := self._average(whole):
            line["avg"] = average
        apart = f", {first.variant}" if first.variant and "judge" not in spec.more else ""
        status = "; ".join(filter(None, [self._status(own, those, wanted), word]))
        line |= {"source": view.whose + apart, "status": status}
        if not again:
            named = "" if like is not None else spec.names.get(first.row, "")
            line |= {spec.head[0]: named if spec.ablation else first.label, "params": count(first)}
        runs = self.runs[self.runs.id.isin({run for cell in own.values() for run in cell.ids})]
        self._line(line | {name: of(own, runs) for name, of in spec.more.items()}, None if again else runs)
        gaps = dict[str, Entry]()
        for of in (of for of in those.itertuples() if of.complete and of.n):
            half = of.half if of.n >= SEEDS else math.nan  # enough for a verdict
            gaps[of.column] = Number(
                of.difference, half, decimals=spec.digits(of.column), sign=True, verdict=of.word, ids=of.ids
            )
        if gaps and those.same_size.all():
            whole_row = group is not None and len(those) == len(group)
            if average and group is not None and (whole_row or (those.like != those.row).all()):
                papers = self.averages[group.method.iloc[0], group["size"].iloc[0]]
                gap = beside.mean_of(group[group.ran]) or {"difference": average.value - papers}
                half, word = gap.get("half", math.nan), gap.get("word", "")
                gaps["avg"] = replace(average, value=gap["difference"], spread=half, sign=True, verdict=word)
            self._line({"source": "difference", **gaps})

    def _status(self, own: Own, those: pd.DataFrame, wanted: Sequence[str]) -> str:
        """The words for a row of ours."""
        spec, view, first = self.spec, self.view, next(iter(own.values()))
        usual = beside.status(those, mean=spec.by_task) if view.select == "paper" or not spec.by_task else ""
        usual = usual or ("other model" if spec.by_task and self.model not in spec.models else view.whose)
        if not all(column in own and own[column].complete for column in wanted):
            usual = f"{view.whose}, {spec.incomplete.format(first)}"
        if not those.same_size.all():
            usual = f"{view.whose}, another size: not compared"
        if diverged := sum({cell.task: int(cell.diverged) for cell in own.values()}.values()):
            usual += f", {diverged} diverged"
        return spec.status(view, first, usual)

    def _average(self, own: Own) -> Number | None:
        """Table 2's mean over tasks of the medians over seeds; None unless every task is there with all its
        seeds."""
        if not self.averaged or set(own) != set(GLUE) or not all(cell.complete for cell in own.values()):
            return None
        ids = tuple(run for cell in own.values() for run in cell.ids)
        return Number(statistics.fmean(cell.median for cell in own.values()), ids=ids)
