"""Cells as points of a figure: the median and the range of their seeds, what is missing of them, and labels."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.beside import exact_counts, paper
from analysis.figures.figure import colour, marker
from analysis.frame import KEY, cells, reported
from runs.record.text import plural

#: The model and task of the paper's figures 2 to 5.
LARGE, RTE = "roberta_large", "rte"


def points(runs: pd.DataFrame, seeds: int | None = None) -> pd.DataFrame:
    """The cells of some runs by the number that their tables report (its `name`, whether `less` is better, its
    `digits`), with the `low` and the `high` of its seeds. All three numbers are NaN where a seed has none. seeds:
    of a complete cell; by default the protocol's."""
    runs = reported(runs)
    found = cells(runs, "number", seeds)
    about = runs.drop_duplicates("cell").set_index("cell")[["name", "less", "digits"]]
    found = found.assign(runs=found.get("ids"), of=found.get("runs"))
    return found.join(about, on="cell").assign(
        low=[min(values) if known else None for values, known in _known(found)],
        high=[max(values) if known else None for values, known in _known(found)],
    )


def _known(found: pd.DataFrame) -> Iterable[tuple[Any, bool]]:
    return zip(found.get("values", ()), found.get("n", ()) == found.get("of", ()), strict=True)


def notes(found: pd.DataFrame) -> list[str]:
    """Notes on missing and diverged seeds, on unlike data, and on what `cells` has left out."""
    lines = list[str]()
    if len(fewer := found[~found.complete.astype(bool)]):
        names = ", ".join(f"{of.label} ({of.n}/{of.wanted})" for of in fewer.itertuples())
        lines.append(f"hollow, of fewer seeds than the protocol's: {names}.")
    for of in found.itertuples():
        if of.n < of.of:
            lines.append(
                f"{of.label}: {of.of - of.n} of {of.of} runs finished without the number (nan): not drawn."
            )
        if of.diverged:
            lines.append(
                f"{of.label}: {of.diverged} of {of.of} seeds diverged: counted by their {of.reported} epoch, "
                "without one by the worst value."
            )
        if of.again:
            lines.append(f"{of.label}: a second run of a seed, left out: {', '.join(of.again)}.")
        if of.left_out:
            lines.append(f"{of.label}: {plural(of.left_out, 'run')} with other settings left out.")
        if of.older:
            lines.append(
                f"{of.label}: protocol {', '.join(map(str, of.older))} is not mixed with {of.protocol}."
            )
    sizes = found.groupby(["train_rows", "dev_rows"]).label.agg(", ".join)
    if len(sizes) > 1:
        lines += [
            f"{train:,.0f} training and {dev:,.0f} dev rows: {of}." for (train, dev), of in sizes.items()
        ]
    return lines


def heads(found: pd.DataFrame) -> str:
    """What an axis of trained parameters is called, with the count of the head where these cells share it."""
    counts = {int(count) for count in found.head_parameters}
    if counts == {0}:
        return "trainable parameters"
    more = f" ({counts.pop():,} more)" if len(counts) == 1 else ""
    return f"trainable parameters, without the classification head{more}"


# --- the paper's figure, and others of its kind


def paper_first(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Models and tasks in order, after those of the paper's figures, which are always there."""
    return [(LARGE, RTE), *sorted(set(pairs) - {(LARGE, RTE)})]


def not_in_the_paper(model: str, task: str) -> str:
    """A note for a figure of another model and task than the paper's."""
    return f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE."


def printed_rte() -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large by row, with the exact `count` of the row's parameters."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == LARGE}
    rows = paper().query("table == 'table2' and model == @LARGE and task == @RTE").set_index("row")
    return rows.assign(count=pd.Series(counts)).dropna(subset="count").astype({"count": int})


def suffix(model: str, task: str) -> str:
    """What the name of a figure that is not the paper's own ends with."""
    return "" if (model, task) == (LARGE, RTE) else f"_{model}_{task}"


def of_pair(found: pd.DataFrame, model: str, task: str) -> tuple[pd.DataFrame, str]:
    """The cells of a model and task, and the model's label; the paper's where there is none."""
    of = found[(found.model == model) & (found.task == task)]
    return of, of.model_label.iloc[0] if len(of) else "RoBERTa-large" if model == LARGE else model


# --- drawing


def draw_point(axes: Any, x: float, of: Any, label: str | None = None) -> None:
    """A cell's median and the range of its seeds; hollow where seeds are missing."""
    tint = colour(of.row, of.kind)
    axes.plot([x, x], [of.low, of.high], color=tint, alpha=0.6)
    face, form = tint if of.n >= of.wanted else "white", marker(of.row, of.kind)
    axes.plot(x, of.median, form, color=tint, markerfacecolor=face, label=label, zorder=3)


#: Where a label may lie: how far from its point, in points of type, and in which directions, the best first.
DISTANCES = (5, 10, 18, 28, 40, 55)
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))


def write_labels(axes: Any, labels: pd.DataFrame, spots: pd.DataFrame) -> None:
    """Writes each label (text, x, y, colour) at the first free place around its point: inside the axes, and on no
    other label and no spot (x, y). A line leads from a distant one to its point. Where no place is free it is at
    the farthest. Limits and scales of the axes must be final."""
    axes.figure.draw_without_rendering()  # the layout: before it, a point has no place
    unit, frame = axes.figure.dpi / 72, axes.get_window_extent()
    taken = [
        Bbox.from_extents(*(at - 3 * unit), *(at + 3 * unit))
        for at in axes.transData.transform(spots[["x", "y"]])
    ]
    places = [(away, *way) for away in DISTANCES for way in DIRECTIONS]
    for of in labels.itertuples():
        line = {
            "arrowstyle": "-",
            "linewidth": 0.5,
            "alpha": 0.6,
            "color": of.colour,
            "shrinkA": 0,
            "shrinkB": 2,
        }
        look: Any = {"textcoords": "offset points", "fontsize": 7, "color": of.colour, "arrowprops": line}
        text = axes.annotate(of.text, (of.x, of.y), (0, 0), **look)
        for away, across, up in places:
            text.set_position((away * across, away * up))
            text.set_ha({1: "left", 0: "center", -1: "right"}[across])
            text.set_va({1: "bottom", 0: "center", -1: "top"}[up])
            box = Text.get_window_extent(text)  # without the line
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken):
                break
        taken.append(box)
