"""Figures from the records, beside what the paper prints of them: a file for each, and here their names.

A figure of another kind: a file with a function from a ledger to a list of `Figure`, and its name in FIGURES.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from analysis.figures import figure2, figure3, figure4, figure5, figure6, parameters
from analysis.figures.figure import Figure, save, svg, svg_and_points
from analysis.own import early_stops, hidden_variants, published, split, with_variants
from runs.record import Ledger

__all__ = ["FIGURES", "Figure", "make", "save", "svg", "svg_and_points"]

FIGURES: dict[str, Callable[[Ledger], list[Figure]]] = {
    "figure2": figure2.make,
    "figure3": figure3.make,
    "figure4": figure4.make,
    "figure5": figure5.make,
    "figure6": figure6.make,
    "parameters": parameters.make,
    "demo": parameters.demo,
}


def make(name: str, ledger: Ledger, tasks: Collection[str] = (), every: bool = False) -> list[Figure]:
    """A figure's parts by its name: first of what ran on this machine, then of what the project has
    published, each with a note of how much.

    tasks: of `parameters` these alone, whatever they are. every: each variant of a row."""
    own, others = split(ledger)
    made = list[Figure]()
    for part, is_own in ((own, True), (others, False)):
        if not part.records and not part.measures and (is_own or made):
            continue
        part = with_variants(part, paper=False) if every else part
        figures = parameters.make(part, tasks) if name == "parameters" else FIGURES[name](part)
        if is_own:
            for figure in figures:
                figure.notes += _own_notes(figure, part)
        else:
            names = {figure.name for figure in made if figure.rows}
            figures = [_as_published(figure, names, part) for figure in figures]
        made += figures
    drawn = {figure.name.removesuffix("_published") for figure in made if figure.rows}
    empty = dict[str, Figure]()  # what nothing has run of is said once
    for figure in made:
        if not figure.rows and figure.name not in drawn:
            empty.setdefault(figure.name, figure)
    return [figure for figure in made if figure.rows or empty.get(figure.name) is figure]


def _own_notes(figure: Figure, own: Ledger) -> list[str]:
    """What of the same models and tasks is not in a figure of own runs."""
    ids = {run for row in figure.rows for run in row[-1].text.split()} & set(own.records)
    keys = {(own.records[i]["cell"]["model"], own.records[i]["cell"]["task"]) for i in ids}
    near = [r for r in own if (r["cell"]["model"], r["cell"]["task"]) in keys]
    return [*hidden_variants(near), *early_stops(near)]


def _as_published(figure: Figure, names: set[str], ledger: Ledger) -> Figure:
    """A figure of published records, marked as such where it has any; with a name that none of these is."""
    notes = published(ledger, (run for row in figure.rows for run in row[-1].text.split()))
    if not figure.rows or not any(row[-1].text for row in figure.rows):
        return replace(figure, notes=figure.notes + notes)
    name = f"{figure.name}_published" if figure.name in names else figure.name

    def draw(canvas: Any) -> None:
        figure.draw(canvas)
        canvas.suptitle("published by the project, not run here", fontsize=7, color="#777777")

    return replace(
        figure, name=name, title=f"{figure.title} (published)", notes=figure.notes + notes, draw=draw
    )
