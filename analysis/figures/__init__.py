"""Figures from the records, beside what the paper prints of them: a file for each, and here their names.

A figure of another kind: a file with a function from a ledger to a list of `Figure`, and its name in FIGURES.
"""

from collections.abc import Callable

from analysis.cells import published
from analysis.figures import figure2, figure3, figure4, figure5, figure6, parameters
from analysis.figures.figure import Figure, save, svg, svg_and_points
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


def make(name: str, ledger: Ledger) -> list[Figure]:
    """A figure's parts by its name, each with what of it is of published records."""
    figures = FIGURES[name](ledger)
    for figure in figures:
        figure.notes += published(ledger, (run for row in figure.rows for run in row[-1].text.split()))
    return figures
