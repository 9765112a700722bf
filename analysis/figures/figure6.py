"""Figure 6: the mean squared error of fitting random matrices, by parameters."""

import statistics
from collections import defaultdict
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Canvas

from analysis.figures.bands import Point, draw_band
from analysis.figures.figure import MARKERS, Figure, colour, finite, with_runs
from analysis.paper import NAMES, paper
from analysis.table import TableCell, make_row
from runs.record import Ledger, sample_deviation


def make(ledger: Ledger) -> list[Figure]:
    """Mean squared error of fitting random matrices against parameters, LoRA and VeRA (VeRA paper, appendix
    E)."""
    measures = [m for m in ledger.measures.values() if m["kind"] == "matrix_fit"]
    rows: list[list[TableCell]] = []
    lines: dict[str, list[Point]] = defaultdict(list)
    notes: list[str] = []
    title, settings = "Figure 6: fitting random 10 x 10 matrices", None
    if measures:
        # Each measure is complete in itself: the one with the lowest seed is drawn.
        chosen = min(measures, key=lambda m: (m["seeds"]["random"], m["id"]))
        settings, values = chosen["settings"], chosen["values"]
        title = f"Figure 6: fitting random {settings['size']} x {settings['size']} matrices"
        for method, rank, count, errors, best in zip(*values.values(), strict=True):
            numbers = finite(errors)
            if len(numbers) < len(errors):
                lost = f"{len(errors) - len(numbers)} of {len(errors)}"
                notes.append(f"{NAMES[method]} at rank {rank}: {lost} errors are not finite.")
            if not numbers:
                continue
            mean, spread = statistics.fmean(numbers), sample_deviation(numbers) or 0.0
            least = f"{statistics.fmean(best):.3e}" if best else ""
            texts = [str(count), f"{mean:.3e}", f"{spread:.3e}", least]
            rows.append(make_row(NAMES[method], str(rank), *with_runs(texts, [chosen["id"]])))
            lines[method].append((count, mean, min(numbers), max(numbers)))
        keys = ("matrices", "target", "steps", "lr", "optimizer")
        words = ", ".join(f"{key} {settings[key]}" for key in keys)
        notes.append(f"Settings (this project's choice): {words}.")
        notes.append(
            "least: of any matrix of that rank, by singular values; LoRA's fit has converged where it is the"
            " same."
        )
        if len(measures) > 1:
            notes.append(f"{len(measures) - 1} other fits are left out: measure {chosen['id']} is shown.")
    else:
        notes.append("Nothing measured: python -m runs.measure matrix_fit takes ten seconds.")
    notes += [
        "The paper prints no numbers of this figure.",
        f"The paper's finding: {paper()['figure6']['finding']}.",
    ]
    header = ["method", "rank", "parameters", "mse mean", "mse spread", "least", "runs"]
    draw = partial(_draw_fit, dict(lines), title, settings or {})
    return [Figure("figure6", title, header, rows, notes, draw)]


def _draw_fit(lines: dict[str, list[Point]], title: str, settings: dict[str, Any], canvas: Canvas) -> None:
    axes = canvas.subplots()
    for method in (method for method in ("lora", "vera") if method in lines):
        dash = "--" if method == "lora" else "-"
        draw_band(axes, lines[method], (colour(method), dash, MARKERS[method]), NAMES[method])
    if "lora" in lines:
        least = min(count for count, *_ in lines["lora"])
        axes.axvline(least, color="#555555", linestyle=":", linewidth=0.8)
        at: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("LoRA, rank 1", (least, 1), (4, -2), va="top", **at)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("mean squared error")
    axes.set_ylim(bottom=-0.02)
    axes.set_title(f"{title}\nmean of {settings['matrices']} matrices, bands from the lowest to the highest")
    axes.legend()
