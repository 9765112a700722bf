"""Tables 2, 3, 5, 6 and 7: the paper's rows, ours below them, the difference; and other models' rows."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis import beside
from analysis.frame import by_row, in_cells
from analysis.notes import CROSSFIT, notes
from analysis.paper import FROM_MNLI, GLUE, SCORES
from analysis.render import NONE, Cell, Entry, Table, number, of_runs
from analysis.tables.e2e import scored
from analysis.tables.specs import SPECS, Spec, cells_of, columns_of, settings_of, title_of
from analysis.tables.view import View, gaps, in_order, our_row, printed
from runs.record.text import plural


def paper_table(name: str, view: View) -> list[Table]:
    """A table of SPECS, for each of the paper's models and for each other model that has such runs."""
    return [made for spec in SPECS[name] for made in _of_spec(spec, view)]


def _of_spec(spec: Spec, view: View) -> list[Table]:
    cells = cells_of(spec, view)
    rows = beside.beside(spec.name, cells)
    rows = rows[rows.part == spec.part] if spec.part else rows
    if not spec.others:  # another model has such runs where a setting varies
        cells = cells[cells.row.isin(rows.like)]
        varied = cells[cells.row != "vera"]
        ran = sorted(set(varied.model))
    else:
        ran = sorted(set(cells.model))
    models = [m for m in dict.fromkeys([*spec.models, *ran]) if not view.models or m in view.models]
    return [
        _of_model(spec, view, model, rows[rows.model == model], cells[cells.model == model])
        for model in models
    ]


def _of_model(spec: Spec, view: View, model: str, rows: pd.DataFrame, cells: pd.DataFrame) -> Table:
    columns = columns_of(spec, view, model, cells)
    cells = cells[cells.column.isin(columns)]
    ours = by_row(cells, "column")
    maker = _Rows(spec, view, model, columns, ours)
    lines = [line for group in _printed_rows(rows) for line in maker.of_paper(group)]
    if spec.others:
        for row in in_order(sorted(set(ours) - maker.used), spec.first if model not in spec.models else ()):
            word = "" if model in spec.models or spec.scored else "other model"
            lines += (
                scored(view, columns, ours[row]) if spec.scored else [maker.ours(ours[row], ours[row], word)]
            )
    elif model not in spec.models:
        for group in _printed_rows(
            beside.paper()[lambda of: (of.table == spec.name) & (of.part == spec.part)]
        ):
            if group.row.iloc[0] in ours:
                of = ours[group.row.iloc[0]]
                lines.append(
                    maker.ours(of, of, "other model", [spec.settings[group.method.iloc[0]], view.whose])
                )
    average = ["Avg"] if maker.averaged else []
    header = [*spec.head, *columns.values(), *average, "status"]
    tasks = {"e2e": "E2E"} if spec.scored else columns
    return Table(
        title_of(spec, model) + view.title,
        header,
        lines,
        _notes(spec, view, model, rows, cells, ours),
        model,
        tasks,
        spec.shows,
    )


def _printed_rows(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The paper's rows, each with its numbers."""
    return [group for _, group in rows.groupby(["method", "size"], sort=False)]


class _Rows:
    """Makes the rows of a table of one model."""

    def __init__(
        self, spec: Spec, view: View, model: str, columns: dict[str, str], ours: dict[str, dict[str, Cell]]
    ) -> None:
        self.spec, self.view, self.model, self.columns, self.all = spec, view, model, columns, ours
        self.averaged = spec.name == "table2" and len(columns) == len(GLUE)
        self.used = set[str]()  # our rows that stand below one of the paper

    def of_paper(self, group: pd.DataFrame) -> list[list[Entry]]:
        """The paper's row, ours, and the difference; ours twice where the paper's started from MNLI on some
        tasks."""
        spec, first = self.spec, group.iloc[0]
        group = group[group.column.isin(self.columns)]
        started = set(group[group.like != group.row].task)
        from_mnli = spec.name == "table2" and (self.model, first.row) in FROM_MNLI
        source = "paper, * from MNLI" if from_mnli else "paper"
        size = [first["size"]] if "params" in spec.head else []
        head = [spec.settings.get(first.method, first.method), source, *size]
        numbers: dict[str, Entry] = dict.fromkeys(self.columns, NONE)
        numbers |= {
            of.column: printed(of, self._decimals(of.column), "*" * (of.task in started))
            for of in group[["column", "task", "value", "spread"]].itertuples()
        }
        average = self._paper_average(first) if self.averaged else []
        lines: list[list[Entry]] = [[*head, *numbers.values(), *average, "quoted"]]
        plain = group[group.like == group.row]
        for like in dict.fromkeys([first.row, *group.like]):
            own = self.all.get(like, {})
            self.used.add(like)
            if like != first.row:
                own = {task: cell for task, cell in own.items() if task in started}
            if not own:
                continue
            those = group[(group.like == like) & group.ran]
            if spec.scored:
                lines += scored(self.view, self.columns, own, those)
                continue
            both = those if like == first.row else pd.concat([plain[plain.ran], those])
            averaged = (
                own
                if like == first.row
                else {of.task: self.all[of.like][of.task] for of in both.itertuples()}
            )
            wanted = started if like != first.row else None
            lines += self._compared(own, averaged, those, both, bool(started) and like == first.row, wanted)
        return lines

    def _compared(
        self, own: Any, averaged: Any, those: Any, both: Any, no_mean: bool, wanted: Any
    ) -> list[list[Entry]]:
        judged = beside.status(those) if self.view.select == "paper" else ""
        other_size = bool((~those.same_size).any())
        head = ["", self.view.whose] if not self.spec.others else None
        words = dict(zip(those.column, those.word, strict=True))
        row = self.ours(own, averaged, judged, head, wanted, other_size, words)
        if other_size:
            return [row]
        blank = [""] * (len(self.spec.head) - 2)
        average = [] if not self.averaged else [self._gap_average(averaged, both, no_mean)]
        return [row, ["", "difference", *blank, *gaps(those, self.columns), *average, ""]]

    def ours(
        self,
        own: dict[str, Cell],
        averaged: dict[str, Cell],
        status: str = "",
        head: Sequence[Entry] | None = None,
        wanted: Any = None,
        other_size: bool = False,
        words: dict[str, str] | None = None,
    ) -> list[Entry]:
        """A row of ours. averaged: what its average is over. words: the verdicts of its cells."""
        entries = {
            c: number(cell, self.spec.middle, verdict=(words or {}).get(c, "")) for c, cell in own.items()
        }
        papers = [
            task for task in self.columns if task in self.spec.columns or self.model not in self.spec.models
        ]
        average = self._average(averaged)
        ids = [run for cell in averaged.values() for run in cell.ids]
        how = {"head": head, "entries": entries, "other_size": other_size}
        how["average"] = [of_runs(average, ids)] if self.averaged else []
        return our_row(self.view, own, self.columns, papers if wanted is None else wanted, status, **how)

    def _decimals(self, column: str) -> int:
        return SCORES[column][1] if self.spec.scored else 1

    # --- table 2's average

    def _average(self, ours: dict[str, Cell]) -> float | None:
        """The mean over tasks of the medians over seeds; None unless every task is there with all its
        seeds."""
        if set(ours) != set(GLUE) or not all(cell.complete for cell in ours.values()):
            return None
        return statistics.fmean(cell.median for cell in ours.values())

    def _paper_average(self, first: Any) -> list[Entry]:
        of = beside.paper()
        (one,) = of[
            (of.table == "table2")
            & (of.model == first.model)
            & (of.method == first.method)
            & (of["size"] == first["size"])
            & (of.column == "avg")
        ].itertuples()
        return [printed(one)]

    def _gap_average(self, averaged: dict[str, Cell], both: pd.DataFrame, no_mean: bool) -> Entry:
        average, whole = self._average(averaged), beside.mean_of(both)
        if average is None or no_mean:
            return NONE
        ids = [run for cell in averaged.values() for run in cell.ids]
        if whole:
            return of_runs(whole["difference"], ids, spread=whole["half"], sign=True, verdict=whole["word"])
        return of_runs(average - self._paper_average(both.iloc[0])[0].value, ids, sign=True)  # type: ignore[union-attr]


# --- notes


def _notes(
    spec: Spec,
    view: View,
    model: str,
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    ours: dict[str, dict[str, Cell]],
) -> list[str]:
    """What changes how a table is read; docs/tables.md has the rest."""
    runs = view.runs[
        (view.runs.model == model)
        & view.runs.task.isin({*cells.task, *(["e2e"] if spec.scored else spec.columns)})
    ]
    alone = cells.drop_duplicates(["model", "row", "task"])
    epochs = " or ".join(sorted(set(alone.reported))) or "reported"
    how = f"{spec.middle.capitalize()}s over seeds of the {epochs} epoch, +- sample standard deviation."
    if view.select == "crossfit":
        last = spec.scored or set(alone.reported) == {"last"}
        how = (
            "select= changes nothing here: the last epoch is reported."
            if last
            else f"{spec.middle.capitalize()}s over seeds. {CROSSFIT}"
        )
    extra = beside.chosen_here(model) if spec.others else []
    if spec.name == "table5":
        for task, shots in alone.groupby("task").shots.agg(lambda of: set(of) - {10}).items():
            counts = " or ".join("all" if n != n or n is None else f"{n:g}" for n in sorted(shots, key=str))
            extra += [f"{task}: {counts} images a class"] if shots else []
    if not spec.others:
        extra += _over_the_same_seeds(spec, ours, runs, cells)
    unavailable = {
        why
        for of in in_cells(runs, alone).texts
        for entry in of or []
        for why in (entry.get("unavailable") or {}).values()
    }
    return [*notes(runs, alone, [*extra, *sorted(unavailable)], how)]


def _over_the_same_seeds(
    spec: Spec, ours: dict[str, dict[str, Cell]], runs: pd.DataFrame, cells: pd.DataFrame
) -> list[str]:
    """For each task whose rows have unlike seeds, and so do not compare, the means over the seeds that all
    have, measured on the same."""
    found = []
    for task in dict.fromkeys(cells.task):
        of = {name: ours[row][task] for row, name in settings_of(spec).items() if task in ours.get(row, {})}
        kept = {name: runs[runs.id.isin(cell.ids)] for name, cell in of.items()}
        keys = [set(zip(part.seed, part.measured, strict=True)) for part in kept.values()]
        shared = set.intersection(*keys) if keys else set()
        if shared and any(len(key) > len(shared) for key in keys):
            alike = {
                name: part[[key in shared for key in zip(part.seed, part.measured, strict=True)]]
                for name, part in kept.items()
            }
            means = ", ".join(f"{name} {part.value.mean():.1f}" for name, part in alike.items())
            count = plural(len(shared), "seed")
            found.append(f"{GLUE[task]}: rows have unlike seeds; over the {count} that all have: {means}")
    return found
