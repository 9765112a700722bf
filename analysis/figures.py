"""Draws a figure from the records.

python -m analysis.figures demo [--output outputs]
"""

import argparse
import functools
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from analysis.cells import Cell, cells
from analysis.tables import Number
from runs.record import Ledger, read_ledger

#: Okabe and Ito's palette, safe for colour-blind readers; a method has the same colour everywhere.
COLOURS = {"vera": "#D55E00", "lora": "#0072B2", "bitfit": "#009E73", "full": "#000000", "head": "#777777"}


@dataclass
class Figure:
    """A figure: what it is called, the numbers behind it as a table, and a function that draws them on axes' figure."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    draw: Callable[[Any], None]


def svg(figure: Figure) -> str:
    """The figure as SVG, the same bytes for the same records."""
    with plt.rc_context({"svg.hashsalt": figure.name, "svg.fonttype": "path"}):
        canvas = plt.figure(figsize=(7, 4), layout="constrained")
        figure.draw(canvas)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None})
        plt.close(canvas)
    return text.getvalue()


def demo_figures(ledger: Ledger) -> list[Figure]:
    """The demo's plot, one a model, with its numbers."""
    found = cells([r for r in ledger if r["cell"]["task"] == "reviews"], wanted=3)
    figures = []
    for model in sorted({key[0] for key in found}):
        mine = {key[1]: cell for key, cell in found.items() if key[0] == model}
        rows = [
            [c.label, f"{c.parameters:,}", Number(f"{c.median():.1f}", (r["id"] for r in c.records)), f"{c.seeds}"]
            for c in sorted(mine.values(), key=lambda c: c.parameters)
        ]
        name = "accuracy_vs_parameters" if model == "minilm" else f"accuracy_vs_parameters_{model}"
        title = f"{next(iter(mine.values())).records[0]['label']['model']}: metric against trainable parameters"
        draw = functools.partial(_draw_metric_against_parameters, mine)
        figures.append(Figure(name, title, ["method", "trainable", "median", "seeds"], rows, [], draw))
    return figures


def demo(ledger: Ledger, folder: Path) -> list[Path]:
    """The metric against trainable parameters, one picture a model; bars span the seeds. Returns the files."""
    found = cells([r for r in ledger if r["cell"]["task"] == "reviews"], wanted=3)
    paths = []
    for model in sorted({key[0] for key in found}):
        mine = {key[1]: cell for key, cell in found.items() if key[0] == model}
        name = "accuracy_vs_parameters.png" if model == "minilm" else f"accuracy_vs_parameters_{model}.png"
        paths.append(_metric_against_parameters(mine, folder / name))
    return paths


def _metric_against_parameters(mine: dict[str, Cell], path: Path) -> Path:
    figure = plt.figure(figsize=(7, 4), layout="constrained")
    _draw_metric_against_parameters(mine, figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _draw_metric_against_parameters(mine: dict[str, Cell], figure: Any) -> None:
    axes = figure.subplots()
    for row, cell in sorted(mine.items(), key=lambda item: item[1].parameters):
        values, x, colour = cell.values(), cell.parameters, COLOURS.get(row, "#CC79A7")
        axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.5, alpha=0.6)
        axes.plot([x] * len(values), values, "o", color=colour, markersize=3, alpha=0.6)
        axes.plot(x, cell.median(), "D", color=colour, markersize=8)
        # Above the seeds, in two short lines: neighbours on the axis are often equal in height.
        label, place = f"{cell.label}\n{cell.median():.1f}", (x, max(values))
        axes.annotate(label, place, (0, 7), textcoords="offset points", ha="center", va="bottom", color=colour, fontsize=9)
    axes.set_xscale("symlog", linthresh=1000, linscale=0.4)
    axes.set_xlim(left=-400)
    axes.margins(y=0.15)
    axes.set_xticks([0, 1e3, 1e4, 1e5, 1e6, 1e7], ["0", "1K", "10K", "100K", "1M", "10M"])
    axes.minorticks_off()
    first = next(iter(mine.values())).records[0]
    axes.set_xlabel("trainable parameters, without the classification head")
    axes.set_ylabel(f"dev {first['result']['metric']}, %")
    seeds = max(cell.seeds for cell in mine.values())
    axes.set_title(
        f"{first['label']['model']} on {first['label']['task']}: median of {seeds} seeds, best epoch; lines span the seeds",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


FIGURES: dict[str, Callable[[Ledger], list[Figure]]] = {"demo": demo_figures}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=", ".join(FIGURES))
    parser.add_argument("--output", default="outputs", help="the folder that holds records/; the picture goes to its NAME/")
    options = parser.parse_args(arguments)
    if options.name not in FIGURES:
        print(f"error: no figure {options.name!r}. Known: {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    paths = demo(read_ledger(options.output), Path(options.output) / options.name)
    if not paths:
        print(f"error: no records of {options.name} in {options.output}/records yet (make {options.name})", file=sys.stderr)
        return 2
    print(f"Plot: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
