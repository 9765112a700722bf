"""A middle and its band by x: what figures 3, 5 and 6 are made of."""

import statistics
from collections.abc import Sequence
from typing import Any

#: x, and at x the middle, the lowest and the highest value.
Point = tuple[int, float, float, float]


def median_and_range(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The median, the lowest and the highest; None of no values."""
    return (statistics.median(values), min(values), max(values)) if values else None


def shown(middle: Sequence[float] | None, form: str) -> list[str]:
    """The three as text, "-" where there are none."""
    return [f"{value:{form}}" for value in middle or ()] or ["-"] * 3


def draw_band(axes: Any, points: Sequence[Point], look: tuple[str, str, str], label: str) -> None:
    """The middles as a line, and the band from the lowest to the highest. look: a colour, a dash and a
    marker."""
    (tint, dash, marker), (x, middle, low, high) = look, zip(*sorted(points), strict=True)
    axes.fill_between(x, low, high, color=tint, alpha=0.15, linewidth=0)
    axes.plot(x, middle, dash, marker=marker, markersize=4, color=tint, label=label)
