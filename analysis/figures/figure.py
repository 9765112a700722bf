"""The type of a figure, its style and its files."""

import io
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from pandas.api.types import is_numeric_dtype

from analysis.render import spreadsheet
from runs.record import Record, write_atomically
from runs.record.text import one_line

#: Okabe and Ito's palette, safe for colour-blind readers; a method has the same colour everywhere.
COLOURS = {"vera": "#D55E00", "lora": "#0072B2", "bitfit": "#009E73", "full": "#000000", "head": "#777777"}
COLOURS |= {"adapter": "#E69F00", "random": "#999999"}
MARKERS = {"vera": "D", "lora": "o"}
#: For other methods, chosen by their names: the rest of Okabe and Ito's palette, and Tol's.
OTHERS = ("#CC79A7", "#56B4E9", "#882255", "#44AA99", "#999933", "#332288", "#661100")
OTHER_MARKERS = ("^", "v", "P", "X", "*", "h", "<", ">")
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a user's label is a $
}


@dataclass(frozen=True)
class Part:
    """What figures are made from: runs (frame.runs), the measures that go with them, and whose both are; of
    the pictures of a metric the tasks (empty: the usual), the axes of pareto, and the rows that have a
    label."""

    runs: pd.DataFrame
    measures: Sequence[Record] = ()
    whose: str = "ours"
    tasks: tuple[str, ...] = ()
    axes: tuple[str, str] = ("parameters", "metric")
    labels: tuple[str, ...] = ()


@dataclass
class Figure:
    """A figure: its name and title, the data behind it, notes, and what draws the data on matplotlib's axes.

    The column "runs" of the data has the ids of the runs (or the measure) of each row, none where a number is
    quoted. Without data the notes say why. subtitle: below the title. foot: lines below the picture. size: in
    inches, by default as wide as a paper's text."""

    name: str
    title: str
    data: pd.DataFrame
    notes: list[str]
    draw: Callable[[Any, pd.DataFrame], object]
    subtitle: str = ""
    foot: list[str] = field(default_factory=list)
    size: tuple[float, float] = (5.5, 3.3)

    @property
    def ids(self) -> tuple[str, ...]:
        """The runs (or measures) behind its numbers, each once."""
        return tuple(dict.fromkeys(run for ids in self.data.get("runs", ()) for run in ids))


def nothing(name: str, title: str) -> Figure:
    """A figure of the demo's kind that nothing has run for."""
    return Figure(name, title, pd.DataFrame(), ["Nothing has run: make demo."], lambda axes, data: None)


def look(kind: str, row: str = "") -> tuple[str, str]:
    """The colour and the marker of a method, by its kind; a method of PEFT, which share one, by its row."""
    if kind in COLOURS:
        return COLOURS[kind], MARKERS.get(kind, "s")
    other, colour = divmod(zlib.crc32((row if kind == "peft" else kind).encode()), len(OTHERS))
    return OTHERS[colour], OTHER_MARKERS[other % len(OTHER_MARKERS)]


# --- files


def canvas(figure: Figure) -> Canvas:
    """The figure as drawn. It must have data."""
    whole = Canvas(figsize=figure.size, layout="constrained")
    if figure.foot:
        whole.supxlabel("\n".join(figure.foot), fontsize=6, color="#555555")
    axes = whole.subplots()
    axes.set_title("\n".join(filter(None, [figure.title, figure.subtitle])))
    figure.draw(axes, figure.data)
    return whole


def svg(figure: Figure) -> str:
    """The figure as an SVG element (without an XML header), for a page of HTML."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure.name}):
        drawn: Any = FigureCanvasSVG(canvas(figure))
        drawn.print_svg(text, metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def save(figure: Figure, folder: Path) -> list[Path]:
    """Writes PDF, PNG and CSV, each whole or not at all; the same data give the same bytes. Returns the
    files."""
    folder.mkdir(parents=True, exist_ok=True)
    pdf, png, csv = (folder / f"{figure.name}.{form}" for form in ("pdf", "png", "csv"))
    with matplotlib.rc_context(STYLE):
        drawn = canvas(figure)
        for path, unstable in ((pdf, {"CreationDate": None, "ModDate": None}), (png, {})):
            unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
            drawn.savefig(unfinished, dpi=200, metadata=unstable)
            os.replace(unfinished, path)
    write_atomically(csv, to_csv(figure.data))
    return [pdf, png, csv]


def to_csv(data: pd.DataFrame) -> str:
    """The data behind a figure: tuples with spaces, and no text that a spreadsheet runs."""
    text = data.apply(lambda of: of if is_numeric_dtype(of) else of.map(_word)).rename(columns=_word)
    return str(text.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def _word(value: Any) -> Any:
    if isinstance(value, tuple):
        value = " ".join(f"{of:.10g}" if isinstance(of, float) else str(of) for of in value)
    return spreadsheet(one_line(value)) if isinstance(value, str) else value


# --- numbers and rows


def parameter_count(value: float, _: Any = None) -> str:
    """Parameters at an axis: 50K, 2M."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}K" if value >= 1e3 else f"{value:g}"


def is_varied(row: str) -> bool:
    """Whether a row is another rank, an ablation or another start, which have figures and tables of their
    own."""
    ranks, starts = r"(vera|lora|lora_plus|lora_fa)_r\d+", r"lora_mnli|\w+_from_"
    ablation = r"vera_(only_|kaiming_|uniform|d_init_|unique|by_shape|redrawn)"
    return re.match(f"{ranks}|{starts}|{ablation}", row) is not None


def finite(value: Any) -> float:
    """The number; NaN where it is none, or infinite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
