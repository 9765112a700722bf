"""Figure 3: how far d has moved, by layer and site."""

import statistics
from collections import defaultdict
from functools import partial

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from analysis.figures.bands import Point, draw_band, median_and_range, shown
from analysis.figures.figure import Figure, finite, not_in_the_paper, suffix, with_runs
from analysis.figures.measures import measured
from analysis.paper import paper
from analysis.table import TableCell, make_row
from runs.record import Ledger, Record


def make(ledger: Ledger) -> list[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row
    vera."""
    figures = []
    for group in measured(ledger, "magnitude", lambda measure: measure["of"][0]["cell"]["row"] == "vera"):
        measures, notes = group.measures, group.notes
        rows, lines = _by_layer(measures, notes)
        if not measures:
            notes.append(
                "Nothing measured: python -m runs experiment=figure3, then python -m runs.measure magnitude."
            )
        if group.of_the_paper:
            notes.append("The paper prints no numbers of this figure.")
            notes.append(f"The paper's finding: {paper()['figure3']['finding']}.")
        else:
            notes.insert(0, not_in_the_paper(group.model, group.task))
        title = f"Figure 3: change of d by layer, {group.where}"
        header = ["site", "layer", "d median", "d low", "d high", "b median", "n", "runs"]
        draw = partial(_draw_layers, lines, title, len(measures))
        figures.append(Figure(f"figure3{suffix(group.model, group.task)}", title, header, rows, notes, draw))
    return figures


def _by_layer(
    measures: list[Record], notes: list[str]
) -> tuple[list[list[TableCell]], dict[str, list[Point]]]:
    """The rows of the data, and for each site its line; adds to the notes what no finite change has."""
    points: dict[tuple[str, int], list[tuple[float | None, float | None, str]]] = defaultdict(list)
    for measure in measures:
        values = measure["values"]
        for layer, site, d, b in zip(*(values[key] for key in ("layer", "site", "d", "b")), strict=True):
            points[site, layer].append((d, b, measure["of"][0]["id"]))
    rows, lines = [], defaultdict[str, list[Point]](list)
    for (site, layer), changes in sorted(points.items()):
        d, b = finite(p[0] for p in changes), finite(p[1] for p in changes)
        if len(d) < len(changes):
            notes.append(
                f"layer {layer}, {site}: {len(changes) - len(d)} of {len(changes)} runs have no finite change"
                " of d."
            )
        of_d, of_b = median_and_range(d), f"{statistics.median(b):.4g}" if b else "-"
        numbers = with_runs([*shown(of_d, ".4g"), of_b, str(len(d))], (p[2] for p in changes))
        rows.append(make_row(site, str(layer), *numbers))
        if of_d:
            lines[site].append((layer, *of_d))
    return rows, dict(lines)


#: Of sites: query and value of one method are told apart by shade, dash and marker.
SITES = {"query": ("#D55E00", "-", "D"), "value": ("#E69F00", "--", "s"), "key": ("#CC79A7", "-.", "^")}


def _draw_layers(lines: dict[str, list[Point]], title: str, runs: int, canvas: Canvas) -> None:
    axes = canvas.subplots()
    spare = iter(["#009E73", "#56B4E9", "#0072B2", "#000000", "#777777", "#F0E442"] * 9)
    for site, points in sorted(lines.items(), key=lambda item: (item[0] not in SITES, item[0])):
        draw_band(axes, points, SITES.get(site) or (next(spare), ":", "o"), site)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("‖d - d_init‖₂")
    axes.set_ylim(bottom=0)
    several = f"median of {runs} runs, bands from the lowest to the highest"
    axes.set_title(f"{title}\n{several if runs > 1 else 'one run'}")
    if lines:
        axes.legend()
