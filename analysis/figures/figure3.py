"""Figure 3: how far d has moved, by layer and site."""

from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.figures.figure import Figure, Part
from analysis.figures.measures import bands, by_layer, draw_band, measured
from analysis.figures.points import not_in_the_paper, suffix
from analysis.paper import paper

NOTHING = "Nothing measured: python -m runs experiment=figure3, then python -m runs.measure magnitude."


def make(part: Part) -> list[Figure]:
    """How far d has moved, by layer and site: a figure for each model and task with measures of the row
    vera."""
    figures = []
    for group in measured(
        part.runs, part.measures, "magnitude", lambda of: of["of"][0]["cell"]["row"] == "vera"
    ):
        values = by_layer(group.measures, ["d", "b"])
        data = bands(values, ["site", "layer"], "d")
        data["b"] = bands(values, ["site", "layer"], "b")["median"]
        notes = group.notes + [
            f"layer {of.layer}, {of.site}: {of.of - of.n} of {of.of} runs have no finite change of d."
            for of in data[data.n < data.of].itertuples()
        ]
        if not group.measures:
            notes.append(NOTHING)
        if group.of_the_paper:
            notes.append("The paper prints no numbers of this figure.")
            notes.append(f"The paper's finding: {paper()['figure3']['finding']}.")
        else:
            notes.insert(0, not_in_the_paper(group.model, group.task))
        count = len(group.measures)
        several = f"median of {count} runs, bands from the lowest to the highest" if count > 1 else "one run"
        title, name = (
            f"Figure 3: change of d by layer, {group.where}",
            f"figure3{suffix(group.model, group.task)}",
        )
        data = data[["site", "layer", "median", "low", "high", "b", "n", "runs"]]
        figures.append(Figure(name, title, data, notes, _draw, several))
    return figures


#: Of sites: query and value of one method are told apart by shade, dash and marker.
SITES = {"query": ("#D55E00", "-", "D"), "value": ("#E69F00", "--", "s"), "key": ("#CC79A7", "-.", "^")}
SPARE = ("#009E73", "#56B4E9", "#0072B2", "#000000", "#777777", "#F0E442")


def _draw(axes: Any, data: pd.DataFrame) -> None:
    spare = iter(SPARE * 9)
    known = data.dropna(subset="median")
    for site in sorted(known.site.unique(), key=lambda site: (site not in SITES, site)):
        look = SITES.get(site) or (next(spare), ":", "o")
        draw_band(axes, "layer", known[known.site == site], look, site)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("‖d - d_init‖₂")
    axes.set_ylim(bottom=0)
    if len(known):
        axes.legend()
