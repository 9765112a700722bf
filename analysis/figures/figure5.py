"""Figure 5: the cosine of weight differences by layer."""

from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.figures.figure import COLOURS, Figure, Part
from analysis.figures.measures import Measured, bands, by_layer, draw_band, measured
from analysis.figures.points import suffix
from analysis.paper import paper

PAIRS = {"lora_vera": "LoRA and VeRA", "lora_random": "LoRA and random", "vera_random": "VeRA and random"}
LOOKS = {"LoRA and VeRA": (COLOURS["vera"], "-", "D"), "LoRA and random": (COLOURS["lora"], "--", "o")}
LOOKS |= {"VeRA and random": (COLOURS["random"], ":", "^")}
NOTHING = "Nothing measured: python -m runs experiment=figure5, then python -m runs.measure similarity."
DATA = ["pair", "source", "site", "layer", "median", "low", "high", "n", "runs"]


def make(part: Part) -> list[Figure]:
    """Cosine of weight differences by layer: LoRA against VeRA, and each against random (VeRA paper, appendix
    D)."""
    return [_of(part, group) for group in measured(part.runs, part.measures, "similarity")]


def _of(part: Part, group: Measured) -> Figure:
    long = by_layer(group.measures, list(PAIRS)).melt(["site", "layer", "ids"], list(PAIRS), "pair", "cosine")
    data = bands(long.assign(pair=long.pair.map(PAIRS)), ["pair", "site", "layer"], "cosine")
    notes = group.notes + [
        f"{of.pair}, layer {of.layer}, {of.site}: {of.of - of.n} of {of.of} have no cosine (a change that is zero)."
        for of in data[data.n < data.of].itertuples()
    ]
    means = drawn(data).groupby("pair", sort=False)["median"].mean()
    notes += [f"{pair}: mean over layers of what is drawn {mean:.1e}." for pair, mean in means.items()]
    ran = part.runs[part.runs.id.isin({run for ids in data.runs for run in ids})]
    if len(ran):
        notes.append(f"The runs are {' and '.join(sorted(set(ran.label)))}.")
    data = data.assign(source=part.whose).reindex(columns=DATA)
    if not group.measures:
        notes.append(NOTHING)
    if group.of_the_paper:
        printed = pd.DataFrame(
            [
                {"pair": PAIRS[key.removeprefix("mean_")], "source": "paper (quoted)", "site": "query"}
                | {"median": float(value), "runs": ()}
                for key, value in paper()["figure5"]["printed"].items()
            ]
        )
        data = pd.concat([data, printed], ignore_index=True) if len(data) else printed.reindex(columns=DATA)
        notes.append(
            "The paper prints two means, over the query matrices at rank 64 (quoted); it gives no value by layer."
        )
        notes.append(f"The paper's finding: {paper()['figure5']['finding']}.")
    else:
        notes.insert(0, f"{group.model} on {group.task} is not in the paper: no comparison with its means.")
    count, sites = len(group.measures), set(long.site)
    matrices = "query matrices" if "query" in sites or not sites else "all adapted matrices"
    subtitle = f"median of {count} pairs of runs, {matrices}" if count > 1 else matrices
    title = f"Figure 5: cosine of weight differences, {group.where}"
    return Figure(f"figure5{suffix(group.model, group.task)}", title, data, notes, _draw, subtitle)


def drawn(data: pd.DataFrame) -> pd.DataFrame:
    """The rows that are drawn: of the query matrices, where there are any."""
    of_query = data.site == "query"
    return data[(of_query | (not of_query.any())) & data["median"].notna()]


def _draw(axes: Any, data: pd.DataFrame) -> None:
    ours = drawn(data[data.layer.notna()])
    for pair, look in LOOKS.items():
        if len(line := ours[ours.pair == pair]):
            draw_band(axes, "layer", line.astype({"layer": int}), look, pair)
    for of in data[data.layer.isna()].itertuples():
        label = f"{of.pair}, paper's mean (quoted)"
        axes.axhline(of.median, color=LOOKS[of.pair][0], linestyle=(0, (1, 2)), linewidth=1, label=label)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("cosine")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if ours.empty:
        axes.set_xticks([])  # the paper's two means, and no layers
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
