"""Differences of findings with their intervals, one below the other, for docs/results.md."""

from typing import Any

import pandas as pd

from analysis.figures.figure import COLOURS, Figure
from analysis.inference import MARGIN

#: The farthest difference on the axis, in points.
FARTHEST = 11.0
MARKS = {"paper": ("D", "#000000"), "task": ("o", COLOURS["lora"]), "pooled": ("s", COLOURS["vera"])}


def figure(lines: pd.DataFrame) -> Figure:
    """lines: kind (title, or of MARKS), label, difference, low, high; those of one kind and label that follow
    each other share a place."""
    place = (lines.label != lines.label.shift()) | (lines.kind != lines.kind.shift())
    data = lines.assign(place=place.cumsum() - 1)
    title, size = "VeRA less the other row, in points, with 95% intervals", (5.5, 0.7 + 0.16 * place.sum())
    return Figure("forest", title, data, [], _draw, size=size)


def _draw(axes: Any, data: pd.DataFrame) -> None:
    axes.axvspan(-MARGIN, MARGIN, color="#dddddd", zorder=0)
    axes.axvline(0, color="#777777", linewidth=0.8)
    for of in data[data.kind.isin(MARKS)].itertuples():
        marker, colour = MARKS[of.kind]
        face = "none" if of.kind == "paper" else colour
        axes.plot(of.difference, of.place, marker, markersize=4, mfc=face, color=colour)
        axes.plot([max(of.low, -FARTHEST), min(of.high, FARTHEST)], [of.place] * 2, color=colour)
        for end, sign, beyond in ((-FARTHEST, "<", of.low < -FARTHEST), (FARTHEST, ">", of.high > FARTHEST)):
            axes.plot([end] * beyond, [of.place] * beyond, sign, color=colour, markersize=4, clip_on=False)
    names = data.drop_duplicates("place")
    axes.set_xlim(-FARTHEST, FARTHEST)
    axes.set_yticks(names.place, names.label)
    axes.set_ylim(names.place.max() + 0.5, -0.5)
    for label, kind in zip(axes.get_yticklabels(), names.kind, strict=True):
        label.set_fontweight("bold" if kind in ("title", "pooled") else "normal")
    axes.grid(visible=False, axis="y")
