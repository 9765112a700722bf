"""The type of a figure, its style, its files, and which of the paper's it stands beside."""

import csv
import io
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from analysis.beside import exact_counts
from analysis.paper import Printed, printed_rows
from analysis.table import TableCell, spreadsheet, texts
from runs.record import Record, write_atomically
from runs.record.text import one_line

#: Okabe and Ito's palette, safe for colour-blind readers; a method has the same colour everywhere.
COLOURS = {"vera": "#D55E00", "lora": "#0072B2", "bitfit": "#009E73", "full": "#000000", "head": "#777777"}
COLOURS |= {"adapter": "#E69F00", "random": "#999999"}
MARKERS = {"vera": "D", "lora": "o"}
#: For other methods, chosen by their names: the rest of Okabe and Ito's palette, and Tol's.
OTHERS = ("#CC79A7", "#56B4E9", "#882255", "#44AA99", "#999933", "#332288", "#661100")
OTHER_MARKERS = ("^", "v", "P", "X", "*", "h", "<", ">")
#: The size of a figure that is as wide as a paper's text, in inches.
SIZE = (5.5, 3.3)
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
    "svg.fonttype": "path",
    "text.parse_math": False,  # a $ in a user's label is a $
    "svg.hashsalt": "vera-bench",  # the same data give the same file
}


@dataclass
class Figure:
    """A figure: its name and title, the data behind it as text, notes, and how it is drawn.

    The last column of the data, "runs", names the run ids (or the measure) of each point. Without rows there
    is nothing to draw, and the notes say why. size: in inches."""

    name: str
    title: str
    header: list[str]
    rows: list[list[TableCell]]
    notes: list[str]
    draw: Callable[[Any], None]
    size: tuple[float, float] = SIZE


def colour(row: str, kind: str | None = None) -> str:
    """The colour of a row of conf/method, which is its method's: vera_r64 has VeRA's. kind: the method, where
    it is known, so that svft, a custom method, has a colour of its own."""
    name = _method(row, kind)
    return COLOURS.get(name) or OTHERS[_number(name) % len(OTHERS)]


def marker(row: str, kind: str | None = None) -> str:
    """The marker of a row, which is its method's."""
    name = _method(row, kind)
    if name in COLOURS:
        return MARKERS.get(name, "s")
    return OTHER_MARKERS[_number(name) // len(OTHERS) % len(OTHER_MARKERS)]


def _method(row: str, kind: str | None) -> str:
    """The method of a row: its kind. Where that is not known, and for methods of PEFT, which share one kind,
    the row says it."""
    row = row.partition(" ")[0]
    if row in COLOURS:
        return row
    if kind is None:
        first = row.partition("_")[0]
        return first if first in COLOURS else row
    return row if kind == "peft" else kind


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


# --- files


def canvas(figure: Figure) -> Canvas:
    """The figure as drawn; without rows its title and notes as text."""
    whole = Canvas(figsize=figure.size, layout="constrained")
    if figure.rows:
        figure.draw(whole)
    else:
        whole.text(
            0.5, 0.5, "\n".join([figure.title, "", *figure.notes]), ha="center", va="center", wrap=True
        )
    return whole


def svg(figure: Figure) -> str:
    """The figure as an SVG element (without an XML header), for a page of HTML."""
    return svg_and_points(figure)[0]


def svg_and_points(figure: Figure) -> tuple[str, list[tuple[float, float, str]]]:
    """The figure as `svg` has it, and its points: where each is, as shares of the width from the left and of
    the height from the top, and its label and values."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure.name}):
        whole = canvas(figure)
        whole.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        to_shares, points = whole.transFigure.inverted(), list[tuple[float, float, str]]()
        for axes in whole.axes:
            for line in axes.lines:
                label = str(line.get_label())
                unnamed = label.startswith("_")
                # The range of a point and a rule across the axes (axhline) have no points of their own.
                if (unnamed and line.get_marker() == "None") or line.get_transform() != axes.transData:
                    continue
                named = "" if unnamed else f"{label}: "
                values = np.asarray(line.get_xydata(), dtype=float)
                for x, y in values[np.isfinite(values).all(axis=1)]:
                    across, up = to_shares.transform(axes.transData.transform((x, y)))
                    words = f"{named}{x:,.10g}, {y:.4g}"
                    points.append((float(across), 1 - float(up), words))
    return text.getvalue()[text.getvalue().index("<svg") :], points


def save(figure: Figure, folder: Path) -> list[Path]:
    """Writes PDF, PNG and CSV, each whole or not at all; the same data give the same bytes. Returns the
    files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for form, unstable in (("pdf", {"CreationDate": None, "ModDate": None}), ("png", {})):
            path = folder / f"{figure.name}.{form}"
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                canvas(figure).savefig(unfinished, format=form, dpi=200, metadata=unstable)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
            paths.append(path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[spreadsheet(one_line(cell)) for cell in row] for row in (figure.header, *texts(figure.rows))]
    )
    write_atomically(folder / f"{figure.name}.csv", text.getvalue())
    return [*paths, folder / f"{figure.name}.csv"]


# --- numbers and words


def finite(values: Iterable[Any]) -> list[float]:
    """Those of the values that are finite numbers."""
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def with_runs(numbers: Iterable[str], of: Iterable[str]) -> list[TableCell]:
    """Numbers that are made of these runs (or measures), which the last column, "runs", names."""
    names = tuple(dict.fromkeys(of))
    return [
        *(TableCell(text, () if text in ("", "-") else names) for text in numbers),
        TableCell(" ".join(names)),
    ]


def parameter_count(value: float, _: Any) -> str:
    """Parameters at an axis: 50K, 2M."""
    return next(
        (f"{value / scale:g}{unit}" for unit, scale in (("M", 1e6), ("K", 1e3)) if value >= scale),
        f"{value:g}",
    )


def draw_nothing(_: Any) -> None:
    """Draws nothing."""


# --- the paper's figure, and others of its kind


#: The model and task of the paper's figures 2 to 4.
LARGE, RTE = "roberta_large", "rte"


def paper_first(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Models and tasks in order, after those of the paper's figures, which are always there."""
    return [(LARGE, RTE), *sorted(set(pairs) - {(LARGE, RTE)})]


def is_varied(row: str) -> bool:
    """Whether a row is another rank, an ablation or another start, which have figures and tables of their
    own."""
    ranks, starts = r"(vera|lora|lora_plus|lora_fa)_r\d+", r"lora_mnli|\w+_from_"
    ablation = r"vera_(only_|kaiming_|uniform|d_init_|unique|by_shape|redrawn)"
    return re.match(f"{ranks}|{starts}|{ablation}", row) is not None


def not_in_the_paper(model: str, task: str) -> str:
    """A note for a figure of another model and task than the paper's."""
    return f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE."


def printed_rte() -> dict[str, tuple[Printed, int]]:
    """Table 2's accuracies on RTE of RoBERTa-large by row, with the exact count of the row's parameters."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == LARGE}
    rte = (number for row in printed_rows("table2", LARGE) for number in row if number.task == RTE)
    return {number.row: (number, counts[number.row]) for number in rte if number.row in counts}


def suffix(model: str, task: str) -> str:
    """What the name of a figure that is not the paper's own ends with."""
    return "" if (model, task) == (LARGE, RTE) else f"_{model}_{task}"


def model_name(model: str, records: Iterable[Record]) -> str:
    """A model's label, by its records; the paper's where it has none."""
    return next((str(r["label"]["model"]) for r in records), "RoBERTa-large" if model == LARGE else model)
