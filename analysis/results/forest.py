"""The forest plot: how far VeRA is from the rows that the paper calls it near, task by
task and over tasks, next to the paper's own averages."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETLEFT, CARETRIGHT

from analysis.figures.figure import COLOURS, Figure
from analysis.inference import EQUIVALENCE_MARGIN, Mean
from analysis.results.claims import Finding

#: Where the axis ends on both sides, in points. An interval that extends beyond it ends
#: in an arrowhead.
AXIS_END = 11.0
#: The marker and colour of each kind of line; a prediction interval has no marker.
LOOKS = {
    "paper": ("D", "#000000"),
    "task": ("o", COLOURS["lora"]),
    "mean": ("s", COLOURS["vera"]),
    "prediction": ("", COLOURS["vera"]),
}
AXIS_LABEL = "VeRA worse \N{LEFTWARDS ARROW} points \N{RIGHTWARDS ARROW} VeRA better"
#: The height of a line, and of the title and axis around the lines, in inches.
LINE_HEIGHT = 0.2
FRAME_HEIGHT = 0.75
#: The width, in inches: narrow, so that a telephone shows it at its size.
WIDTH = 4.2


class Line(NamedTuple):
    """A line of the plot. kind: title, or a key of LOOKS. A title is only a label, so it
    has no numbers; an average of the paper has no interval; a prediction is an interval
    alone. Missing numbers are NaN, which matplotlib does not draw."""

    kind: str
    label: str
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan


def forest(findings: Sequence[Finding]) -> Figure | None:
    """The forest plot of the claims that VeRA is as good as another row (kind near), if
    they were compared on several tasks; None where there is none."""
    lines = list[Line]()
    for finding in findings:
        if finding.claim.kind == "near" and len(finding.task_means) > 1:
            lines += _lines(finding)
    if not lines:
        return None
    data = pd.DataFrame(lines)
    # The paper's averages of a claim follow each other with one label, and share a height.
    has_new_label = data.label != data.label.shift()
    data = data.assign(height=has_new_label.cumsum() - 1)
    line_count = data.height.max() + 1
    size = (WIDTH, FRAME_HEIGHT + LINE_HEIGHT * line_count)
    title = "VeRA minus the other row, with 95% intervals"
    return Figure("forest", title, data, [], _draw, size=size)


def _lines(finding: Finding) -> Iterator[Line]:
    """The lines of a finding: its title, the paper's averages, each task, the mean over
    tasks, and the prediction for a new task."""
    title = f"VeRA minus {finding.opponent}"
    yield Line("title", title)
    for difference in finding.claim.paper_differences().values():
        yield Line("paper", "the paper's averages", difference)
    for task, mean in finding.task_means.items():
        yield _line_of_mean("task", task, mean)
    yield _line_of_mean("mean", "mean over tasks", finding.mean)
    low, high = finding.mean.prediction()
    label = "a new task (prediction)"
    yield Line("prediction", label, low=float(low), high=float(high))


def _line_of_mean(kind: str, label: str, mean: Mean) -> Line:
    low, high = mean.interval()
    return Line(kind, label, float(mean.mean), float(low), float(high))


def _draw(axes: Axes, data: pd.DataFrame) -> None:
    """Draws the lines from top to bottom, over the band of the equivalence margin. data:
    lines, each with its height."""
    axes.axvspan(-EQUIVALENCE_MARGIN, EQUIVALENCE_MARGIN, color="#dddddd", zorder=0)
    axes.axvline(0, color="#777777", linewidth=0.8)
    for kind, (marker, colour) in LOOKS.items():
        lines = data[data.kind == kind]
        dash = "dotted" if kind == "prediction" else "solid"
        low = lines.low.clip(lower=-AXIS_END)
        high = lines.high.clip(upper=AXIS_END)
        axes.hlines(lines.height, low, high, color=colour, linestyle=dash)
        face = "none" if kind == "paper" else colour
        axes.plot(
            lines.difference, lines.height, marker, markersize=5, mfc=face, color=colour
        )
        _draw_arrowheads(axes, lines, colour)
    names = data.drop_duplicates("height")
    axes.set_xlim(-AXIS_END, AXIS_END)
    axes.set_xlabel(AXIS_LABEL, fontsize=8)
    axes.set_yticks(names.height, names.label)
    axes.set_ylim(names.height.max() + 0.5, -0.5)  # the first line is on top
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", length=0)
    for label, kind in zip(axes.get_yticklabels(), names.kind, strict=True):
        label.set_fontweight("bold" if kind in ("title", "mean") else "normal")
    axes.grid(visible=False, axis="y")


def _draw_arrowheads(axes: Axes, lines: pd.DataFrame, colour: str) -> None:
    """Draws an arrowhead at the end of the axis for each interval that extends beyond
    it."""
    beyond_left = lines[lines.low < -AXIS_END]
    beyond_right = lines[lines.high > AXIS_END]
    arrowheads = (
        (beyond_left, -AXIS_END, CARETLEFT),
        (beyond_right, AXIS_END, CARETRIGHT),
    )
    for lines_beyond, tip, marker in arrowheads:
        # Without lines matplotlib would count a point at the corner of the picture.
        if len(lines_beyond):
            axes.plot(
                [tip] * len(lines_beyond),
                lines_beyond.height,
                marker=marker,
                markersize=6,
                color=colour,
                clip_on=False,
                linestyle="none",
            )
