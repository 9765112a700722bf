"""Figure 4: the performance gain for each 1,000 parameters over the head alone."""

from typing import Any

import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.figures import points
from analysis.figures.figure import Figure, Part, colour, finite, is_varied
from analysis.figures.points import LARGE, RTE
from analysis.paper import GLUE, NAMES, paper

GAIN = (
    "Gain, by the paper's formula: 100 x accuracy / accuracy of the head alone / thousands of parameters. A"
    " method that is no better than the head alone has 100 / thousands of parameters: the count weighs more"
    " than the accuracy."
)
IMPLIED = (
    "head, of the paper's: the head-only accuracy that follows from a printed value and table 2's accuracy."
    " The printed values do not follow from one such accuracy."
)
NO_HEAD = (
    "No run of the head alone on RTE is here, so that no gain of ours can be computed (experiment=figure4)."
)
DATA = ["method", "row", "kind", "source", "parameters", "accuracy", "head", "gain", "complete", "runs"]


def figure4(part: Part) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B): on RTE, and for
    each model and task whose metric is accuracy and that has runs of the head."""
    found = points.points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], 5)
    heads, figures = found[found.row == "head"], []
    # Table 2's rows; ranks and ablations have figures and tables of their own.
    found = found[(found.parameters > 0) & ~found.row.map(is_varied).astype(bool)]
    for model, task in points.paper_first(zip(heads.model, heads.task, strict=True)):
        of, head = points.of_pair(found, model, task), points.of_pair(heads, model, task)
        near, data = points.of_pair(part.runs, model, task), _gains(of, head, part.whose)
        notes = [GAIN, *points.notes(near, points.stacked(of, head))]
        if (model, task) == (LARGE, RTE):
            data = points.stacked(_printed(), data)
            notes.append(IMPLIED)
            if of.empty:
                notes.append("Nothing has run here: experiment=figure4 runs it.")
            elif head.empty:
                notes.append(NO_HEAD)
        else:
            notes.insert(0, points.not_in_the_paper(model, task))
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[task]}, {points.label_of(model, of)}"
        figures.append(Figure(f"figure4{points.suffix(model, task)}", title, data, notes, _draw))
    return figures


def _gains(of: pd.DataFrame, head: pd.DataFrame, whose: str) -> pd.DataFrame:
    """Our rows with their gains over the head; none where it has not run, or scored nothing."""
    if head.empty or not head["median"].iloc[0]:
        return pd.DataFrame(columns=DATA)
    alone = head.iloc[0]
    made = of.assign(
        kind=of.method, method=of.label, source=whose, accuracy=of["median"], head=alone["median"]
    )
    made["gain"] = 100 * made.accuracy / made["head"] / (made.parameters / 1000)
    made["complete"], made["runs"] = made.complete & alone.complete, [(*ids, *alone.ids) for ids in of.ids]
    return made.sort_values("parameters", kind="stable")[DATA]


def _printed() -> pd.DataFrame:
    """The paper's gains, with table 2's accuracies, exact counts, and the accuracy of the head that
    follows."""
    gains = paper()["figure4"]["printed"]
    rows = points.printed_rte().loc[list(gains)]
    made = rows.assign(accuracy=rows.value, gain=[*map(float, gains.values())], complete=True, kind=rows.row)
    made["method"] = rows.method.where(rows.row.isin(NAMES), rows.method + " " + rows["size"])
    made["head"] = 100 * made.accuracy / made.gain / (made.parameters / 1000)
    return made.assign(source="paper (quoted)", runs=[()] * len(made))[DATA]


def _draw(axes: Any, data: pd.DataFrame) -> None:
    data = data[data.gain.map(finite).notna()]
    quoted, order = data.runs.map(len) == 0, [*dict.fromkeys(data.row)]
    twice = data.row.isin(data.row[quoted]) & data.row.isin(data.row[~quoted])
    wide = 0.38 if 0 < quoted.sum() < len(quoted) else 0.6
    for of, is_quoted, both in zip(data.itertuples(), quoted, twice, strict=True):
        x, tint = order.index(of.row) + both * (-wide / 2 if is_quoted else wide / 2), colour(of.row, of.kind)
        look = {"hatch": "////"} if is_quoted else {}
        face = "white" if is_quoted or not of.complete else tint
        axes.bar(x, of.gain, wide * 0.92, facecolor=face, edgecolor=tint, linewidth=0.8, **look)
        text = f"{of.gain:.2g}" if of.gain < 0.1 else f"{of.gain:.2f}"
        axes.annotate(text, (x, of.gain), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    many = len(order) > 5
    names = data.drop_duplicates("row").method
    axes.set_xticks(range(len(order)), names, rotation=20 * many, ha="right" if many else "center")
    axes.grid(visible=False, axis="x")
    axes.set(yscale="log", ylabel="gain per 1K parameters, % (log)")
    axes.yaxis.set_major_formatter(FuncFormatter("{:g}".format))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.15)
    patches = [Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)")]
    for source in dict.fromkeys(data.source[~quoted]):
        fewer = "" if data.complete[~quoted].all() else " (hollow: fewer seeds)"
        patches.append(Patch(facecolor="#555555", label=f"{source}{fewer}"))
    axes.legend(handles=patches[not quoted.any() :], loc="best")
