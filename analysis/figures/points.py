"""What figures share: cells as points, notes on them, the paper's model and task, and lines with bands."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.beside import exact_counts, paper
from analysis.figures.figure import OTHERS
from analysis.frame import reported_cells
from analysis.notes import notes as table_notes

#: The model and task of the paper's figures 2 to 5.
PAPER = "roberta_large", "rte"


def points(runs: pd.DataFrame, seeds: int | None = None) -> pd.DataFrame:
    """The cells of some runs by the number that their tables report (its `name`, whether `less` is better,
    its `digits`), with the `low` and the `high` of its seeds. All three numbers are NaN where a seed has
    none. seeds: of a complete cell; by default the protocol's."""
    found = reported_cells(runs, seeds=seeds)
    low, high = (found["values"].map(end).where(found.n == found.runs) for end in (min, max))
    return found.assign(low=low, high=high)


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


def by_pair(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], str, list[str]]]:
    """Models and tasks in order, after those of the paper's figures, which are always there: each with what
    the figure's name ends with, and a note where the paper has no such figure."""
    yield PAPER, "", []
    for model, task in sorted(set(pairs) - {PAPER}):
        note = f"{model} on {task} is not in the paper, whose figure is RoBERTa-large on RTE."
        yield (model, task), f"_{model}_{task}", [note]


def of_pair(frame: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """The rows of a model and task."""
    return frame[(frame.model == pair[0]) & (frame.task == pair[1])]


def printed_rte(rows: Sequence[str]) -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large of these rows, with their exact `parameters` and the
    columns of a figure's data."""
    counts = {entry["method"]: entry["count"] for entry in exact_counts() if entry["model"] == PAPER[0]}
    table2 = of_pair(paper()[paper().table == "table2"], PAPER).set_index("row", drop=False).loc[[*rows]]
    kind = table2.row.str.partition("_")[0]
    return table2.assign(parameters=table2.row.map(counts), kind=kind, runs=[()] * len(table2))


# --- drawing


def draw_bands(
    axes: Any, data: pd.DataFrame, by: str, looks: Mapping[str, Sequence[Any]], x: str, y: str = "median"
) -> None:
    """A line for each value of a column, with a band from `low` to `high`. looks: the colours, dashes and
    markers of these values, in the order of the legend."""
    for i, name in enumerate([*looks, *sorted({*data[by]} - {*looks})]):
        of, other = data[data[by] == name].sort_values(x), (OTHERS[i % len(OTHERS)], ":", "o")
        colour, dash, marker = looks.get(name, other)
        if len(of):
            axes.fill_between(of[x].astype(float), of.low, of.high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(of[x], of[y], dash, marker=marker, markersize=4, color=colour, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
