"""Figures from the records, beside what the paper prints of them: a file for each, and here their names.

A figure of another kind: a file with a function from a `Part` to a list of `Figure`, and its name in FIGURES.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from analysis.command import split
from analysis.figures import figure2, figure3, figure4, figure5, figure6, parameters, pareto
from analysis.figures.figure import Figure, Part, save, svg
from analysis.frame import runs
from analysis.variants import every_variant
from runs.record import Ledger

FIGURES: dict[str, Callable[[Part], list[Figure]]] = {
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
    labels: Collection[str] = (),
) -> list[Figure]:
    """A figure's parts by its name: first of what ran on this machine, then of what the project has
    published, each with a note of how much.

    tasks: of `parameters` and `pareto` these alone, whatever they are. every: each variant of a row. axes: of
    `pareto`, x and y. labels: of both the rows that have a label, beside the frontier's."""
    own, published = [], []
    for of, whose, figures in zip(split(ledger), ("ours", "published"), (own, published), strict=True):
        if of.records or of.measures or whose == "published":
            every_run = runs(of)
            shown = every_variant(every_run, paper=name in OF_ROWS) if every else every_run
            part = Part(shown, [*of.measures.values()], whose, tuple(tasks), axes, tuple(labels))
            make_part = pareto.make if name == "pareto" else FIGURES[name]
            figures += [
                replace(figure, notes=figure.notes + _notes(figure, part)) for figure in make_part(part)
            ]
    taken = {figure.name for figure in own if figure.ids}
    found = [*own, *(_as_published(figure, taken) if figure.ids else figure for figure in published)]
    drawn = {figure.name.removesuffix("_published") for figure in found if figure.ids}
    # A figure that nothing has run for is there once, with what it quotes.
    empty = {figure.name: figure for figure in reversed(found) if figure.name not in drawn}
    return [figure for figure in found if figure.ids or empty.get(figure.name) is figure]


def _as_published(figure: Figure, taken: Collection[str]) -> Figure:
    """A figure of published runs, marked as such. taken: names that it must not have."""
    name = f"{figure.name}_published" if figure.name in taken else figure.name
    beside = [*figure.beside, "published by the project, not run here"]
    return replace(figure, name=name, title=f"{figure.title} (published)", beside=beside)


def _notes(figure: Figure, part: Part) -> list[str]:
    """Notes on the runs of a figure's models and tasks: that there are variants, which train.max_steps has stopped,
    and how many are published."""
    of, lines = part.runs, []
    shown = of[of.id.isin(figure.ids)]
    near = of.merge(shown[["model", "task"]].drop_duplicates())
    if part.whose == "ours" and (near.left_out.isin(["settings", "protocol"])).any():
        lines.append("all=true shows every variant, with what sets it apart.")
    if len(stopped := near[near.kind == "stopped"]):
        lines.append(f"stopped early by train.max_steps, in no figure: {', '.join(stopped.id)}.")
    if part.whose == "published" and len(shown):
        studies = ", ".join(
            f"{count} of {study}" for study, count in shown.origin.value_counts().sort_index().items()
        )
        lines.append(f"Not done here, but published by the project in runs/records: {studies}.")
    return lines
