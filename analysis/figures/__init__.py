"""Figures from the records, beside what the paper prints of them.

A figure of another kind: a file with a function from a `Part` to figures, and its name
in FIGURES."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.command import own_and_published
from analysis.figures import pareto
from analysis.figures.figure import Figure, Part, save_figure, svg
from analysis.figures.fits import figure6
from analysis.figures.gains import figure4
from analysis.figures.layers import figure3, figure5
from analysis.figures.ranks import figure2
from analysis.variants import every_variant
from runs.record.ledger import Ledger
from runs.record.schema import Measure

#: The figures that reports and study pages draw, by name.
FIGURES: dict[str, Callable[[Part], Iterable[Figure]]] = {
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "parameters": pareto.parameter_figures,
    "demo": pareto.demo_figures,
}
#: The names of all figures. "pareto" is not in FIGURES, which reports draw, because a
#: user chooses its axes and rows.
NAMES = (*FIGURES, "pareto")


def figures_of_ledger(
    name: str,
    ledger: Ledger,
    all_variants: bool = False,
    frames: Sequence[pd.DataFrame] = (),
    **options: Any,
) -> list[Figure]:
    """The figures of a kind, such as one for each model and task: first those of what ran
    on this machine, then those of what the project has published.

    Args:
        name: of the kind, one of NAMES.
        ledger: records and measures.
        all_variants: whether each variant of a row is drawn as a row of its own.
        frames: the runs of this machine and the published ones
            (`command.own_and_published`), if they are read already.
        options: further fields of Part.
    """
    draw = (FIGURES | {"pareto": pareto.pareto_figures})[name]
    drawn = dict[str, Figure]()
    runs_by_source = frames or own_and_published(ledger)
    for runs, source in zip(runs_by_source, ("ours", "published"), strict=True):
        if all_variants:
            # Figure 2 finds its rows by their names. Of a row's variants, the one that is
            # nearest to the recipe keeps the name.
            runs = every_variant(runs, keep_nearest_name=name == "figure2")
        measures = _measures_of(ledger, source)
        for figure in draw(Part(runs, measures, source, **options)):
            if figure.data.empty:
                continue
            if source == "published":
                figure = _as_published(figure, is_second=figure.name in drawn)
            drawn[figure.name] = figure
    return [*drawn.values()]


def _measures_of(ledger: Ledger, source: str) -> list[Measure]:
    """The measures of this machine ("ours") or those that are published ("published")."""
    wants_own = source == "ours"
    selected = list[Measure]()
    for name, measure in ledger.measures.items():
        is_own = ledger.measure_origin.get(name, "ours") == "ours"
        if is_own == wants_own:
            selected.append(measure)
    return selected


def _as_published(figure: Figure, is_second: bool) -> Figure:
    """A figure of published runs with a title that says so. is_second: whether own runs
    have a figure of this name, so that this one's files need another name."""
    name = f"{figure.name}_published" if is_second else figure.name
    return replace(figure, name=name, title=f"{figure.title} (published)")
