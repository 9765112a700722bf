"""The forest plot: how far VeRA is from the rows that the paper calls it near, task by
task and over tasks, next to the paper's own averages."""

import math
from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETLEFT, CARETRIGHT

from analysis.figures.figure import COLOURS, Figure
from analysis.inference import EQUIVALENCE_MARGIN, Mean
from analysis.results.claims import Finding

#: Where the axis ends, in points. An interval that goes on ends in an arrowhead.
FRAME = 11.0
#: The marker and colour of each kind of line; a prediction interval has no marker.
LOOKS = {
    "paper": ("D", "#000000"),
    "task": ("o", COLOURS["lora"]),
    "mean": ("s", COLOURS["vera"]),
    "prediction": ("", COLOURS["vera"]),
}
AXIS = "VeRA worse \N{LEFTWARDS ARROW} points \N{RIGHTWARDS ARROW} VeRA better"
COLUMNS = ["kind", "label", "difference", "low", "high"]
#: The height of a line and of what stands around them, in inches.
LINE_HEIGHT = 0.2
MARGIN_HEIGHT = 0.75
#: The width, in inches: narrow, so that a telephone shows it at its size.
WIDTH = 4.2

Line = tuple[str, str, float, float, float]


def forest(findings: Sequence[Finding]) -> Figure | None:
    """The forest plot of the near claims that were compared on several tasks; None
    where there is none. The paper's averages of a claim share one height."""
    lines = list[Line]()
    for finding in findings:
        if finding.claim.kind == "near" and len(finding.tasks) > 1:
            lines += _lines(finding)
    if not lines:
        return None
    data = pd.DataFrame(lines, columns=COLUMNS)
    starts_line = data.label != data.label.shift()
    data = data.assign(place=starts_line.cumsum() - 1)
    height = MARGIN_HEIGHT + LINE_HEIGHT * (data.place.max() + 1)
    title = "VeRA minus the other row, with 95% intervals"
    return Figure("forest", title, data, [], _draw, size=(WIDTH, height))


def _lines(finding: Finding) -> Iterator[Line]:
    title = f"VeRA minus {finding.opponent}"
    yield "title", title, math.nan, math.nan, math.nan
    for difference in finding.claim.paper_differences().values():
        yield "paper", "the paper's averages", difference, math.nan, math.nan
    for task, mean in finding.tasks.items():
        yield _interval("task", task, mean)
    yield _interval("mean", "mean over tasks", finding.mean)
    low, high = finding.mean.prediction()
    yield "prediction", "a new task (prediction)", math.nan, float(low), float(high)


def _interval(kind: str, label: str, mean: Mean) -> Line:
    low, high = mean.interval()
    return kind, label, float(mean.mean), float(low), float(high)


def _draw(axes: Axes, data: pd.DataFrame) -> None:
    axes.axvspan(-EQUIVALENCE_MARGIN, EQUIVALENCE_MARGIN, color="#dddddd", zorder=0)
    axes.axvline(0, color="#777777", linewidth=0.8)
    for kind, (marker, colour) in LOOKS.items():
        lines = data[data.kind == kind]
        dash = "dotted" if kind == "prediction" else "solid"
        low = lines.low.clip(lower=-FRAME)
        high = lines.high.clip(upper=FRAME)
        axes.hlines(lines.place, low, high, color=colour, linestyle=dash)
        face = "none" if kind == "paper" else colour
        axes.plot(
            lines.difference, lines.place, marker, markersize=5, mfc=face, color=colour
        )
        _draw_arrowheads(axes, lines, colour)
    names = data.drop_duplicates("place")
    axes.set_xlim(-FRAME, FRAME)
    axes.set_xlabel(AXIS, fontsize=8)
    axes.set_yticks(names.place, names.label)
    axes.set_ylim(names.place.max() + 0.5, -0.5)
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", length=0)
    for label, kind in zip(axes.get_yticklabels(), names.kind, strict=True):
        label.set_fontweight("bold" if kind in ("title", "mean") else "normal")
    axes.grid(visible=False, axis="y")


def _draw_arrowheads(axes: Axes, lines: pd.DataFrame, colour: str) -> None:
    """An arrowhead, whose tip is at the frame, for each end of an interval beyond
    it."""
    ends = (
        (lines[lines.low < -FRAME], -FRAME, CARETLEFT),
        (lines[lines.high > FRAME], FRAME, CARETRIGHT),
    )
    for beyond, frame, marker in ends:
        # An empty line would count as a point at the corner of the picture.
        if len(beyond):
            axes.plot(
                [frame] * len(beyond),
                beyond.place,
                marker=marker,
                markersize=6,
                color=colour,
                clip_on=False,
                linestyle="none",
            )
