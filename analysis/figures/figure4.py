"""Figure 4: the performance gain for each 1,000 parameters over the head alone."""

from typing import Any

import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from analysis.figures.figure import (
    PAPER,
    Figure,
    Part,
    by_pair,
    finite,
    is_varied,
    look,
    notes,
    of_pair,
    points,
    printed_rte,
    stacked,
)
from analysis.paper import GLUE, NAMES, paper

NOTHING = (
    "The rows and the head alone have not both run on RTE, so there is no gain of ours (experiment=figure4)."
)
DATA = ["method", "row", "kind", "source", "parameters", "accuracy", "head", "gain", "complete", "runs"]


def figure4(part: Part) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B): on RTE, and for
    each model and task whose metric is accuracy and that has runs of the head."""
    found = points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], 5)
    heads, figures = found[found.row == "head"], []
    # Table 2's rows; ranks and ablations have figures and tables of their own.
    found = found[(found.parameters > 0) & ~is_varied(found.row)].sort_values("parameters", kind="stable")
    for pair, suffix, lines in by_pair(zip(heads.model, heads.task, strict=True)):
        of, head = of_pair(found, pair), of_pair(heads, pair)
        data = of.assign(kind=of.method, method=of.label, source=part.whose, accuracy=of["median"])
        if len(head) and head["median"].iloc[0]:  # else there is no gain over it
            alone = head.iloc[0]
            data = data.assign(head=alone["median"], complete=of.complete & alone.complete)
            data["runs"] = [(*ids, *alone.ids) for ids in of.ids]
            data["gain"] = 100 * data.accuracy / data["head"] / (data.parameters / 1000)
        data = data.reindex(columns=DATA)[: len(data) * ("gain" in data)]
        lines += notes(of_pair(part.runs, pair), stacked(of, head))
        if pair == PAPER:
            data = stacked(_printed(), data)
            lines += [NOTHING] * (of.empty or head.empty)
        label = of.model_label.iloc[0] if len(of) else "RoBERTa-large"
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[pair[1]]}, {label}"
        figures.append(Figure(f"figure4{suffix}", title, data, lines, _draw))
    return figures


def _printed() -> pd.DataFrame:
    """The paper's gains, with table 2's accuracies, exact counts, and the accuracy of the head that
    follows."""
    gains = paper()["figure4"]["printed"]
    made = printed_rte([*gains]).assign(gain=[*map(float, gains.values())], source="paper (quoted)")
    made["method"] = made.method.where(made.row.isin(NAMES), made.method + " " + made["size"])
    made["head"] = 100 * made.value / made.gain / (made.parameters / 1000)
    return made.assign(accuracy=made.value, complete=True)[DATA]


def _draw(axes: Any, data: pd.DataFrame) -> None:
    data = data[data.gain.map(finite).notna()]
    quoted, names = data.runs.map(len) == 0, data.drop_duplicates("row").set_index("row").method
    twice = data.row.isin(data.row[quoted]) & data.row.isin(data.row[~quoted])
    wide = 0.38 if 0 < quoted.sum() < len(quoted) else 0.6
    at = names.index.get_indexer(data.row) + twice * (wide / 2 - wide * quoted)
    edges = [look(of.kind, of.row)[0] for of in data.itertuples()]
    faces = pd.Series(edges, data.index).where(data.complete & ~quoted, "white")
    hatches = quoted.map({True: "////", False: ""})
    bars = axes.bar(at, data.gain, wide * 0.92, color=faces, edgecolor=edges, hatch=hatches, linewidth=0.8)
    words = [f"{of:.2g}" if of < 0.1 else f"{of:.2f}" for of in data.gain]
    axes.bar_label(bars, words, padding=1, fontsize=6)
    many = len(names) > 5
    axes.set_xticks(range(len(names)), names, rotation=20 * many, ha="right" if many else "center")
    axes.grid(visible=False, axis="x")
    axes.set(yscale="log", ylabel="gain per 1K parameters, % (log)")
    axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.minorticks_off()
    axes.margins(y=0.15)
    patches = [Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)")]
    fewer = "" if data.complete.all() else " (hollow: fewer seeds)"
    patches += [Patch(color="#555555", label=f"{of}{fewer}") for of in data.source[~quoted].unique()]
    axes.legend(handles=patches[not quoted.any() :])
