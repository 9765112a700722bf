"""Figures from the records, beside what the paper prints of them: a file for each, and here their names.

A figure of another kind: a file with a function from a ledger to a list of `Figure`, and its name in FIGURES.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from analysis.figures import figure2, figure3, figure4, figure5, figure6, parameters, pareto
from analysis.figures.figure import Figure, save, svg, svg_and_points
from analysis.own import early_stops, hidden_variants, named_published, published, split, with_variants
from runs.record import Ledger

FIGURES: dict[str, Callable[[Ledger], list[Figure]]] = {
    "figure2": figure2.make,
    "figure3": figure3.make,
    "figure4": figure4.make,
    "figure5": figure5.make,
    "figure6": figure6.make,
    "parameters": parameters.make,
    "demo": parameters.demo,
}
#: Figures whose points are known rows: a variant has no place in them.
OF_ROWS = ("figure2",)
#: The names of all: "pareto", whose axes a user chooses, is in no report.
NAMES = (*FIGURES, "pareto")


def make(
    name: str,
    ledger: Ledger,
    tasks: Collection[str] = (),
    every: bool = False,
    axes: tuple[str, str] = pareto.USUAL,
) -> list[Figure]:
    """A figure's parts by its name: first of what ran on this machine, then of what the project has
    published, each with a note of how much.

    tasks: of `parameters` and `pareto` these alone, whatever they are. every: each variant of a row. axes: of
    `pareto`, x and y."""
    own, others = split(ledger)
    figures = list[Figure]()
    if own.records or own.measures:
        shown = with_variants(own, paper=name in OF_ROWS) if every else own
        figures = _of_part(name, shown, tasks, axes)
        for figure in figures:
            figure.notes += _own_notes(figure, shown, name in OF_ROWS)
    if others.records or others.measures or not figures:
        shown = with_variants(others, paper=name in OF_ROWS) if every else others
        names = {figure.name for figure in figures if _has_runs(figure)}
        figures += [_as_published(figure, names, shown) for figure in _of_part(name, shown, tasks, axes)]
    drawn = {figure.name.removesuffix("_published") for figure in figures if _has_runs(figure)}
    # A figure that nothing has run for is there once, with what it quotes.
    empty = {figure.name: figure for figure in reversed(figures) if figure.name not in drawn}
    return [figure for figure in figures if _has_runs(figure) or empty.get(figure.name) is figure]


def _has_runs(figure: Figure) -> bool:
    return any(row[-1].text for row in figure.rows)


def _of_part(name: str, ledger: Ledger, tasks: Collection[str], axes: tuple[str, str]) -> list[Figure]:
    if name == "pareto":
        return pareto.make(ledger, tasks, axes)
    return parameters.make(ledger, tasks) if name == "parameters" else FIGURES[name](ledger)


def _own_notes(figure: Figure, own: Ledger, of_rows: bool) -> list[str]:
    """Notes on own runs of a figure's models and tasks that it does not show. of_rows: whether it draws no
    variant beside a row."""
    ids = {run for row in figure.rows for run in row[-1].text.split()} & set(own.records)
    keys = {(own.records[i]["cell"]["model"], own.records[i]["cell"]["task"]) for i in ids}
    near = [r for r in own if (r["cell"]["model"], r["cell"]["task"]) in keys]
    return [*([] if of_rows else hidden_variants(near)), *early_stops(near)]


def _as_published(figure: Figure, names: set[str], ledger: Ledger) -> Figure:
    """A figure of published records, marked as such where it has any. names: of other figures, which it must
    not share."""
    notes = published(ledger, (run for row in figure.rows for run in row[-1].text.split()))
    if not _has_runs(figure):
        return replace(figure, notes=figure.notes + notes)
    name = f"{figure.name}_published" if figure.name in names else figure.name

    def draw(canvas: Any) -> None:
        figure.draw(canvas)
        canvas.suptitle("published by the project, not run here", fontsize=7, color="#777777")

    rows, title = named_published(figure.rows), f"{figure.title} (published)"
    return replace(figure, name=name, title=title, rows=rows, notes=figure.notes + notes, draw=draw)
