"""How a table of cells is made, for each model: the paper's rows, what others report of
them, ours below them with the difference, and rows that the paper has not. What a table
is says specs.yaml."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import beside
from analysis.facts import FACTS
from analysis.frame import SEEDS, in_cells, pairs, reported
from analysis.inference import welch_half
from analysis.notes import notes
from analysis.others import METHODS, others_of, verdict
from analysis.others import line as others_line
from analysis.paper import DECIMALS, GLUE, IMAGES, numbers
from analysis.render import NONE, Cell, Entry, Number, Table, count, diverged, of_runs
from analysis.tables.specs import Spec, View
from runs.errors import UserError

#: A row's cells by column.
Own = Mapping[str, Cell]


def of_paper(spec: Spec, part: View) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of a table, and the paper's numbers with them (`beside.beside`)."""
    made = spec.cells(part)
    if spec.name not in {*numbers().table}:  # it has none
        return made, numbers()[:0].assign(
            ran=False, same_size=True, word="", variant=""
        )
    return made, beside.beside(spec.name, spec.compares(made), spec.part)


def build(spec: Spec, view: View) -> list[Table]:
    """A table for each of the paper's models, and for each other model that has such
    runs."""
    tables = list[Table]()
    parts = spec.parts(view)
    for part in parts:
        every = view.runs if len(parts) == 1 else part.runs
        made, printed = of_paper(spec, part)
        ran = made[made.row != "vera"] if spec.ablation else made
        if view.models:
            ran = ran[ran.model.isin(view.models) | ran.conf_model.isin(view.models)]
        of_paper_shown = [one for one in spec.models if one in (view.models or [one])]
        for model in dict.fromkeys([*of_paper_shown, *sorted({*ran.model})]):
            of = (
                frame[frame.model == model]
                for frame in (every, part.runs, made, printed)
            )
            tables.append(_Model(spec, part, model, *of).table())
    return [table for table in tables if table.rows]


class _Model:
    """A table of one model. runs: those that belong to it. made: its cells. paper: the
    paper's numbers with them. ours: the cells of each row of ours, one mapping for each
    of its lines. lines: those made so far, entries by the keys of columns. every: all
    runs of the model."""

    def __init__(
        self, spec: Spec, view: View, model: str, every: pd.DataFrame, *of: pd.DataFrame
    ) -> None:
        self.spec, self.view, self.model, (self.runs, made, self.paper) = (
            spec,
            view,
            model,
            of,
        )
        self.papers, self.columns = model in spec.models, dict[str, str](spec.columns)
        if not spec.tasks:  # columns are tasks: the paper's, and those that have run
            known = (
                made[made.row != "vera"][: 0 if self.papers else None]
                if spec.ablation
                else made
            )
            ran = dict(zip(known.column, known.column_label, strict=True))
            names = ({**spec.columns} if self.papers else {}) | (
                GLUE | IMAGES if spec.models else {}
            )
            # in this order, too, where they are no tasks of the paper
            names |= spec.columns
            wanted = {
                of for of in spec.columns if self.papers and of in (view.tasks or [of])
            } | {*ran}
            order = [*(of for of in names if of in wanted), *sorted(wanted - {*names})]
            self.columns = {of: names.get(of) or ran[of] for of in order}
            made = made[made.column.isin(self.columns)]
        self.made, self.averaged = (
            made,
            spec.name == "table2" and len(self.columns) == len(GLUE),
        )
        averages = numbers().query(
            "model == @model and table == @spec.name and column == 'avg'"
        )
        self.averages = averages.set_index(["method", "size"]).value
        self.ours, self.lines = (
            dict[str, dict[Any, dict[str, Cell]]](),
            list[dict[str, Entry]](),
        )
        for cell in made.itertuples():
            line = cell.task * bool(spec.tasks), cell.variant
            self.ours.setdefault(cell.row, {}).setdefault(line, {})[cell.column] = cell
        shown = [*self.columns, "avg"] if spec.others and view.others != "false" else []
        self.theirs = others_of(model, shown, spec.compares(made))
        self.every = reported(every) if view.against else every
        self.costs = spec.costs | {of: {"name": of} for of in view.columns}
        measured = in_cells(self.runs, made[: None if spec.forgets else 0]).dropna(
            subset="forgetting"
        )
        self.forgetting = measured[
            measured.forgetting_text.isin(measured.forgetting_text.mode()[:1])
        ]
        self.notes = of_forgetting(measured, self.forgetting) if len(measured) else []

    def table(self) -> Table:
        """The table, with its notes."""
        spec, view, model = self.spec, self.view, self.model
        empty = dict.fromkeys([*self.columns, *["avg"] * self.averaged], NONE)
        for _, group in self.paper.groupby(["method", "size"], sort=False):
            self._of_paper(group)
        # where the paper has no row
        theirs = dict.fromkeys(self.theirs.row if self.paper.empty else ())
        rest = [
            row
            for row in {**self.ours, **theirs}
            if row not in {*self.paper.row, *self.paper.like}
        ]
        if spec.first is not None:
            rest.sort(key=lambda row: (*(row != first for first in spec.first), row))
        for row in rest:
            label = {spec.head[0]: METHODS.get(row, row)}
            self.lines += [line | label for line in self._others(row) if row in theirs]
            self._ours(row, self.paper[:0])
        cells = self.made.drop_duplicates(["row", "task"])
        named = spec.models.get(model, model), next(cells.itertuples(), None)
        title = (spec.title if self.papers else spec.other).format(*named)
        whose = "" if view.whose == "ours" else f" ({view.whose})"
        extra = spec.deviates(self.runs, cells) if spec.models else ()
        reference = "paper" if spec.models else "recipe"
        found = [
            *notes(self.runs, cells, extra, spec.reads(view, cells), reference),
            *self.notes,
        ]
        more = [
            *spec.more,
            *spec.costs,
            *["forgetting"] * len(self.notes[:1]),
            *view.columns,
        ]
        if any(
            isinstance(line.get(f"+against {view.against}"), Number)
            for line in self.lines
        ):
            note = "the mean difference over pairs of one seed, +- half of its 95% interval."
            more.append(f"against {view.against}")
            found.append(f"{more[-1]}: {note}")
        header = (
            {of: of for of in spec.head}
            | self.columns
            | ({"avg": "Avg"} if self.averaged else {})
        )
        header |= {f"+{of}": of for of in more} | {of: of for of in spec.tail}
        task_of = dict[str, str](zip(self.made.column, self.made.task, strict=True))
        tasks: dict[str, str] = {
            label: task_of.get(key) or key for key, label in self.columns.items()
        }
        if spec.tasks:
            labels = [
                *spec.tasks.items(),
                *zip(cells.task, cells.task_label, strict=True),
            ]
            tasks = {label: task for task, label in dict(labels).items()}
        return Table(
            f"{title}{whose}",
            [*header.values()],
            [[(empty | line).get(of, "") for of in header] for line in self.lines],
            found,
            model,
            tasks,
        )

    # --- the paper's rows, and ours

    def _of_paper(self, group: pd.DataFrame) -> None:
        """The paper's row, what others report, ours, and the difference; ours twice
        where the paper's started from MNLI on some tasks."""
        spec, first, mnli = self.spec, group.iloc[0], (group.like != group.row).any()
        group = group[group.column.isin(self.columns)]
        line = dict[str, Entry](dict.fromkeys(self.columns if spec.tasks else (), ""))
        for of in group.itertuples():
            mark, decimals = "*" * (of.like != of.row), DECIMALS.get(of.column, 1)
            line[of.column] = Number(of.value, of.spread, decimals=decimals, mark=mark)
        if self.averaged:
            line["avg"] = Number(self.averages[first.method, first["size"]])
        line |= {
            spec.head[0]: spec.names.get(first.row, first.method),
            "params": first["size"],
        }
        line |= {
            "source": "paper, * from MNLI" if mnli else "paper",
            "status": "quoted",
        }
        theirs = self.theirs[self.theirs.row == first.row]
        word = verdict(theirs[theirs.same])
        self.lines += [line | {f"+{name}": of for name, of in spec.quoted.items()}]
        self.lines += self._others(first.row)
        rows = [
            row for row in dict.fromkeys([first.row, *group.like]) if row in self.ours
        ]
        for row in rows:
            self._ours(row, group, word if row == rows[0] else "")

    def _others(self, row: str) -> list[dict[str, Entry]]:
        """The lines of what others report of a row."""
        each, theirs = self.view.others == "all", self.theirs[self.theirs.row == row]
        reports = theirs.groupby(["label", "sites"] if each else "row", sort=False)
        return [others_line(of, each) for _, of in reports]

    def _ours(self, row: str, group: pd.DataFrame, word: str = "") -> None:
        """The lines of a row of ours, each with its difference to the paper's. group:
        the paper's row that it stands below, whose numbers like it are compared. word:
        what its status goes on with."""
        spec, view, alike = self.spec, self.view, group[group.like == row]
        mnli = bool((alike.like != alike.row).any())
        of_row = (
            alike.task.tolist()
            if mnli
            else [*(spec.columns if self.papers else self.columns)]
        )
        wanted = [
            column
            for column in self.columns
            if spec.models and column in (spec.wanted or of_row)
        ]
        for again, own in enumerate(self.ours.get(row, {}).values()):
            first, whole = next(iter(own.values())), own
            if mnli:  # the average goes on with plain LoRA's other tasks
                own = {task: cell for task, cell in own.items() if task in of_row}
                whole = {
                    **next(iter(self.ours.get(group.row.iloc[0], {"": {}}).values())),
                    **own,
                }
            if not own:
                continue
            those = alike[
                alike.ran & (alike.variant == first.variant) & (alike.word != "quoted")
            ]
            words = dict(zip(those.column, those.word, strict=True))
            line = dict[str, Entry](dict.fromkeys(wanted, "missing"))
            line |= {
                column: spec.entry(cell, column, words.get(column, ""))
                for column, cell in own.items()
            }
            if average := self._average(whole):
                line["avg"] = average
            apart = f", {first.variant}" if first.variant and not spec.quoted else ""
            status = "; ".join(
                filter(None, [self._status(own, those, wanted), "" if again else word])
            )
            line |= {"source": view.whose + apart, "status": "" if apart else status}
            if not again:
                named = "" if len(group) else spec.names.get(first.row, "")
                line |= {
                    spec.head[0]: named if spec.ablation else first.label,
                    "params": count(first),
                }
            runs = self.runs[
                self.runs.id.isin({run for cell in own.values() for run in cell.ids})
            ]
            line |= {
                f"+{name}": of for name, of in self._more(first, runs, again).items()
            }
            self.lines += [line, *self._difference(group, those, average, mnli)]

    def _more(self, first: Cell, runs: pd.DataFrame, again: int) -> dict[str, Entry]:
        """The columns beside the numbers, of a row's first cell and all of its runs.
        again: of its further lines those of a cell alone."""
        found = {
            name: of_cell(first, runs.id, **how) for name, how in self.spec.more.items()
        }
        if again:
            return found
        found |= {name: median(runs, **how) for name, how in self.costs.items()}
        if self.view.against:
            found[f"against {self.view.against}"] = against(
                self.view.against, self.every, runs
            )
        return found | (
            {"forgetting": forgetting(self.forgetting, runs)} if self.notes else {}
        )

    def _difference(
        self,
        group: pd.DataFrame,
        those: pd.DataFrame,
        average: Number | None,
        mnli: bool,
    ) -> list[dict[str, Entry]]:
        """The line of what ours has more than the paper's, if any. those: its numbers
        that are compared."""
        gaps = dict[str, Entry]()
        for of in (of for of in those.itertuples() if of.complete and of.n):
            half = of.half if of.n >= SEEDS else math.nan  # enough for a verdict
            how: Any = {"decimals": DECIMALS.get(of.column, 1), "sign": True}
            gaps[of.column] = Number(
                of.difference, half, verdict=of.word, ids=of.ids, **how
            )
        if not gaps or not those.same_size.all():
            return []
        gap = beside.mean_of(group[group.ran])
        if average and gap and (mnli or len(those) == len(group)):
            how = {"spread": gap["half"], "verdict": gap["word"], "sign": True}
            gaps["avg"] = replace(average, value=gap["difference"], **how)
        return [{"source": "difference", **gaps}]

    def _status(self, own: Own, those: pd.DataFrame, wanted: list[str]) -> str:
        """The words for a row of ours."""
        spec, view, first = self.spec, self.view, next(iter(own.values()))
        if state := getattr(first, "state", ""):
            return str(state)
        usual = (
            beside.status(those, mean=not spec.tasks)
            if view.select == "paper" or spec.tasks
            else ""
        )
        usual = usual or (view.whose if spec.tasks or self.papers else "other model")
        if not all(column in own and own[column].complete for column in wanted):
            usual = f"{view.whose}, {spec.incomplete.format(first)}"
        if not those.same_size.all():
            usual = f"{view.whose}, another size: not compared"
        diverged = sum(
            {cell.task: int(cell.diverged) for cell in own.values()}.values()
        )
        return usual + f", {diverged} diverged" * bool(diverged and not first.variant)

    def _average(self, own: Own) -> Number | None:
        """Table 2's mean over tasks of the medians over seeds; None unless every task
        is there with all its seeds."""
        if (
            not self.averaged
            or set(own) != set(GLUE)
            or not all(cell.complete for cell in own.values())
        ):
            return None
        ids = tuple(run for cell in own.values() for run in cell.ids)
        return Number(statistics.fmean(cell.median for cell in own.values()), ids=ids)


# --- columns beside the numbers


def of_cell(
    cell: Cell, ids: Iterable[str], of: str, seeds: bool = False, **how: Any
) -> Entry:
    """A column of `frame.cells`. seeds: nan where a seed has none."""
    value = getattr(cell, of)
    if isinstance(value, str) or value is None:
        return str(value)
    mark = diverged(cell) * (of == "median")
    known = Number(value, n=cell.n, wanted=cell.wanted, mark=mark, ids=cell.ids)
    return known if seeds else of_runs(value, ids, **how)


def median(runs: pd.DataFrame, name: str, form: str = "") -> Entry:
    """The median of a number of these runs that did not diverge, unless all did."""
    form = form or FACTS[name].form
    try:
        value = pd.to_numeric(runs[name])[
            ~runs.diverged.astype(bool) | runs.diverged.all()
        ].median()
    except (ValueError, TypeError):
        raise UserError(f"columns={name}: {name} is no number of a run") from None
    return of_runs(
        math.nan if form == "bytes" and value == 0 else value, runs.id, form=form
    )


def against(other: str, shown: pd.DataFrame, runs: pd.DataFrame) -> Entry:
    """The mean difference of a row's runs to another row, over the seeds that both
    have, measured on the same, with half of its 95% interval: by Student's t on pairs
    and, of several tasks, of the mean over tasks (Welch); without it where a task has
    one pair. Positive: the row is better. shown: all runs of the model
    (`frame.reported`)."""
    both = pairs(shown, runs.row.iloc[0], other)
    both = both[both.id.isin(runs.id) & (both.row != other)]
    tasks = both.groupby("task").difference.agg(["mean", "var", "size"])
    half = welch_half(
        tasks["var"] / tasks["size"] / max(len(tasks), 1) ** 2, tasks["size"] - 1
    )
    spread = float(half) if (tasks["size"] > 1).all() else math.nan
    points: Any = {"decimals": int(both.digits.min()) if len(both) else 1, "sign": True}
    return of_runs(
        tasks["mean"].mean(), (*both.id, *both.id_other), spread=spread, **points
    )


def forgetting(alike: pd.DataFrame, runs: pd.DataFrame) -> Entry:
    """What these runs have forgotten. alike: those of a table that measured it on the
    text of most."""
    known = alike[alike.id.isin(runs.id)].forgetting
    middle, spread, n = float(known.median()), float(known.std()), len(known)
    return (
        Number(middle, spread, n, len(runs), 3, sign=True, ids=tuple(runs.id))
        if n
        else NONE
    )


def of_forgetting(shown: pd.DataFrame, alike: pd.DataFrame) -> list[str]:
    """What notes say of it. shown: the runs that measured it; alike: on the text of
    most."""
    before, about = alike.forgetting_before.astype(float), alike.iloc[0]
    between = " to ".join(
        dict.fromkeys(f"{value:.3f}" for value in (before.min(), before.max()))
    )
    notes = [
        f"forgetting: cross-entropy on a text that is not trained on ({about.forgetting_name},"
        f" {about.forgetting_tokens:.0f} tokens), after the last epoch less that of the base model"
        f" ({between}); nats a token, less is better."
    ]
    others = dict.fromkeys(shown[~shown.row.isin(alike.row)].label)
    return notes + [
        f"forgetting on another text, not shown: {', '.join(others)}."
    ] * bool(others)
