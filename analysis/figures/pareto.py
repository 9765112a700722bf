"""Two numbers of each row against each other, with the frontier: rows than which no
other is better in both."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

from analysis.figures import figure as shared
from analysis.figures.figure import Figure, Part, look
from analysis.frame import cells, in_cells, reported
from analysis.notes import notes
from analysis.paper import GLUE
from runs.record import TEXT_SCORES, median_interval, megabytes


class Axis(NamedTuple):
    """What an axis shows: a column of the runs, its label and ticks, whether less is
    better, and the name in the data."""

    column: str
    label: str = ""
    tick: Callable[[float], str] = "{:.4g}".format
    less: bool = True
    name: str = ""


#: The axes by the names that x= and y= take. What the metric is called is in the
#: records.
AXES = {
    "metric": Axis("number"),
    "parameters": Axis(
        "parameters", "trainable parameters, without a head", shared.PARAMETERS
    ),
    "bytes": Axis("adapter_bytes", "adapter file", megabytes),
    "seconds": Axis("seconds", "seconds of a run: training, evaluation and decoding"),
    "memory": Axis("peak_memory_bytes", "peak memory", megabytes),
    "forgetting": Axis("forgetting", "forgetting on a fixed text, nats a token"),
}
#: Of more rows than these the legend names the frontier, and the rows that the reader
#: asks for.
CROWDED = 25
#: The x axes of the pictures of a metric of so many rows.
COSTS = ("parameters", "bytes", "seconds", "memory")
FACTS = ["values", "digits", "n", "wanted", "frontier", "failed", "runs"]


def parameters(part: Part) -> Iterator[Figure]:
    """The pictures of the tasks of tables 2 and 5, with table 2's rows, without other
    ranks and ablations; where tasks are named, of these, whatever they are, with every
    row."""
    usual = part.runs.task.isin(list(GLUE)) | (part.runs.family == "images")
    usual &= ~part.runs.row.astype(str).str.match(shared.VARIED)
    return make(part if part.named else replace(part, runs=part.runs[usual]))


def demo(part: Part) -> Iterator[Figure]:
    """The pictures of the demo's task."""
    return make(replace(part, runs=part.runs[part.runs.task == "reviews"]))


def make(part: Part) -> Iterator[Figure]:
    """A picture for each model and task, and for each number of its rows
    (task.train_rows and dev_rows): of the axes of `part` or, where it has none, of the
    metric by parameters, and of very many rows by each of COSTS."""
    size = ["asked_train_rows", "asked_dev_rows"]
    for names, every in part.runs[part.runs.kind == "result"].groupby(
        ["task", "model"]
    ):
        for asked, of in (sizes := every.groupby(size)):
            rows = f", {of.train_rows.iloc[0]:,.0f} training and {of.dev_rows.iloc[0]:,.0f} dev rows"
            more, words = (rows, [*names, *asked]) if len(sizes) > 1 else ("", names)
            costs = COSTS if of.row.nunique() > CROWDED else COSTS[:1]
            for x, y in (
                [part.axes] if part.axes else [(cost, "metric") for cost in costs]
            ):
                file = "_".join(map(str, [y, "by", x, *words]))
                yield of_rows(of, (x, y), file, part.labels, more)


def of_rows(
    runs: pd.DataFrame,
    of: tuple[str, str],
    file: str,
    labels: Sequence[str] = (),
    more: str = "",
) -> Figure:
    """The picture of the rows of a model and task. of: its axes. file: its name.
    labels: the rows that the legend names beside the frontier (empty: all or, of very
    many, none). more: what the title says of the data."""
    runs = reported(runs)
    found = cells(runs, "number")
    number = found["name"].mode().iloc[-1]
    others = found[(found["name"] != number) & ("metric" in of)]
    lines = [
        f"{row.label}: reports {row.name}: not drawn." for row in others.itertuples()
    ]
    data = found = found.drop(others.index)
    axes = [_axis(name, found[found["name"] == number]) for name in of]
    names = [axis.name for axis in axes]
    for axis in axes:
        data, missing = _with_numbers(data, runs, axis)
        lines += missing
    data = data.dropna(subset=names)
    data = data.sort_values(
        [names[0], "label"], ascending=[axes[0].less, True], ignore_index=True
    )
    scores = {
        axis.column: -data[axis.name] if axis.less else data[axis.name] for axis in axes
    }
    data["frontier"] = on_frontier(*scores.values())
    data["failed"] = (
        _failed(data, scores["number"]) & ~data.frontier
        if "number" in scores
        else False
    )
    failed = [
        f"{row.label} ({row[number]:.{int(row.digits)}f})"
        for _, row in data[data.failed].iterrows()
    ]
    why = "failed (worse than the head alone, diverged, or one class), not drawn"
    foot = [f"{why}: {', '.join(failed)}"] * bool(failed)
    devices = sorted(set(in_cells(runs, found).device))
    if len(devices) > 1 and {"seconds", "memory"} & {*of}:
        lines.append(
            f"{', '.join(devices)}: seconds and memory of different machines do not compare."
        )
    title = f"{found.model_label.iloc[0]} on {found.task_label.iloc[0]}{more}"
    title += f": {names[1].partition(',')[0]} against {names[0].partition(',')[0]}"
    over = "one seed"
    # of five seeds or fewer the interval is their range (analysis/stats.py)
    if data.runs.max() > 1:
        over = f"median of {shared.spanned(data.runs)} seeds; bars: its interval"
    over += "; dashed: the frontier" + "; hollow: fewer seeds" * bool(
        (data.n < data.wanted).any()
    )
    ends = [f"{name}{end}" for name in names for end in ("", " low", " high")]
    data = data.assign(kind=data.method, method=data.label, runs=data.ids)
    data = data[["method", "row", "kind", *ends, *FACTS]]
    draw, size = (
        partial(_draw, axes=axes, labels=labels),
        (7, 6.4 if len(data) > CROWDED else 4.4),
    )
    return Figure(
        file, title, data, [*lines, *foot, *notes(runs, found)], draw, over, foot, size
    )


def _axis(name: str, found: pd.DataFrame) -> Axis:
    """The axis of this name; the metric's has the words of the number that the rows
    report."""
    axis, first = AXES[name]._replace(name=name), found.iloc[0]
    if name != "metric":
        return axis
    metric, comma, epoch = first["name"].partition(", ")
    # Texts are those of the test set
    dev = "" if metric in [of.name for of in TEXT_SCORES.values()] else "dev "
    label = f"{dev}{shared.metric_label(metric, int(first.digits))}{comma}{epoch}"
    return axis._replace(
        label=label, less=bool(first.lower_is_better), name=first["name"]
    )


def _with_numbers(
    found: pd.DataFrame, runs: pd.DataFrame, axis: Axis
) -> tuple[pd.DataFrame, list[str]]:
    """The cells with the numbers of an axis: medians over the seeds that have one, with
    their intervals; and notes on the seeds that lack it."""
    # What a run cost that diverged, and so ended early, is no cost of the row
    counts = (runs.status == "done") | (axis.column in ("number", "parameters"))
    of_run = dict(zip(runs.id, runs[axis.column].where(counts), strict=True))
    each = shared.finite(found.ids.explode().map(of_run)).groupby(level=0)
    ends = each.agg(lambda of: median_interval([*of.dropna()]) or (of.max(),) * 2)
    missing = zip(found.label, each.size(), each.count(), strict=True)
    lines = [
        f"{row}: {n - has} of {n} runs without a finite {axis.name}."
        for row, n, has in missing
        if has < n
    ]
    of = {
        "": each.median(),
        " low": ends.str[0].astype(float),
        " high": ends.str[1].astype(float),
    }
    return found.assign(
        **{f"{axis.name}{end}": value for end, value in of.items()}
    ), lines


# --- the frontier, and what is far from the others


def on_frontier(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Of each point whether no other is better in one number and at least as good in
    the other. More is better."""
    spots = list(zip(x, y, strict=True))
    return [
        not any(a >= x and b >= y and (a, b) != (x, y) for a, b in spots)
        for x, y in spots
    ]


def fence(values: pd.Series) -> tuple[float, float]:
    """Tukey's outer fence: three interquartile ranges outside the quartiles."""
    first, third = (
        np.percentile(values, [25, 75]) if len(values) else (math.nan, math.nan)
    )
    return first - 3 * (third - first), third + 3 * (third - first)


def _failed(data: pd.DataFrame, score: pd.Series) -> pd.Series:
    """The rows that have failed so far from the others that they would squeeze the
    picture: worse than each row that trains nothing but a head, or most of whose seeds
    diverged or predict one class; and below the outer fence. score: the metric, more is
    better."""
    worse = score < score[data.parameters == 0].min()  # of no such row nothing is
    broken = (data.diverged + data.one_class.map(len)) * 2 > data.runs
    return (worse | broken) & (score < fence(score)[0])


def _draw(
    plot: Any, data: pd.DataFrame, axes: Sequence[Axis], labels: Sequence[str]
) -> None:
    drawn, (x, y), of_metric = (
        data[~data.failed],
        (axis.name for axis in axes),
        axes[1].column == "number",
    )
    for side, axis in zip("xy", axes, strict=True):
        _scale(plot, side, drawn[axis.name], axis)
        # A bar whose end is far from all others leaves the picture, and squeezes no
        # axis
        low, high = drawn[f"{axis.name} low"], drawn[f"{axis.name} high"]
        near = pd.concat(
            [drawn[axis.name], low[low >= fence(low)[0]], high[high <= fence(high)[1]]]
        )
        plot.update_datalim(
            [(of, of) for of in near], updatex=side == "x", updatey=side == "y"
        )
    plot.margins(0.12)
    plot.autoscale_view()
    plot.autoscale(enable=False)
    looks, few = [*map(look, drawn.kind, drawn.row)], len(data) <= CROWDED
    bars = [
        (drawn[of] - drawn[f"{of} low"], drawn[f"{of} high"] - drawn[of])
        for of in (y, x)
    ]
    colours = [colour for colour, _ in looks]
    plot.errorbar(
        drawn[x], drawn[y], *bars, fmt="none", ecolor=colours, alpha=0.6, elinewidth=1
    )
    named = drawn.frontier | drawn.row.isin(labels) | (few and not labels)
    for of, (colour, marker), shown in zip(
        drawn.to_dict("records"), looks, named, strict=True
    ):
        if of_metric and few:
            plot.plot(
                [of[x]] * len(of["values"]), of["values"], ".", color=colour, alpha=0.6
            )
        text = (
            f"{of['method']}: {of[y]:.{int(of['digits'])}f}"
            if of_metric
            else of["method"]
        )
        how = {"label": text, "markersize": 6} if shown else {"alpha": 0.5}
        face = colour if of["n"] >= of["wanted"] else "white"
        plot.plot(
            of[x], of[y], marker, color=colour, markerfacecolor=face, zorder=3, **how
        )
    if named.any():
        plot.figure.legend(loc="outside right center", fontsize=7, reverse=True)
    best = drawn[drawn.frontier]
    # at an x the line is at the best y that a row at least as good in x has
    if len(best):
        end, worst = plot.get_xlim()[axes[0].less], plot.get_ylim()[axes[1].less]
        across, up = (
            [best[x].iloc[0], *best[x], end],
            [worst, *best[y], best[y].iloc[-1]],
        )
        plot.step(
            across,
            up,
            where="post",
            color="#555555",
            linewidth=0.9,
            linestyle="--",
            zorder=1,
        )


def _scale(plot: Any, side: str, values: pd.Series, axis: Axis) -> None:
    """The label and ticks of an axis: a logarithmic one where costs differ widely, with
    a linear piece for zeros."""
    positive, of_side = values[values > 0], getattr(plot, f"{side}axis")
    plot.set(**{f"{side}label": axis.label})
    if axis.less and values.min() >= 0 and positive.max() > 10 * positive.min():
        if values.min() == 0:
            low = 10.0 ** np.floor(np.log10(positive.min()))
            getattr(plot, f"set_{side}scale")("symlog", linthresh=low, linscale=0.4)
            of_side.set_major_locator(FixedLocator([0.0, *low * 10.0 ** np.arange(12)]))
        else:
            getattr(plot, f"set_{side}scale")("log")
            of_side.set_major_locator(LogLocator(subs=(1, 2, 5)))
        of_side.minorticks_off()
    of_side.set_major_formatter(FuncFormatter(lambda value, _: axis.tick(value)))
