"""The type of a figure, its style and its files; and what figures share, such as lines
with bands."""

import io
import math
import re
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.render import to_csv
from runs.record.files import replacing, write_atomically
from runs.record.schema import TEXT_SCORES, Measure

#: Okabe and Ito's palette, safe for colour-blind readers; a method has the same colour
#: everywhere.
COLOURS = {
    "vera": "#D55E00",
    "lora": "#0072B2",
    "bitfit": "#009E73",
    "full": "#000000",
    "head": "#777777",
    "adapter": "#E69F00",
    "random": "#999999",
}
MARKERS = {"vera": "D", "lora": "o"}
#: The colours of other methods, which `look` chooses by their names: the rest of Okabe
#: and Ito's palette, and Tol's.
OTHER_COLOURS = (
    "#CC79A7",
    "#56B4E9",
    "#882255",
    "#44AA99",
    "#999933",
    "#332288",
    "#661100",
)
OTHER_MARKERS = ("^", "v", "P", "X", "*", "h", "<", ">")
#: The size of a picture in inches, unless it has its own: as wide as a paper's text.
WIDTH, HEIGHT = 5.5, 3.3
#: Letters of a title that fit on a line of this width.
TITLE_WIDTH = 80
STYLE = Path(__file__).parent / "style.mplstyle"
#: The rows of other ranks, ablations and other starts, which have figures and tables of
#: their own.
VARIED = re.compile(
    r"(vera|lora|lora_plus|lora_fa)_r\d+|lora_mnli|\w+_from_|\w+_by_((permuted|expected)_)?reward|\w+_by_demonstrations"
    r"|vera_(only_|kaiming_|uniform|d_init_|unique|by_shape|redrawn)"
)
#: What draws each file format, and its metadata. None leaves out the date and the name of
#: the program, so that the same data give the same bytes.
FORMS: dict[str, tuple[Any, dict[str, None]]] = {
    "svg": (FigureCanvasSVG, {"Date": None, "Creator": None}),
    "pdf": (FigureCanvasPdf, {"CreationDate": None, "ModDate": None}),
    "png": (FigureCanvasAgg, {}),
}
#: Formats a count at an axis: 50k, 2M.
COUNT_FORMATTER = EngFormatter(sep="")


@dataclass(frozen=True)
class Part:
    """The runs that figures are made from: those of this machine, or the published ones.

    runs: of `frame.runs`. measures: of these runs. source: "ours" or "published".

    The rest is for the pictures of `pareto` alone. names_tasks: whether the user has
    named tasks. axes: the names (of `pareto.AXES`) of the x and the y axis; None for the
    usual ones. labels: rows that the legend names beside those on the frontier."""

    runs: pd.DataFrame
    measures: Sequence[Measure] = ()
    source: str = "ours"
    names_tasks: bool = False
    axes: tuple[str, str] | None = None
    labels: tuple[str, ...] = ()


@dataclass
class Figure:
    """A figure: its name and title, the data behind it, and the notes on them.

    name: of its files. data: in the column "runs" each line has the ids of the runs (or
    the measure) that it comes from, none where a number is quoted. notes: printed with
    the figure. draw: draws the data on matplotlib's axes. subtitle: below the title.
    foot: lines below the picture. size: in inches."""

    name: str
    title: str
    data: pd.DataFrame
    notes: list[str]
    draw: Callable[[Axes, pd.DataFrame], object]
    subtitle: str = ""
    foot: list[str] = field(default_factory=list)
    size: tuple[float, float] = (WIDTH, HEIGHT)


def look(kind: str, row: str = "") -> tuple[str, str]:
    """The colour and the marker of a method.

    kind: of the method. row: tells the methods of PEFT apart, which share one kind; it
    does not matter for others."""
    if kind in COLOURS:
        return COLOURS[kind], MARKERS.get(kind, "s")
    # A hash of the name, so that a method looks the same in every picture.
    name = row if kind == "peft" else kind
    quotient, remainder = divmod(zlib.crc32(name.encode()), len(OTHER_COLOURS))
    return OTHER_COLOURS[remainder], OTHER_MARKERS[quotient % len(OTHER_MARKERS)]


def canvas(figure: Figure) -> Canvas:
    """The figure, drawn as a figure of matplotlib's."""
    drawing = Canvas(figsize=figure.size, layout="constrained")
    if figure.foot:
        drawing.supxlabel("\n".join(figure.foot), fontsize=6, color="#555555")
    title = textwrap.fill(figure.title, TITLE_WIDTH)
    drawing.suptitle("\n".join(filter(None, [title, figure.subtitle])))
    figure.draw(drawing.subplots(), figure.data)
    return drawing


def picture(figure: Figure, form: str) -> bytes:
    """The figure as the bytes of a file. form: svg, pdf or png. The same data give the
    same bytes."""
    content = io.BytesIO()
    backend, metadata = FORMS[form]
    # The salt makes the ids of elements in an SVG, which would be random without it.
    with matplotlib.rc_context({"svg.hashsalt": figure.name}, STYLE):
        # We call the backend, because savefig would draw twice: once for the layout.
        drawn = backend(canvas(figure))
        getattr(drawn, f"print_{form}")(content, metadata=metadata)
    return content.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an SVG element (without an XML header), for a page of HTML."""
    text = picture(figure, "svg").decode()
    return text[text.index("<svg") :]


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Writes PDF, PNG and CSV, each whole or not at all. Returns these files in this
    order."""
    pdf, png, csv = (folder / f"{figure.name}.{form}" for form in ("pdf", "png", "csv"))
    for path in (pdf, png):
        with replacing(path) as unfinished:
            unfinished.write_bytes(picture(figure, path.suffix[1:]))
    write_atomically(csv, to_csv(figure.data, "%.10g"))
    return [pdf, png, csv]


# --- what figures share


def finite(values: Iterable[Any]) -> pd.Series:
    """The values as numbers; NaN where one is infinite or no number."""
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
    return numbers.replace([math.inf, -math.inf], math.nan)


def count_range(counts: Sequence[int]) -> str:
    """The least and the greatest count as text: "3 to 5", or "5" if they are equal."""
    ends = dict.fromkeys((min(counts), max(counts)))
    return " to ".join(f"{count:,}" for count in ends)


def metric_label(name: str, digits: int = 1) -> str:
    """What an axis calls a metric or a score of texts, with its unit.

    name: of the metric or score. digits: the decimals of its numbers in tables. A metric
    with one decimal is a fraction, which we show times 100."""
    units = {score.name: score.unit for score in TEXT_SCORES.values()}
    if name in units or digits != 1:
        return ", ".join(filter(None, [name, units.get(name)]))
    if name == "accuracy":
        return "accuracy, %"
    return f"{name.replace('_', ' ').capitalize()} x 100"


def draw_lines(
    axes: Axes,
    data: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    looks: Mapping[str, Sequence[Any]],
    **labels: Any,
) -> None:
    """Draws a line for each value of the column `by`, with a band from the column `low`
    to `high`. A point is hollow where seeds are missing. A quoted number (a line of the
    data without runs) is a cross, or a horizontal line where it has no x.

    Args:
        axes: to draw on.
        data: of a figure.
        x: the column of the points' x.
        y: the column of their y.
        by: the column that names the line of a point.
        looks: the colour, dash and marker of each line, in the order of the legend.
        labels: what `axes.set` takes, such as xlabel.
    """
    names = [*looks, *sorted({*data[by]} - {*looks})]
    for index, name in enumerate(names):
        points = data[(data[by] == name) & data[y].notna()].sort_values(x)
        other_look = (OTHER_COLOURS[index % len(OTHER_COLOURS)], ":", "o")
        look_of_line = looks.get(name, other_look)
        is_ours = points.runs.map(len) > 0
        if is_ours.any():
            _draw_line(axes, points[is_ours], x, y, name, look_of_line)
        for quoted in points[~is_ours].to_dict("records"):
            _draw_quoted(axes, quoted, x, y, name, look_of_line[0])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(**labels)
    if axes.lines:
        axes.legend()


def _draw_line(
    axes: Axes,
    points: pd.DataFrame,
    x: str,
    y: str,
    name: str,
    look_of_line: Sequence[Any],
) -> None:
    """Draws a line with its band, and its points: hollow where fewer seeds have a number
    (n) than the cell should have (wanted; data over measures have no such column, and no
    hollow points). name: in the legend."""
    colour, dash, marker = look_of_line
    x_values = points[x].astype(float)
    axes.fill_between(
        x_values, points.low, points.high, color=colour, alpha=0.15, linewidth=0
    )
    if len(points) == 1:  # whose band has no width
        axes.vlines(points[x], points.low, points.high, color=colour, alpha=0.5)
    axes.plot(
        points[x],
        points[y],
        dash,
        marker=marker,
        markersize=4,
        color=colour,
        label=name,
    )
    hollow = points[points.n < points.get("wanted", 0)]
    axes.plot(hollow[x], hollow[y], marker, markersize=4, color=colour, mfc="white")


def _draw_quoted(
    axes: Axes, point: Mapping[str, Any], x: str, y: str, name: str, colour: str
) -> None:
    """Draws a quoted number: a cross, or a line across the picture if it has no x."""
    label = f"{name}, {point['source']}"
    if math.isnan(point[x]):
        dotted = (0, (1, 2))
        axes.axhline(point[y], linestyle=dotted, linewidth=1, color=colour, label=label)
    else:
        axes.plot(point[x], point[y], "x", markersize=7, color=colour, label=label)
