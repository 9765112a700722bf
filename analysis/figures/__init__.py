"""Figures from the records, beside what the paper prints of them.

A figure of another kind: a file with a function from a `Part` to figures, and its name
in FIGURES."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.command import own_and_published
from analysis.figures import pareto
from analysis.figures.figure import Figure, Part, save, svg
from analysis.figures.fits import figure6
from analysis.figures.gains import figure4
from analysis.figures.layers import figure3, figure5
from analysis.figures.ranks import figure2
from analysis.frame import every_variant
from runs.record import Ledger

FIGURES: dict[str, Callable[[Part], Iterable[Figure]]] = {
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "parameters": pareto.parameters,
    "demo": pareto.demo,
}
#: The names of all: "pareto", whose axes and rows a user chooses, is in no report.
NAMES = (*FIGURES, "pareto")


def make(
    name: str,
    ledger: Ledger,
    every: bool = False,
    frames: Sequence[pd.DataFrame] = (),
    **how: Any,
) -> list[Figure]:
    """A figure's parts by its name: first of what ran on this machine, then of what the
    project has published.

    every: each variant of a row. frames: the runs of this machine, and the published
    ones, where they are at hand. how: of `parameters`, `demo` and `pareto`: named, axes
    and labels, as in Part."""
    found = dict[str, Figure]()
    for table, whose in zip(
        frames or own_and_published(ledger), ("ours", "published"), strict=True
    ):
        ours = {i for i in ledger.measures if ledger.measured.get(i, "ours") == "ours"}
        measures = [
            of for i, of in ledger.measures.items() if (i in ours) == (whose == "ours")
        ]
        # The points of figure 2 are known rows: a variant has no place among them
        shown = every_variant(table, paper=name == "figure2") if every else table
        drawn = (FIGURES | {"pareto": pareto.make})[name](
            Part(shown, measures, whose, **how)
        )
        for figure in (of for of in drawn if len(of.data)):
            if whose == "published":
                file = figure.name + "_published" * (figure.name in found)
                figure = replace(figure, name=file, title=f"{figure.title} (published)")
            found[figure.name] = figure
    return [*found.values()]
