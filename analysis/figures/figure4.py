"""Figure 4: the performance gain for each 1,000 parameters over the head alone."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.figures.figure import Figure, Part, colour, is_varied
from analysis.figures.points import (
    LARGE,
    RTE,
    not_in_the_paper,
    notes,
    of_pair,
    paper_first,
    points,
    printed_rte,
    suffix,
)
from analysis.paper import GLUE, NAMES, paper

GAIN = (
    "Gain, by the paper's formula: 100 x accuracy / accuracy of the head alone / thousands of parameters. A method"
    " that is no better than the head alone has 100 / thousands of parameters: the count weighs more than the"
    " accuracy."
)
IMPLIED = (
    "head, of the paper's: the head-only accuracy that follows from a printed value and table 2's accuracy. The"
    " printed values do not follow from one such accuracy."
)
NO_HEAD = (
    "No run of the head alone on RTE is here, so that no gain of ours can be computed (experiment=figure4)."
)
DATA = ["method", "row", "kind", "source", "parameters", "accuracy", "head", "gain", "complete", "runs"]


def make(part: Part) -> list[Figure]:
    """Performance gain per 1,000 parameters over the head alone (VeRA paper, appendix B): on RTE, and for
    each model and task whose metric is accuracy and that has runs of the head."""
    found = points(part.runs[part.runs.task.isin(list(GLUE)) & (part.runs.metric == "accuracy")], seeds=5)
    with_head = found[found.row == "head"]
    figures = []
    for model, task in paper_first(zip(with_head.model, with_head.task, strict=True)):
        every, label = of_pair(found, model, task)
        # Table 2's rows; ranks and ablations have figures and tables of their own.
        of = every[(every.row != "head") & (every.parameters > 0) & ~every.row.map(is_varied).astype(bool)]
        head = every[every.row == "head"]
        lines, data = [GAIN, *notes(pd.concat([of, head]) if len(head) else of)], _gains(of, head, part.whose)
        if (model, task) == (LARGE, RTE):
            data = pd.concat([_printed(), data], ignore_index=True) if len(data) else _printed()
            lines.append(IMPLIED)
            if head.empty and len(of):
                lines.append(NO_HEAD)
            if of.empty:
                lines.append("Nothing has run here: experiment=figure4 runs it.")
        else:
            lines.insert(0, not_in_the_paper(model, task))
        title = f"Figure 4: gain per 1K trainable parameters on {GLUE[task]}, {label}"
        figures.append(Figure(f"figure4{suffix(model, task)}", title, data, lines, _draw))
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
    made["complete"] &= bool(alone.complete)
    made["runs"] = [(*ids, *alone.runs) for ids in made.runs]
    return made.sort_values("parameters", kind="stable")[DATA]


def _printed() -> pd.DataFrame:
    """The paper's gains, with table 2's accuracies, exact counts, and the accuracy of the head that follows."""
    gains = {row: float(gain) for row, gain in paper()["figure4"]["printed"].items()}
    rows = printed_rte().loc[list(gains)]
    made = rows.assign(row=rows.index, kind=None, source="paper (quoted)", parameters=rows["count"])
    made["method"] = [
        m if row in NAMES else f"{m} {size}" for row, m, size in rows[["method", "size"]].itertuples()
    ]
    made = made.assign(accuracy=made.value, gain=made.row.map(gains), complete=True, runs=[()] * len(made))
    made["head"] = 100 * made.accuracy / made.gain / (made.parameters / 1000)
    return made[DATA]


def _draw(axes: Any, data: pd.DataFrame) -> None:
    drawn = data[np.isfinite(data.gain.astype(float))]
    quoted = drawn.runs.map(len) == 0
    order = list(dict.fromkeys(drawn.row))
    twice = set(drawn.row[quoted]) & set(drawn.row[~quoted])
    wide = 0.38 if quoted.any() and not quoted.all() else 0.6
    for of, is_quoted in zip(drawn.itertuples(), quoted, strict=True):
        shift = (-wide / 2 if is_quoted else wide / 2) if of.row in twice else 0
        tint = colour(of.row, of.kind)
        face = "white" if is_quoted or not of.complete else tint
        x, hatch = order.index(of.row) + shift, "////" if is_quoted else None
        axes.bar(x, of.gain, wide * 0.92, facecolor=face, hatch=hatch, edgecolor=tint, linewidth=0.8)
        text = f"{of.gain:.2g}" if of.gain < 0.1 else f"{of.gain:.2f}"
        axes.annotate(text, (x, of.gain), (0, 2), textcoords="offset points", ha="center", fontsize=6)
    names = drawn.drop_duplicates("row").method
    many = len(order) > 5
    axes.set_xticks(range(len(order)), names, rotation=20 * many, ha="right" if many else "center")
    axes.grid(visible=False, axis="x")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.15)
    axes.set_ylabel("gain per 1K parameters, % (log)")
    patches = []
    if quoted.any():
        patches.append(Patch(facecolor="white", hatch="////", edgecolor="#555555", label="paper (quoted)"))
    if not quoted.all():
        fewer = "" if drawn.complete[~quoted].all() else " (hollow: fewer seeds)"
        patches.append(Patch(facecolor="#555555", label=f"{drawn.source[~quoted].iloc[0]}{fewer}"))
    axes.legend(handles=patches, loc="best")
