"""A cell in a figure: its median and the range of its seeds, as text and as a point, and what is missing of
them."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from analysis.cells import Cell
from analysis.figures import figure
from analysis.series import series


def values_of(cell: Cell) -> list[float]:
    """The number of each seed that the cell's table reports; NaN alone where a seed has none."""
    of = series(cell)
    return [math.nan] if of.unknown or not of.values else list(of.values.values())


def median_and_range(cell: Cell) -> list[str]:
    """A cell's median, lowest and highest seed, NaN where a seed has no value, and its count of seeds."""
    values, digits = values_of(cell), series(cell).decimals
    numbers = (statistics.median(values), min(values), max(values))
    return [*(f"{value:.{digits}f}" for value in numbers), cell.count]


def drawable(cells: dict[str, Cell]) -> dict[str, Cell]:
    """The cells whose every seed has a finite value."""
    return {row: cell for row, cell in cells.items() if all(map(math.isfinite, values_of(cell)))}


def seed_notes(cells: dict[str, Cell]) -> list[str]:
    """Notes on missing and diverged seeds, on unlike data, and on what cells() has left out."""
    notes, rows = list[str](), defaultdict[tuple[int, int], list[str]](list)
    for cell in cells.values():
        data = cell.records[0]["data"]
        rows[data["train_rows"], data["dev_rows"]].append(cell.label)
        if not cell.complete:
            notes.append(f"{cell.label}: {cell.seeds - cell.unknown} of {cell.wanted} seeds (hollow).")
        if cell.unknown:
            notes.append(
                f"{cell.label}: {cell.unknown} of {cell.seeds} runs finished without the number (nan): not"
                " drawn."
            )
        if cell.again:
            more = "more than one record of the same settings and seed; not counted twice, left out"
            notes.append(f"{cell.label}: {more}: {', '.join(cell.again)}.")
        if cell.diverged:
            epoch = cell.records[0]["result"]["reported"]
            notes.append(
                f"{cell.label}: {cell.diverged} of {cell.seeds} seeds diverged, and count by the {epoch}"
                " epoch before or, where there is none, by the worst value."
            )
        if cell.left_out:
            notes.append(f"{cell.label}: {cell.left_out} records with other settings are left out.")
        notes += cell.problems
    if len(rows) > 1:
        notes += [
            f"{t:,} training and {d:,} dev rows: {', '.join(of)}." for (t, d), of in sorted(rows.items())
        ]
    return notes


def draw_point(axes: Any, x: float, cell: Cell, row: str, label: str | None = None) -> None:
    """A cell's median and the range of its seeds; hollow where seeds are missing."""
    values, tint = values_of(cell), figure.colour(row, cell.kind)
    axes.plot([x, x], [min(values), max(values)], color=tint, alpha=0.6)
    face = tint if cell.complete else "white"
    marker = figure.marker(row, cell.kind)
    axes.plot(x, statistics.median(values), marker, color=tint, markerfacecolor=face, label=label, zorder=3)


def parameters_label(cells: Iterable[Cell]) -> str:
    """What an axis of trained parameters is called, with the count of the head where these cells share it."""
    heads = {cell.head_parameters for cell in cells}
    if heads == {0}:
        return "trainable parameters"
    more = f" ({heads.pop():,} more)" if len(heads) == 1 else ""
    return f"trainable parameters, without the classification head{more}"


def metric_label(name: str, decimals: int = 1) -> str:
    """A metric as an axis calls it. decimals: a fraction in percent has one, and a BLEU."""
    if name == "BLEU" or decimals != 1:
        return name
    return f"{name}, %" if name == "accuracy" else f"{name.capitalize()} x 100"
