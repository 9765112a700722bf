"""Figure 5: the cosine of weight differences by layer."""

import statistics
from collections import defaultdict
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from analysis.cells import label_of
from analysis.figures.bands import Point, draw_band, median_and_range, shown
from analysis.figures.figure import COLOURS, Figure, finite, suffix, with_runs
from analysis.figures.measures import measured
from analysis.paper import paper
from analysis.table import TableCell, make_row
from runs.record import Ledger, Record

PAIRS = {"lora_vera": "LoRA and VeRA", "lora_random": "LoRA and random", "vera_random": "VeRA and random"}


def make(ledger: Ledger) -> list[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix
    D)."""
    printed = {key: float(value) for key, value in paper()["figure5"]["printed"].items()}
    header = ["pair", "source", "site", "layer", "median", "low", "high", "n", "runs"]
    quoted = [
        make_row(
            PAIRS[key.removeprefix("mean_")], "paper (quoted)", "query", "mean", f"{mean:.1e}", *[""] * 4
        )
        for key, mean in printed.items()
    ]
    figures = []
    for group in measured(ledger, "similarity"):
        measures, notes = group.measures, group.notes
        rows, lines, matrices = _by_layer(measures, notes)
        means = {pair: statistics.fmean(line[1] for line in lines[pair]) for pair in lines}
        for pair, mean in means.items():
            notes.append(f"{PAIRS[pair]}: mean over layers of what is drawn {mean:.1e}.")
        runs = {run["id"] for measure in measures for run in measure["of"]}
        if labels := sorted({label_of(ledger.records[run]) for run in runs if run in ledger.records}):
            notes.append(f"The runs are {' and '.join(labels)}.")
        if not measures:
            notes.append(
                "Nothing measured: python -m runs experiment=figure5, then python -m runs.measure similarity."
            )
        if group.of_the_paper:
            rows += quoted
            notes.append(
                "The paper prints two means, over the query matrices at rank 64 (quoted); it gives no value"
                " by layer."
            )
            notes.append(f"The paper's finding: {paper()['figure5']['finding']}.")
        else:
            where = f"{group.model} on {group.task}"
            notes.insert(0, f"{where} is not in the paper: no comparison with its means.")
        title = f"Figure 5: cosine of weight differences, {group.where}"
        papers = printed if group.of_the_paper else {}
        draw = partial(_draw_cosines, lines, papers, title, len(measures), matrices)
        figures.append(Figure(f"figure5{suffix(group.model, group.task)}", title, header, rows, notes, draw))
    return figures


def _by_layer(
    measures: list[Record], notes: list[str]
) -> tuple[list[list[TableCell]], dict[str, list[Point]], str]:
    """The rows of the data, for each pair its line, and of which matrices the lines are; adds to the notes
    what has no cosine."""
    points: dict[tuple[str, str, int], list[tuple[Any, list[str]]]] = defaultdict(list)
    for measure in measures:
        values, of = measure["values"], [run["id"] for run in measure["of"]]
        for i, (layer, site) in enumerate(zip(values["layer"], values["site"], strict=True)):
            for pair in PAIRS:
                points[pair, site, layer].append((values[pair][i], of))
    rows, lines = [], defaultdict[str, list[Point]](list)
    sites = {site for _, site, _ in points}
    for (pair, site, layer), values_of_runs in sorted(points.items()):
        numbers = finite(value for value, _ in values_of_runs)
        if len(numbers) < len(values_of_runs):
            lost = f"{len(values_of_runs) - len(numbers)} of {len(values_of_runs)}"
            notes.append(
                f"{PAIRS[pair]}, layer {layer}, {site}: {lost} have no cosine (a change that is zero)."
            )
        middle = median_and_range(numbers)
        runs = (name for _, of in values_of_runs for name in of)
        texts = [*shown(middle, ".3e"), str(len(numbers))]
        rows.append(make_row(PAIRS[pair], "ours", site, str(layer), *with_runs(texts, runs)))
        if middle and (site == "query" or "query" not in sites):
            lines[pair].append((layer, *middle))
    matrices = "query matrices" if "query" in sites or not sites else "all adapted matrices"
    return rows, dict(lines), matrices


def _draw_cosines(
    lines: dict[str, list[Point]],
    printed: dict[str, float],
    title: str,
    measured: int,
    matrices: str,
    canvas: Canvas,
) -> None:
    axes = canvas.subplots()
    looks = {"lora_vera": (COLOURS["vera"], "-", "D"), "lora_random": (COLOURS["lora"], "--", "o")}
    looks |= {"vera_random": (COLOURS["random"], ":", "^")}
    for pair, look in looks.items():
        if pair in lines:
            draw_band(axes, lines[pair], look, PAIRS[pair])
    for key, value in printed.items():
        tint, _, _ = looks[key.removeprefix("mean_")]
        label = f"{PAIRS[key.removeprefix('mean_')]}, paper's mean (quoted)"
        axes.axhline(value, color=tint, linestyle=(0, (1, 2)), linewidth=1, label=label)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("cosine")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if not lines:
        axes.set_xticks([])  # the paper's two means, and no layers
    pairs = f"median of {measured} pairs of runs, {matrices}" if measured > 1 else matrices
    axes.set_title(f"{title}\n{pairs}")
    if lines or printed:
        axes.legend()
