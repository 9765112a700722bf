"""Figure 4: the performance gain for each 1,000 parameters over the head alone."""

from typing import Any

import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from analysis.figures import figure as shared
from analysis.figures.figure import Figure, Part, look
from analysis.notes import notes
from analysis.paper import GLUE, NAMES, paper

NOTHING = "Of rows and the head alone not both have run on RTE: no gain of ours (experiment=figure4)."
DATA = ["method", "row", "kind", "source", "parameters", "accuracy", "head", "gain", "complete", "runs"]


def figure4(part: Part) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B): on RTE, and for
    each model and task whose metric is accuracy and that has runs of the head."""
    found = shared.points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], 5)
    heads, figures = found[found.row == "head"], []
    # Table 2's rows; ranks and ablations have figures and tables of their own.
    found = found[(found.parameters > 0) & ~shared.is_varied(found.row)].sort_values(
        "parameters", kind="stable"
    )
    for pair, suffix, lines in shared.by_pair(zip(heads.model, heads.task, strict=True)):
        of, head = shared.of_pair(found, pair), shared.of_pair(heads, pair)
        data = pd.DataFrame(columns=DATA)
        if len(of) and len(head) and head["median"].iloc[0]:  # else there is no gain over it
            alone = head.iloc[0]
            data = of.assign(kind=of.method, method=of.label, source=part.whose, accuracy=of["median"])
            data = data.assign(head=alone["median"], complete=of.complete & alone.complete)
            data["runs"] = [(*ids, *alone.ids) for ids in of.ids]
            data["gain"] = 100 * data.accuracy / data["head"] / (data.parameters / 1000)
        lines += notes(shared.of_pair(part.runs, pair), shared.stacked(of, head))
        data = data[DATA]
        if pair == shared.PAPER:
            lines += [NOTHING] * data.empty
            data = shared.stacked(_printed(), data)
        label = of.model_label.iloc[0] if len(of) else "RoBERTa-large"
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[pair[1]]}, {label}"
        figures.append(Figure(f"figure4{suffix}", title, data, lines, _draw))
    return figures


def _printed() -> pd.DataFrame:
    """The paper's gains, with table 2's accuracies, exact counts, and the accuracy of the head that
    follows."""
    gains = paper()["figure4"]["printed"]
    made = shared.printed_rte([*gains]).assign(gain=[*map(float, gains.values())], source="paper (quoted)")
    made["method"] = made.method.where(made.row.isin(NAMES), made.method + " " + made["size"])
    made["head"] = 100 * made.value / made.gain / (made.parameters / 1000)
    return made.assign(accuracy=made.value, complete=True)[DATA]


def _draw(axes: Any, data: pd.DataFrame) -> None:
    data = data[data.gain.map(shared.finite).notna()]
    quoted, names = data.runs.map(len) == 0, data.drop_duplicates("row").set_index("row").method
    twice = data.row.isin(data.row[quoted]) & data.row.isin(data.row[~quoted])
    wide = 0.38 if 0 < quoted.sum() < len(quoted) else 0.6
    at = names.index.get_indexer(data.row) + twice * (wide / 2 - wide * quoted)
    edges = [look(of.kind, of.row)[0] for of in data.itertuples()]
    faces = pd.Series(edges, data.index).where(data.complete & ~quoted, "white")
    hatches = quoted.map({True: "////", False: ""})
    bars = axes.bar(at, data.gain, wide * 0.92, color=faces, edgecolor=edges, hatch=hatches, linewidth=0.8)
    axes.bar_label(bars, [f"{of:.2g}" for of in data.gain], padding=1, fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set(yscale="log", ylabel="gain per 1K parameters, % (log)")
    axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.minorticks_off()
    axes.margins(y=0.15)
    patches = [Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)")]
    fewer = "" if data.complete.all() else " (hollow: fewer seeds)"
    patches += [Patch(color="#555555", label=f"{of}{fewer}") for of in data.source[~quoted].unique()]
    axes.legend(handles=patches[not quoted.any() :])
