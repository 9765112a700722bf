"""Two numbers of each row against each other, with the frontier: rows than which no other is better in
both."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.figures.figure import (
    Figure,
    Part,
    colour,
    marker,
    metric_label,
    nothing,
    parameter_count,
    spanned,
)
from analysis.figures.points import heads, notes, points, write_labels
from analysis.frame import KEY, cells, reported
from runs.record import median_interval
from runs.record.text import megabytes


@dataclass(frozen=True)
class Axis:
    """What an axis shows: a column of the runs, how the axis is called, its ticks (None: as numbers), and from which
    ratio of its values on it is logarithmic. less: whether less is better. of_done: of runs that did not diverge
    alone, which end early. The label of the metric and of the parameters, and the metric's direction, are the
    records'."""

    column: str
    label: str = ""
    tick: Callable[[float], str] | None = None
    wide: float = 10.0
    less: bool = True
    of_done: bool = True


#: The axes by the names that x= and y= take.
AXES = {
    "metric": Axis("number", of_done=False),
    "parameters": Axis("parameters", tick=parameter_count, wide=5, of_done=False),
    "bytes": Axis("adapter_bytes", "adapter file", megabytes),
    "seconds": Axis("seconds", "seconds of a run: training, evaluation and decoding"),
    "memory": Axis("peak_memory_bytes", "peak memory", megabytes),
    "forgetting": Axis("forgetting", "forgetting on a fixed text, nats a token", wide=math.inf),
}
USUAL = ("parameters", "metric")
#: What depends on the machine.
OF_DEVICES = {"seconds", "memory"}
#: Of more rows than these, labels stand at the frontier alone, unless the reader asks for others.
CROWDED = 25


def make(part: Part) -> list[Figure]:
    """A picture for each model and task."""
    x, y = part.axes
    runs = part.runs[part.runs.kind == "result"]
    groups = (runs[runs.task.isin(part.tasks)] if part.tasks else runs).groupby(["task", "model"])
    figures = [
        of_rows(of, part.axes, f"pareto_{y}_by_{x}_{task}_{model}", part.labels)
        for (task, model), of in groups
    ]
    return figures or [nothing("pareto", f"{y} against {x}", "Nothing has run: make demo.")]


def of_rows(
    runs: pd.DataFrame, names: tuple[str, str], file: str, labels: Sequence[str] = (), more: str = ""
) -> Figure:
    """The picture of the rows of a model and task. names: of its axes. file: the name of the figure. labels: the
    rows that have one beside the frontier's (empty: all or, of very many, none). more: what the title says of the
    data."""
    found = points(runs)
    number = max(found.name, key=lambda name: ((found.name == name).sum(), name))
    other = found[(found.name != number) & ("metric" in names)]
    lines = [
        f"{of.label}: reports {of.name}, and the others {number}: not drawn." for of in other.itertuples()
    ]
    found = found.drop(other.index)
    axes = [_axis(name, found[found.name == number]) for name in names]
    data, missing = _numbers(found, reported(runs), names)
    signs = [-1.0 if axis.less else 1.0 for axis in axes]
    data["frontier"] = on_frontier(data.x * signs[0], data.y * signs[1])
    at = "xy"[names.index("metric")] if "metric" in names else ""
    data["aside"] = _failed(data, data[at] * signs["xy".index(at)]) & ~data.frontier if at else False
    crowded = len(data) > CROWDED
    data["labelled"] = data.frontier | data.row.isin(labels) | (not crowded and not labels)
    beside = _beside(data, at, axes)
    lines += [*notes(found), *missing, *_unlike(runs, names), *beside]
    if crowded or labels:
        lines.append("Labels: the frontier, and those of labels=. Every row is in the data.")
    if data.empty:
        lines.insert(0, "no row has both numbers.")
    words = [number.partition(",")[0] if name == "metric" else name for name in names]
    about, shown = found.iloc[0], [number if name == "metric" else name for name in names]
    title = f"{about.model_label} on {about.task_label}{more}: {words[1]} against {words[0]}"
    data = data.sort_values(["x", "label"], ascending=[axes[0].less, True], kind="stable", ignore_index=True)
    columns = {
        f"{side}{end}": f"{name}{end.replace('_', ' ')}"
        for side, name in zip("xy", shown, strict=True)
        for end in ENDS
    }
    data = data.rename(columns={"method": "kind", "label": "method"})[DATA].rename(columns=columns)
    draw = partial(_draw, axes=axes, columns={new: old for old, new in columns.items()})
    return Figure(file, title, data, lines, draw, _subtitle(data), beside, (7, 6.4 if crowded else 4.4))


ENDS = ("", "_low", "_high")
DATA = ["method", "row", "kind", *(f"{side}{end}" for side in "xy" for end in ENDS)]
DATA += ["values", "digits", "n", "wanted", "frontier", "aside", "labelled", "runs"]


def _axis(name: str, found: pd.DataFrame) -> Axis:
    """The axis of this name; the metric's has the words of the number that the rows report."""
    axis, first = AXES[name], found.iloc[0]
    if name == "parameters":
        return replace(axis, label=heads(found))
    if name != "metric":
        return axis
    metric, comma, epoch = first["name"].partition(", ")
    dev = "" if metric == "BLEU" else "dev "  # texts are those of the test set
    label = f"{dev}{metric_label(metric, first.digits)}{comma}{epoch}"
    return replace(axis, label=label, less=bool(first.less), wide=10.0 if first.less else math.inf)


def _numbers(
    found: pd.DataFrame, runs: pd.DataFrame, names: tuple[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """The cells that have both numbers, x and y: medians over the seeds, with their intervals; and notes on the seeds
    that lack one."""
    lines = []
    for side, name in zip("xy", names, strict=True):
        axis = AXES[name]
        values = pd.to_numeric(runs[axis.column]).replace([math.inf, -math.inf], math.nan)
        done = runs.assign(of_axis=values.where(runs.status == "done") if axis.of_done else values)
        by_key = cells(done, "of_axis").set_index(KEY)["values"]
        known = [
            [v for v in by_key[key] if not math.isnan(v)]
            for key in found[KEY].itertuples(index=False, name=None)
        ]
        for label, count, values in zip(found.label, found.of, known, strict=True):
            if len(values) < count:
                drawn = "left out" if values else "not drawn"
                lines.append(
                    f"{label}: {count - len(values)} of {count} runs without a finite {name}: {drawn}."
                )
        middles = [statistics.median(values) if values else math.nan for values in known]
        spans = [median_interval(values) or (m, m) for values, m in zip(known, middles, strict=True)]
        low, high = zip(*spans, strict=True) if spans else ((), ())
        found = found.assign(**{side: middles, f"{side}_low": low, f"{side}_high": high})
    return found.dropna(subset=["x", "y"]), lines


def _unlike(runs: pd.DataFrame, names: tuple[str, str]) -> list[str]:
    """Notes on numbers that do not compare."""
    lines, devices = [], sorted(set(runs.device))
    if len(devices) > 1 and OF_DEVICES & {*names}:
        lines.append(f"{', '.join(devices)}: seconds and memory of different machines do not compare.")
    if "memory" in names and (runs.device_type == "cpu").any():
        lines.append("memory on a CPU: the largest of the process, the libraries included.")
    if "forgetting" in names and runs.forgetting_text[runs.forgetting.notna()].nunique() > 1:
        lines.append("forgetting was measured on several texts, which do not compare.")
    return lines


def _subtitle(data: pd.DataFrame) -> str:
    """How many seeds, and what the lines are."""
    counts = [len(runs) for runs in data.runs] or [0]
    if max(counts) < 2:
        return "one seed; dashed: the frontier"
    # Of five seeds or fewer the interval is their range (analysis/stats.py)
    bars = "95% interval of the median" if max(counts) > 5 else "lowest to highest"
    return f"median of {spanned(counts)} seeds; bars: {bars}; dashed: the frontier"


# --- the frontier, and what is far from the others


def on_frontier(x: pd.Series, y: pd.Series) -> list[bool]:
    """Of each point whether no other is better in one number and at least as good in the other. More is better."""
    points_ = list(zip(x, y, strict=True))
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points_) for x, y in points_]


def fence(values: pd.Series) -> tuple[float, float]:
    """Tukey's outer fence: three interquartile ranges outside the quartiles."""
    first, third = np.percentile(values, [25, 75]) if len(values) else (math.nan, math.nan)
    return float(first - 3 * (third - first)), float(third + 3 * (third - first))


def _failed(data: pd.DataFrame, score: pd.Series) -> pd.Series:
    """The rows that have failed and lie far from the others, so that they would squeeze the picture: worse than each
    row that trains nothing but a head, or most of whose seeds diverged or predict one class; and below the outer
    fence. score: the metric, more is better."""
    floor = score[data.parameters == 0].min()  # NaN where nothing is below it
    failed = (score < floor) | ((data.diverged + data.one_class.map(len)) * 2 > data.of)
    return failed & (score < fence(score)[0])


def limits(data: pd.DataFrame, side: str) -> tuple[float, float]:
    """From where to where an axis goes: all medians of the rows that are drawn, and the bars that end inside the
    outer fence of such ends."""
    drawn = data[~data.aside]
    low, high = drawn[f"{side}_low"], drawn[f"{side}_high"]
    near = [*drawn[side], *low[low >= fence(low)[0]], *high[high <= fence(high)[1]]]
    return min(near, default=math.nan), max(near, default=math.nan)


def _beside(data: pd.DataFrame, at: str, axes: Sequence[Axis]) -> list[str]:
    """What the picture leaves out, in words. at: the side of the metric."""
    lines, failed = [], data[data.aside]
    if len(failed):
        names = ", ".join(f"{of.label} ({getattr(of, at):.{of.digits}f})" for of in failed.itertuples())
        lines.append(f"failed (worse than the head alone, diverged, or one class), not drawn: {names}")
    for side, axis in zip("xy", axes, strict=True):
        low, high = limits(data, side)
        tick = axis.tick or "{:.4g}".format
        ends = [
            (of.label, getattr(of, f"{side}_low"), getattr(of, f"{side}_high"))
            for of in data[~data.aside].itertuples()
        ]
        cut = [f"{label} (from {tick(a)})" for label, a, _ in ends if a < low]
        cut += [f"{label} (to {tick(b)})" for label, _, b in ends if b > high]
        if cut:
            lines.append(f"bars that leave the picture: {', '.join(cut)}")
    return lines


def steps(points_: Sequence[tuple[float, float]], worst: tuple[float, float]) -> list[tuple[float, float]]:
    """The corners of the frontier's line, through its points from the best in x to the best in y: at an x it
    is at the best y that a row at least as good in x has. worst: where the line begins (y) and ends (x)."""
    corners = [(points_[0][0], worst[1])]
    for x, y in points_:
        corners += [(x, corners[-1][1]), (x, y)]
    return [*corners, (worst[0], corners[-1][1])]


# --- drawing


def _draw(plot: Any, data: pd.DataFrame, axes: Sequence[Axis], columns: dict[str, str]) -> None:
    """columns: the names of x and y, and of their ends, in the data."""
    every = data.rename(columns=columns)
    drawn = every[~every.aside]
    for side, axis in zip("xy", axes, strict=True):
        _scale(plot, side, drawn[side], axis)
        plot.set(**{f"{side}label": axis.label})
    plot.update_datalim(list(zip(limits(every, "x"), limits(every, "y"), strict=True)))
    plot.margins(0.12)
    plot.autoscale_view()
    plot.autoscale(enable=False)
    dots = axes[1].column == "number" and len(data) <= CROWDED
    for of in drawn.itertuples():
        tint = colour(of.row, of.kind)
        for x, y in (((of.x_low, of.x_high), (of.y, of.y)), ((of.x, of.x), (of.y_low, of.y_high))):
            plot.plot(x, y, color=tint, alpha=0.6, linewidth=1)
        if dots:
            plot.plot([of.x] * len(of.values), of.values, ".", color=tint, alpha=0.6)
        face = tint if of.n >= of.wanted else "white"
        plot.plot(of.x, of.y, marker(of.row, of.kind), color=tint, markerfacecolor=face, zorder=3)
    signs, ends = [axis.less for axis in axes], (plot.get_xlim(), plot.get_ylim())
    best = drawn[drawn.frontier]
    corners = steps(list(zip(best.x, best.y, strict=True)), (ends[0][signs[0]], ends[1][signs[1]]))
    plot.plot(*zip(*corners, strict=True), color="#555555", linewidth=0.9, linestyle="--", zorder=1)
    named = drawn[drawn.labelled]
    values = [f" {of.y:.{of.digits}f}" if axes[1].column == "number" else "" for of in named.itertuples()]
    tints = [colour(*of) for of in zip(named.row, named.kind, strict=True)]
    write_labels(plot, named.assign(text=named.method + values, colour=tints), drawn)


def _scale(plot: Any, side: str, values: pd.Series, axis: Axis) -> None:
    """A logarithmic axis where positive values differ widely, with a linear piece for zeros."""
    positive, of_side = values[values > 0], getattr(plot, f"{side}axis")
    tick = axis.tick or "{:g}".format
    if len(positive) and values.min() >= 0 and positive.max() > axis.wide * positive.min():
        if values.min() == 0:
            first, last = math.floor(math.log10(positive.min())), math.log10(positive.max())
            getattr(plot, f"set_{side}scale")("symlog", linthresh=10.0**first, linscale=0.4)
            decades = [10.0**power for power in range(first, math.floor(last) + 1)]
            of_side.set_major_locator(FixedLocator([0.0, *decades]))
        else:
            getattr(plot, f"set_{side}scale")("log")
            several = positive.max() > 1000 * positive.min()
            of_side.set_major_locator(LogLocator(subs=(1.0,) if several else (1.0, 2.0, 5.0)))
        of_side.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        of_side.set_minor_locator(NullLocator())
    elif axis.tick:
        of_side.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
