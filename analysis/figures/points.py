"""Cells as points of a figure: the median and the range of their seeds, notes on them, and labels."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.transforms import Bbox, offset_copy

from analysis.beside import exact_counts, paper
from analysis.notes import notes as table_notes
from analysis.tables.view import View

#: The model and task of the paper's figures 2 to 5.
LARGE, RTE = "roberta_large", "rte"


def points(runs: pd.DataFrame, seeds: int | None = None) -> pd.DataFrame:
    """The cells of some runs by the number that their tables report (its `name`, whether `less` is better,
    its `digits`), with the `low` and the `high` of its seeds. All three numbers are NaN where a seed has
    none. seeds: of a complete cell; by default the protocol's."""
    found = View(runs).numbers(seeds)
    ends = {name: found["values"].map(of) for name, of in (("low", min), ("high", max))}
    return found.assign(**{name: values.where(found.n == found.runs) for name, values in ends.items()})


def notes(runs: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """Notes on the points of a picture: those that have fewer seeds than their protocol, and those of a
    table. runs: all of its models and tasks."""
    fewer = [f"{of.label} ({of.n}/{of.wanted})" for of in found.itertuples() if not of.complete]
    hollow = [f"hollow, of fewer seeds than the protocol's: {', '.join(fewer)}."] if fewer else []
    return [*hollow, *table_notes(runs, found)]


def stacked(*parts: pd.DataFrame) -> pd.DataFrame:
    """The parts below each other, without the empty ones."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def spanned(counts: Sequence[int]) -> str:
    """The least and the greatest count: "3 to 5"."""
    return " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))


def metric_label(name: str, digits: int = 1) -> str:
    """A metric as an axis calls it. digits: a fraction in percent has one, and a BLEU."""
    if name == "BLEU" or digits != 1:
        return name
    return f"{name}, %" if name == "accuracy" else f"{name.capitalize()} x 100"


# --- the paper's figure, and others of its kind


def paper_first(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Models and tasks in order, after those of the paper's figures, which are always there."""
    return [(LARGE, RTE), *sorted(set(pairs) - {(LARGE, RTE)})]


def suffix(model: str, task: str) -> str:
    """What the name of a figure that is not the paper's own ends with."""
    return "" if (model, task) == (LARGE, RTE) else f"_{model}_{task}"


def not_in_the_paper(model: str, task: str) -> str:
    """A note for a figure of another model and task than the paper's."""
    return f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE."


def of_pair(frame: pd.DataFrame, model: str, task: str) -> pd.DataFrame:
    """The rows of a model and task."""
    return frame[(frame.model == model) & (frame.task == task)]


def label_of(model: str, found: pd.DataFrame) -> str:
    """A model's label, by its cells; the paper's where it has none."""
    return found.model_label.iloc[0] if len(found) else "RoBERTa-large" if model == LARGE else model


def printed_rte() -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large by row, with the exact number of the row's
    `parameters`."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == LARGE}
    rows = of_pair(paper()[(paper().table == "table2") & paper().row.isin(counts)], LARGE, RTE)
    return rows.assign(parameters=rows.row.map(counts)).set_index("row", drop=False)


# --- labels

#: Where a label may lie: how far from its point, in points of type, and in which directions, the best first:
#: up and to the left of the frontier there is nothing, where more of y and less of x are better.
DISTANCES = (4, 9, 16, 26, 40, 60, 90)
DIRECTIONS = ((-1, 1), (-1, 0), (0, 1), (1, 1), (1, -1), (0, -1), (1, 0), (-1, -1))
#: From so far on a line leads to the label.
LEADS = 16


def write_labels(axes: Any, labels: pd.DataFrame, spots: Sequence[tuple[float, float]]) -> list[Any]:
    """Writes each label (text, x, y, colour) at the first free place around its point: inside the axes, and
    on no other label and no spot; where none is free, beside the point. A line leads to a distant one. Limits
    and scales of the axes must be final. Returns the texts."""
    axes.figure.get_layout_engine().execute(axes.figure)  # before it, a point has no place
    axes.figure.set_layout_engine("none")
    unit, frame, texts = axes.figure.dpi / 72, axes.get_window_extent(), list[Any]()
    taken = [Bbox([at - 3 * unit, at + 3 * unit]) for at in axes.transData.transform(spots)]
    places = [(away, *way) for away in DISTANCES for way in DIRECTIONS]
    for of in labels.itertuples():
        text = axes.text(of.x, of.y, of.text, fontsize=7, color=of.colour)
        for away, across, up in [*places, places[0]]:
            shift = offset_copy(axes.transData, axes.figure, away * across, away * up, units="points")
            text.set(
                transform=shift, ha=("center", "left", "right")[across], va=("center", "bottom", "top")[up]
            )
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and all(frame.contains(*corner) for corner in box.corners()):
                break
        taken.append(box)
        texts.append(text)
        if away >= LEADS:
            line: Any = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.6, "color": of.colour}
            end = (away * across, away * up)
            axes.annotate("", (of.x, of.y), end, textcoords="offset points", arrowprops=line)
    return texts
