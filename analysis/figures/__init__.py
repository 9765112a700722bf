"""Figures from the records, beside what the paper prints of them.

A figure of another kind: a file with a function from a `Part` to a list of `Figure`, and its name in FIGURES.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.command import split
from analysis.figures import pareto
from analysis.figures.figure import Figure, Part, save, svg
from analysis.figures.figure2 import figure2
from analysis.figures.figure4 import figure4
from analysis.figures.figure6 import figure6
from analysis.figures.layers import figure3, figure5
from analysis.frame import runs
from analysis.variants import every_variant
from runs.record import Ledger

FIGURES: dict[str, Callable[[Part], list[Figure]]] = {
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "parameters": pareto.parameters,
    "demo": pareto.demo,
}
#: Figures whose points are known rows: a variant has no place in them.
OF_ROWS = ("figure2",)
#: The names of all: "pareto", whose axes a user chooses, is in no report.
NAMES = (*FIGURES, "pareto")


def make(
    name: str, ledger: Ledger, every: bool = False, frames: Sequence[pd.DataFrame] = (), **how: Any
) -> list[Figure]:
    """A figure's parts by its name: first of what ran on this machine, then of what the project has
    published.

    every: each variant of a row. frames: the runs of this machine, and the published ones, where they are at
    hand. how: of `parameters`, `demo` and `pareto`: tasks, axes and labels, as in
    Part."""
    found, taken = list[Figure](), set[str]()
    parts = split(ledger)
    for ledger_, of, whose in zip(parts, frames or map(runs, parts), ("ours", "published"), strict=True):
        if not (ledger_.records or ledger_.measures or (whose == "published" and not found)):
            continue
        of = every_variant(of, paper=name in OF_ROWS) if every else of
        part = Part(of, [*ledger_.measures.values()], whose, **how)
        for figure in (FIGURES | {"pareto": pareto.make})[name](part):
            if figure.ids and whose == "published":
                ending = "_published" if figure.name in taken else ""
                foot, title = (
                    [*figure.foot, "published by the project, not run here"],
                    f"{figure.title} (published)",
                )
                figure = replace(figure, name=figure.name + ending, title=title, foot=foot)
            found.append(figure)
        taken |= {figure.name for figure in found if figure.ids}
    # A figure that nothing has run for is there once, with what it quotes.
    drawn = {figure.name.removesuffix("_published") for figure in found if figure.ids}
    empty = {figure.name: figure for figure in reversed(found) if figure.name not in drawn}
    return [figure for figure in found if figure.ids or empty.get(figure.name) is figure]
