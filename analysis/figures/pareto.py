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

from analysis.figures.figure import Figure, Part, is_varied, look, nothing, parameter_count
from analysis.figures.points import metric_label, notes, of_pair, points, spanned
from analysis.frame import in_cells
from analysis.paper import GLUE
from runs.record import median_interval
from runs.record.text import megabytes


@dataclass(frozen=True)
class Axis:
    """What an axis shows: a column of the runs, its label and ticks; from which ratio of its values on it is
    logarithmic; whether less is better, and whether runs that diverged, which end early, are left out. name:
    in the data."""

    column: str
    label: str = ""
    tick: Callable[[float], str] = "{:.4g}".format
    wide: float = 10.0
    less: bool = True
    of_done: bool = True
    name: str = ""


#: The axes by the names that x= and y= take. The metric's is completed from the records, as is a label.
AXES = {
    "metric": Axis("number", of_done=False),
    "parameters": Axis("parameters", "trainable parameters", tick=parameter_count, wide=5, of_done=False),
    "bytes": Axis("adapter_bytes", "adapter file", megabytes),
    "seconds": Axis("seconds", "seconds of a run: training, evaluation and decoding"),
    "memory": Axis("peak_memory_bytes", "peak memory", megabytes),
    "forgetting": Axis("forgetting", "forgetting on a fixed text, nats a token", wide=math.inf),
}
USUAL = ("parameters", "metric")
#: Of more rows than these, labels stand at the frontier alone, and at the rows that the reader asks for.
CROWDED = 25
#: The x axes of the pictures of a metric of so many rows.
COSTS = ("parameters", "bytes", "seconds", "memory")
#: The demo's numbers of training and dev rows (conf/task/reviews.yaml).
DEMO = [1000, 500]
FACTS = ["values", "digits", "n", "wanted", "frontier", "failed", "runs"]


def make(part: Part) -> list[Figure]:
    """A picture for each model and task."""
    (x, y), runs = part.axes, part.runs[part.runs.kind == "result"]
    runs = runs[runs.task.isin(part.tasks)] if part.tasks else runs
    found = points(runs)
    figures = [
        of_rows(of, of_pair(found, pair[::-1]), part, "_".join(["pareto", y, "by", x, *pair]))
        for pair, of in runs.groupby(["task", "model"])
    ]
    return figures or [nothing("pareto", f"{y} against {x}")]


def demo(part: Part) -> list[Figure]:
    """The demo's: a picture for each model and number of rows (task.train_rows and dev_rows; 0: all)."""
    runs = part.runs[(part.runs.kind == "result") & (part.runs.task == "reviews")]
    asked, figures, name = ["asked_train_rows", "asked_dev_rows"], list[Figure](), "accuracy_vs_parameters"
    several = len(runs[asked].drop_duplicates()) > 1
    for (*size, model), of in runs.groupby([*asked, "model"]):
        # The demo's own size and model have the plain name
        words = [*size] * (several and size != DEMO) + [model] * (model != "minilm")
        rows = f", {of.train_rows.iloc[0]:,.0f} training and {of.dev_rows.iloc[0]:,.0f} dev rows"
        figures += _by_cost(of, points(of), part, "_".join(map(str, [name, *words])), rows * several)
    return figures or [nothing(name, "The demo: dev metric by parameters")]


def parameters(part: Part) -> list[Figure]:
    """The same of the tasks of tables 2 and 5, a picture for each model and task: table 2's rows, without
    other ranks and ablations. With tasks: of these instead, whatever they are, there with every row."""
    runs = part.runs[part.runs.kind == "result"]
    usual = (runs.task.isin(list(GLUE)) | (runs.family == "images")) & ~runs.row.map(is_varied).astype(bool)
    runs = runs[runs.task.isin(part.tasks) if part.tasks else usual]
    found, figures = points(runs), list[Figure]()
    for (task, model), of in runs.groupby(["task", "model"]):
        figures += _by_cost(of, of_pair(found, (model, task)), part, f"parameters_{task}_{model}")
    return figures


def _by_cost(runs: pd.DataFrame, found: pd.DataFrame, part: Part, name: str, more: str = "") -> list[Figure]:
    """A picture of the runs of a model and task; of very many rows a picture for each of COSTS."""
    costs = COSTS if runs.row.nunique() > CROWDED else COSTS[:1]
    parts = [replace(part, axes=(cost, "metric")) for cost in costs]
    return [
        of_rows(runs, found, of, name.replace("parameters", of.axes[0]), more, spans=True) for of in parts
    ]


def of_rows(
    runs: pd.DataFrame, found: pd.DataFrame, part: Part, file: str, more: str = "", spans: bool = False
) -> Figure:
    """The picture of the rows of a model and task. found: their `points`. part: its axes, and the rows that
    have a label beside the frontier's (empty: all or, of very many, none). file: its name. more: what the
    title says of the data. spans: bars span the seeds, unless the rows are very many; else they are the
    median's interval."""
    number = max(found.name, key=lambda name: ((found.name == name).sum(), name))
    others = (found.name != number) & ("metric" in part.axes)
    lines = [
        f"{of.label}: reports {of.name}, the others {number}: not drawn."
        for of in found[others].itertuples(index=False)
    ]
    found = found[~others]
    axes = [_axis(name, found[found.name == number]) for name in part.axes]
    spans &= len(found) <= CROWDED
    data, missing = _numbers(found, runs.set_index("id"), axes, spans)
    data = data.sort_values([axes[0].name, "label"], ascending=[axes[0].less, True], ignore_index=True)
    scores = {axis.column: -data[axis.name] if axis.less else data[axis.name] for axis in axes}
    data["frontier"] = on_frontier(*scores.values())
    data["failed"] = _failed(data, scores["number"]) & ~data.frontier if "number" in scores else False
    foot, counts = _foot(data, axes), [*data.runs] or [0]
    lines += [*notes(runs, found), *missing, *_unlike(in_cells(runs, found), part.axes), *foot]
    if len(data) > CROWDED or part.labels:
        lines.append("Labels: the frontier, and the rows of labels=. Every row is in the data.")
    if data.empty:
        lines.insert(0, "no row has both numbers.")
    about = f"{found.model_label.iloc[0]} on {found.task_label.iloc[0]}{more}"
    title = f"{about}: {axes[1].name.partition(',')[0]} against {axes[0].name.partition(',')[0]}"
    # Of five seeds or fewer the interval is their range (analysis/stats.py)
    bars = "lowest to highest" if spans or max(counts) <= 5 else "95% interval of the median"
    over = f"median of {spanned(counts)} seeds; bars: {bars}" if max(counts) > 1 else "one seed"
    ends = [f"{axis.name}{end}" for axis in axes for end in ("", " low", " high")]
    data = data.assign(kind=data.method, method=data.label, runs=data.ids)
    draw, size = partial(_draw, axes=axes, labels=part.labels), (7, 6.4 if len(data) > CROWDED else 4.4)
    over = f"{over}; dashed: the frontier"
    return Figure(file, title, data[["method", "row", "kind", *ends, *FACTS]], lines, draw, over, foot, size)


def _axis(name: str, found: pd.DataFrame) -> Axis:
    """The axis of this name; the metric's has the words of the number that the rows report, and that of
    parameters the count of the head where these rows share it."""
    axis, first = replace(AXES[name], name=name), found.iloc[0]
    if name == "parameters":
        heads = [*set(found.head_parameters)]
        more = f" ({heads[0]:,.0f} more)" if len(heads) == 1 else ""
        return replace(axis, label=axis.label + f", without the classification head{more}" * any(heads))
    if name != "metric":
        return axis
    metric, comma, epoch = first["name"].partition(", ")
    dev = "" if metric == "BLEU" else "dev "  # texts are those of the test set
    label, less = f"{dev}{metric_label(metric, int(first.digits))}{comma}{epoch}", bool(first.less)
    return replace(axis, label=label, less=less, wide=10.0 if less else math.inf, name=first["name"])


def _numbers(
    found: pd.DataFrame, runs: pd.DataFrame, axes: Sequence[Axis], spans: bool
) -> tuple[pd.DataFrame, list[str]]:
    """The cells that have both numbers: medians over the seeds, with their intervals or, if `spans`, the
    range of the seeds; and notes on the seeds that lack one. runs: by id."""
    lines = []
    for axis in axes:
        values = found["values"]
        if axis.column != "number":
            of_run = pd.to_numeric(runs[axis.column]).where((runs.status == "done") | (not axis.of_done))
            values = [of_run[[*ids]] for ids in found.ids]
        known = [[v for v in of if math.isfinite(v)] for of in values]
        for label, count, of in zip(found.label, found.runs, known, strict=True):
            if lost := count - len(of):
                drawn = "left out" if of else "not drawn"
                lines.append(f"{label}: {lost} of {count} runs without a finite {axis.name}: {drawn}.")
        middles = [statistics.median(of) if of else math.nan for of in known]
        ends = [(min(of), max(of)) if of and spans else median_interval(of) for of in known]
        low, high = zip(*(end or (m, m) for end, m in zip(ends, middles, strict=True)), strict=True)
        found = found.assign(**{axis.name: middles, f"{axis.name} low": low, f"{axis.name} high": high})
    return found.dropna(subset=[axis.name for axis in axes]), lines


def _unlike(runs: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Notes on numbers that do not compare."""
    lines, devices = [], sorted(set(runs.device))
    if len(devices) > 1 and {"seconds", "memory"} & {*names}:
        lines.append(f"{', '.join(devices)}: seconds and memory of different machines do not compare.")
    if "memory" in names and (runs.device_type == "cpu").any():
        lines.append("memory on a CPU: the largest of the process, the libraries included.")
    if "forgetting" in names and runs.forgetting_text[runs.forgetting.notna()].nunique() > 1:
        lines.append("forgetting was measured on several texts, which do not compare.")
    return lines


# --- the frontier, and what is far from the others


def on_frontier(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Of each point whether no other is better in one number and at least as good in the other. More is
    better."""
    spots = list(zip(x, y, strict=True))
    return [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in spots) for x, y in spots]


def fence(values: pd.Series) -> tuple[float, float]:
    """Tukey's outer fence: three interquartile ranges outside the quartiles."""
    first, third = np.percentile(values, [25, 75]) if len(values) else (math.nan, math.nan)
    return first - 3 * (third - first), third + 3 * (third - first)


def _failed(data: pd.DataFrame, score: pd.Series) -> pd.Series:
    """The rows that have failed so far from the others that they would squeeze the picture: worse than each
    row that trains nothing but a head, or most of whose seeds diverged or predict one class; and below the
    outer fence. score: the metric, more is better."""
    worse = score < score[data.parameters == 0].min()  # of no such row nothing is
    broken = (data.diverged + data.one_class.map(len)) * 2 > data.runs
    return (worse | broken) & (score < fence(score)[0])


def limits(data: pd.DataFrame, name: str) -> tuple[float, float]:
    """From where to where an axis goes: the medians of all rows that are drawn, and their bars but for ends
    outside the outer fence of such ends."""
    middle, low, high = (data[~data.failed][f"{name}{end}"] for end in ("", " low", " high"))
    near = [*middle, *low[low >= fence(low)[0]], *high[high <= fence(high)[1]]]
    return min(near, default=math.nan), max(near, default=math.nan)


def _foot(data: pd.DataFrame, axes: Sequence[Axis]) -> list[str]:
    """What a picture leaves out, in words: the rows that have failed, and the ends of bars."""
    (kept, failed), lines = (data[~data.failed], data[data.failed]), list[str]()
    for axis in axes:
        (least, most), ends = limits(data, axis.name), [f"{axis.name} low", f"{axis.name} high"]
        room = MARGIN * (most - least)
        cut = kept[(kept[ends[0]] < least - room) | (kept[ends[1]] > most + room)].set_index("label")
        if len(cut):
            words = [f"{label} ({axis.tick(a)} to {axis.tick(b)})" for label, a, b in cut[ends].itertuples()]
            lines.append(f"bars that leave the picture: {', '.join(words)}")
        if len(failed) and axis.column == "number":
            words = [
                f"{label} ({axis.tick(value)})" for label, value in failed[["label", axis.name]].to_numpy()
            ]
            why = "failed (worse than the head alone, diverged, or one class), not drawn"
            lines.append(f"{why}: {', '.join(words)}")
    return lines


# --- drawing

#: The room around the points, of the length of an axis.
MARGIN = 0.12


def _draw(plot: Any, data: pd.DataFrame, axes: Sequence[Axis], labels: Sequence[str]) -> None:
    drawn, (x, y), of_metric = data[~data.failed], (axis.name for axis in axes), axes[1].column == "number"
    crowded = len(data) > CROWDED
    for side, axis in zip("xy", axes, strict=True):
        _scale(plot, side, drawn[axis.name], axis)
    plot.update_datalim(list(zip(limits(data, x), limits(data, y), strict=True)))
    plot.margins(MARGIN)
    plot.autoscale_view()
    plot.autoscale(enable=False)
    looks = [*map(look, drawn.kind, drawn.row)]
    bars = [(drawn[of] - drawn[f"{of} low"], drawn[f"{of} high"] - drawn[of]) for of in (y, x)]
    plot.errorbar(
        drawn[x], drawn[y], *bars, fmt="none", ecolor=[of for of, _ in looks], alpha=0.6, elinewidth=1
    )
    text = [
        f"{label}: {end:.{int(digits)}f}" if of_metric else label
        for label, end, digits in drawn[["method", y, "digits"]].to_numpy()
    ]
    drawn = drawn.assign(text=text, colour=[of for of, _ in looks])
    named = drawn.frontier | drawn.row.isin(labels)
    for of, (colour, marker), beside in zip(drawn.to_dict("records"), looks, named, strict=True):
        if of_metric and not crowded:
            plot.plot([of[x]] * len(of["values"]), of["values"], ".", color=colour, alpha=0.6)
        face = colour if of["n"] >= of["wanted"] else "white"
        label = None if crowded or labels or beside else of["text"]
        plot.plot(of[x], of[y], marker, color=colour, markerfacecolor=face, zorder=3, label=label)
    write_labels(plot, drawn[named].assign(x=drawn[x], y=drawn[y]), *(axis.less for axis in axes))
    if not (crowded or labels or named.all()):
        worse = f"{'upper' if axes[1].less else 'lower'} {'right' if axes[0].less else 'left'}"
        plot.legend(loc=worse, fontsize=7)
    best = drawn[drawn.frontier]
    if len(best):  # at an x the line is at the best y that a row at least as good in x has
        end, worst = plot.get_xlim()[axes[0].less], plot.get_ylim()[axes[1].less]
        across, up = [best[x].iloc[0], *best[x], end], [worst, *best[y], best[y].iloc[-1]]
        plot.step(across, up, where="post", color="#555555", linewidth=0.9, linestyle="--", zorder=1)


def write_labels(plot: Any, rows: pd.DataFrame, less: bool, down: bool) -> list[Any]:
    """Writes each row's text beside its x and y, to the side where the frontier has nothing, and in the order
    of y a line apart. Limits and scales must be final. less, down: whether less of x and of y is better.
    Returns the texts."""
    height, sign, line = 0.75 * 72 * plot.figure.get_figheight(), -1 if down else 1, 8
    to_axes, texts, free = plot.transScale + plot.transLimits, list[Any](), -math.inf
    for of in rows.sort_values("y", ascending=not down, kind="stable").itertuples():
        across, up = to_axes.transform((of.x, of.y)) * (1, sign * height)
        free, left = max(up + 3, free + line), across > (0.2 if less else 0.8)  # no label leaves the axes
        place: Any = {"ha": "right" if left else "left", "va": "top" if down else "bottom", "fontsize": 7}
        shift = -4 if left else 4, sign * (free - up)
        more = {"textcoords": "offset points", "color": of.colour}
        texts.append(plot.annotate(of.text, (of.x, of.y), shift, **place, **more))
    return texts


def _scale(plot: Any, side: str, values: pd.Series, axis: Axis) -> None:
    """The label and ticks of an axis: a logarithmic one where positive values differ widely, with a linear
    piece for zeros."""
    positive, of_side = values[values > 0], getattr(plot, f"{side}axis")
    plot.set(**{f"{side}label": axis.label})
    if len(positive) and values.min() >= 0 and positive.max() > axis.wide * positive.min():
        if values.min() == 0:
            powers = range(math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max())) + 1)
            of_side._set_axes_scale("symlog", linthresh=10.0 ** powers[0], linscale=0.4)
            of_side.set_major_locator(FixedLocator([0.0, *(10.0**power for power in powers)]))
        else:
            plot.set(**{f"{side}scale": "log"})
            several = positive.max() > 1000 * positive.min()
            of_side.set_major_locator(LogLocator(subs=(1.0,) if several else (1.0, 2.0, 5.0)))
        of_side.set_minor_locator(NullLocator())
    of_side.set_major_formatter(FuncFormatter(lambda value, _: axis.tick(value)))
