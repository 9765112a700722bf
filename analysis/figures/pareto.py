"""Two numbers of each row against each other, with the frontier: rows than which no
other is better in both."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

from analysis.figures.figure import (
    COUNT_FORMATTER,
    VARIED,
    Figure,
    Part,
    count_range,
    finite,
    look,
    metric_label,
)
from analysis.frame import cells, in_cells, reported
from analysis.notes import notes
from analysis.paper import GLUE
from runs.record.intervals import median_interval
from runs.record.schema import TEXT_SCORES
from runs.record.text import megabytes


class Axis(NamedTuple):
    """What an axis shows: a column of the runs, with its label and whether less is better.
    tick: makes the text of a number. name: of the column in the figure's data."""

    column: str
    label: str = ""
    tick: Callable[[float], str] = "{:.4g}".format
    lower_is_better: bool = True
    name: str = ""

    @property
    def low(self) -> str:
        """The column of the interval's lower end."""
        return f"{self.name} low"

    @property
    def high(self) -> str:
        """That of its upper end."""
        return f"{self.name} high"


#: The axes by the names that x= and y= take. `_axis` completes them: the label of the
#: metric is in the records.
AXES = {
    "metric": Axis("number"),
    "parameters": Axis(
        "parameters", "trainable parameters, without a head", COUNT_FORMATTER
    ),
    "bytes": Axis("adapter_bytes", "adapter file", megabytes),
    "seconds": Axis("seconds", "seconds of a run: training, evaluation and decoding"),
    "memory": Axis("peak_memory_bytes", "peak memory", megabytes),
    "forgetting": Axis("forgetting", "forgetting on a fixed text, nats a token"),
}
#: Axes whose numbers compare only on one machine.
MACHINE_AXES = {"seconds", "memory"}
#: With more rows than this the legend names only the frontier, and the rows that the
#: reader asks for.
CROWDED = 25
#: The x axes of the metric's pictures, a picture each. With CROWDED rows or fewer there
#: is only the first one.
COSTS = ("parameters", "bytes", "seconds", "memory")
#: Columns of a figure's data beside its axes and names.
DATA_COLUMNS = ["values", "digits", "n", "wanted", "frontier", "failed", "runs"]
#: The columns that say how many rows of data a user asked for.
SIZE_COLUMNS = ["asked_train_rows", "asked_dev_rows"]
#: Metrics that are named after people, and have a capital.
EPONYMS = {"matthews", "pearson", "spearman"}
#: The line below the picture on rows that have failed.
WHY_FAILED = "failed (worse than the head alone, diverged, or one class), not drawn"
#: The size of a picture in inches; it is higher for more than CROWDED rows.
WIDTH = 7
HEIGHT = 4.4
HEIGHT_OF_CROWD = 6.4


def parameter_figures(part: Part) -> Iterator[Figure]:
    """The pictures of table 2's and table 5's tasks on which two rows or more have run,
    without other ranks and ablations. If the user has named tasks, the pictures of these
    tasks instead, with every row."""
    if part.names_tasks:
        return pareto_figures(part)
    runs = part.runs
    is_of_table = runs.task.isin(list(GLUE)) | (runs.family == "images")
    is_varied = runs.row.astype(str).str.match(VARIED)
    figures = pareto_figures(replace(part, runs=runs[is_of_table & ~is_varied]))
    return (figure for figure in figures if len(figure.data) > 1)


def demo_figures(part: Part) -> Iterator[Figure]:
    """The pictures of the demo's task."""
    return pareto_figures(replace(part, runs=part.runs[part.runs.task == "reviews"]))


def pareto_figures(part: Part) -> Iterator[Figure]:
    """A picture for each model, task and size of the data, and for each two axes
    (`_axis_names`). Where the data have one size, the names of files do not say it."""
    results = part.runs[part.runs.kind == "result"]
    for task_and_model, runs_of_task in results.groupby(["task", "model"]):
        runs_by_size = runs_of_task.groupby(SIZE_COLUMNS)
        for size, runs in runs_by_size:
            name_parts = task_and_model
            suffix = ""
            if len(runs_by_size) > 1:
                name_parts = (*task_and_model, *size)
                first_run = runs.iloc[0]
                suffix = (
                    f", {first_run.train_rows:,.0f} training and "
                    f"{first_run.dev_rows:,.0f} dev rows"
                )
            scored = reported(runs)
            row_cells = cells(scored, "number")
            for x, y in _axis_names(part, scored):
                file_name = "_".join(map(str, [y, "by", x, *name_parts]))
                yield figure_of_rows(
                    scored, row_cells, (x, y), file_name, part.labels, suffix
                )


def _axis_names(part: Part, runs: pd.DataFrame) -> list[tuple[str, str]]:
    """The names of the x and the y axis of each picture: the part's or, if it has none,
    the metric by parameters (by each of COSTS for more than CROWDED rows)."""
    if part.axes:
        return [part.axes]
    is_crowded = runs.row.nunique() > CROWDED
    costs = COSTS if is_crowded else COSTS[:1]
    return [(cost, "metric") for cost in costs]


def figure_of_rows(
    runs: pd.DataFrame,
    row_cells: pd.DataFrame,
    axis_names: tuple[str, str],
    file_name: str,
    labels: Sequence[str] = (),
    suffix: str = "",
) -> Figure:
    """The picture of the rows of a model and task.

    Args:
        runs: of the model and task (`frame.reported`).
        row_cells: their cells, one for each row.
        axis_names: of AXES, for x and y.
        file_name: of the figure's files, without an ending.
        labels: the rows that the legend names beside the frontier. If it is empty, the
            legend names all rows (none for more than CROWDED rows).
        suffix: what the title says of the data's size.
    """
    usual_score = row_cells["name"].mode().iloc[-1]
    has_other_score = (row_cells["name"] != usual_score) & ("metric" in axis_names)
    lines = [
        f"{row.label}: reports {row.name}: not drawn."
        for row in row_cells[has_other_score].itertuples()
    ]
    row_cells = row_cells[~has_other_score]
    of_usual_score = row_cells[row_cells["name"] == usual_score]
    axes = [_axis(name, of_usual_score) for name in axis_names]
    data = row_cells
    for axis in axes:
        data, notes_on_missing = _with_axis_numbers(data, runs, axis)
        lines += notes_on_missing
    data = _with_frontier(data, axes)
    foot = _failed_rows_foot(data)
    devices = sorted(set(in_cells(runs, row_cells).device))
    if len(devices) > 1 and MACHINE_AXES & {*axis_names}:
        lines.append(
            f"{', '.join(devices)}: seconds and memory of different machines do not "
            "compare."
        )
    subtitle = _subtitle(data)
    axis_columns = list[str]()
    for axis in axes:
        axis_columns += [axis.name, axis.low, axis.high]
    data = data.assign(kind=data.method, method=data.label, runs=data.ids)
    data = data[["method", "row", "kind", *axis_columns, *DATA_COLUMNS]]
    height = HEIGHT_OF_CROWD if len(data) > CROWDED else HEIGHT
    return Figure(
        name=file_name,
        title=_title(row_cells, axes, suffix),
        data=data,
        notes=[*lines, *foot, *notes(runs, row_cells)],
        draw=partial(_draw, axes=axes, labels=labels),
        subtitle=subtitle,
        foot=foot,
        size=(WIDTH, height),
    )


def _title(row_cells: pd.DataFrame, axes: Sequence[Axis], suffix: str) -> str:
    """The title: the model, the task and the names of both numbers."""
    first = row_cells.iloc[0]
    x, y = (_title_name(axis.name.partition(",")[0]) for axis in axes)
    return f"{first.model_label} on {first.task_label}{suffix}: {y} against {x}"


def _title_name(name: str) -> str:
    """What a title calls a number. EPONYMS have a capital."""
    text = name.replace("_", " ")
    return text.capitalize() if name in EPONYMS else text


def _subtitle(data: pd.DataFrame) -> str:
    """Over how many seeds a point is, and how to read the lines and bars."""
    text = "one seed"
    if data.runs.max() > 1:
        text = f"median of {count_range(data.runs)} seeds; bars: its interval"
    text += "; dashed: the frontier"
    if (data.n < data.wanted).any():
        text += "; hollow: fewer seeds"
    return text


def _with_frontier(data: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    """The rows that have both numbers, sorted along x from the best to the worst, with two
    flags: `frontier` (`on_frontier`) and `failed` (`_has_failed`, and not on the
    frontier). If the metric is on an axis, it is in failed_number, too; otherwise no row
    has failed."""
    names = [axis.name for axis in axes]
    data = data.dropna(subset=names)
    data = data.sort_values(
        [names[0], "label"],
        ascending=[axes[0].lower_is_better, True],
        ignore_index=True,
    )
    scores = dict[str, pd.Series]()
    for axis in axes:
        sign = -1 if axis.lower_is_better else 1
        scores[axis.column] = sign * data[axis.name]
    data["frontier"] = on_frontier(*scores.values())
    data["failed"] = False
    if "number" in scores:
        data["failed"] = _has_failed(data, scores["number"]) & ~data.frontier
        metric = next(axis.name for axis in axes if axis.column == "number")
        data["failed_number"] = data[metric]
    return data


def _failed_rows_foot(data: pd.DataFrame) -> list[str]:
    """The line below the picture that lists the rows that have failed, alone in a list;
    an empty list if none has. data: of `_with_frontier`."""
    failed = [
        f"{row.label} ({row.failed_number:.{int(row.digits)}f})"
        for row in data[data.failed].itertuples()
    ]
    return [f"{WHY_FAILED}: {', '.join(failed)}"] if failed else []


def _axis(name: str, row_cells: pd.DataFrame) -> Axis:
    """The axis of this name, complete. The metric has the name, label and direction of the
    score that the cells report."""
    axis = AXES[name]._replace(name=name)
    if name != "metric":
        return axis
    first = row_cells.iloc[0]
    metric, comma, epoch = first["name"].partition(", ")
    # Scores of texts are of the test set, and metrics of the dev set
    is_of_texts = metric in [score.name for score in TEXT_SCORES.values()]
    dev = "" if is_of_texts else "dev "
    label = f"{dev}{metric_label(metric, int(first.digits))}{comma}{epoch}"
    lower_is_better = bool(first.lower_is_better)
    return axis._replace(
        label=label, lower_is_better=lower_is_better, name=first["name"]
    )


def _with_axis_numbers(
    row_cells: pd.DataFrame, runs: pd.DataFrame, axis: Axis
) -> tuple[pd.DataFrame, list[str]]:
    """The cells with the columns of an axis: the median over the seeds that have a number
    (axis.name) and the ends of its interval (axis.low, axis.high). And a note for each
    row that has runs without a finite number."""
    # A diverged run ended early, so its costs are not those of the row.
    is_cost = axis.column not in ("number", "parameters")
    run_numbers = runs[axis.column]
    if is_cost:
        run_numbers = run_numbers.where(runs.status == "done")
    number_by_run = dict(zip(runs.id, run_numbers, strict=True))
    numbers = finite(row_cells.ids.explode().map(number_by_run))
    numbers_by_cell = numbers.groupby(level=0)
    ends = numbers_by_cell.agg(interval_or_value)
    sizes = zip(
        row_cells.label, numbers_by_cell.size(), numbers_by_cell.count(), strict=True
    )
    lines = [
        f"{row}: {size - count} of {size} runs without a finite {axis.name}."
        for row, size, count in sizes
        if count < size
    ]
    columns = {
        axis.name: numbers_by_cell.median(),
        axis.low: ends.str[0].astype(float),
        axis.high: ends.str[1].astype(float),
    }
    return row_cells.assign(**columns), lines


def interval_or_value(values: pd.Series) -> tuple[float, float]:
    """The interval of the median of several values; of one value, the value twice."""
    return median_interval([*values.dropna()]) or (values.max(), values.max())


# --- the frontier, and what is far from the others


def on_frontier(x: Sequence[float], y: Sequence[float]) -> list[bool]:
    """Whether each point is on the frontier: no other one is better in one number and at
    least as good in the other. x, y: both numbers of the points; more is better."""
    points = list(zip(x, y, strict=True))
    return [not any(is_better(rival, point) for rival in points) for point in points]


def is_better(rival: tuple[float, float], point: tuple[float, float]) -> bool:
    """Whether the rival is better in one number and at least as good in the other."""
    return rival[0] >= point[0] and rival[1] >= point[1] and rival != point


def outer_fences(values: pd.Series) -> tuple[float, float]:
    """Tukey's outer fences, below and above: three interquartile ranges outside the
    quartiles. NaN without values."""
    if values.empty:
        return math.nan, math.nan
    lower, upper = np.percentile(values, [25, 75])
    reach = 3 * (upper - lower)
    return lower - reach, upper + reach


def _has_failed(data: pd.DataFrame, score: pd.Series) -> pd.Series:
    """Which rows have failed and are so far below the others that they would squeeze the
    picture.

    A row has failed if it is worse than every row that trains nothing but a head, or if
    most of its seeds diverged or predict one class. It is far below the others if its
    score is below Tukey's lower outer fence. score: the metric, such that more is
    better."""
    # If no row trains a head alone, the minimum is NaN, and no score is below it.
    is_below_head = score < score[data.parameters == 0].min()
    mostly_broken = (data.diverged + data.one_class.map(len)) * 2 > data.runs
    lower_fence, _ = outer_fences(score)
    return (is_below_head | mostly_broken) & (score < lower_fence)


# --- drawing


def _draw(
    plot: Axes, data: pd.DataFrame, axes: Sequence[Axis], labels: Sequence[str]
) -> None:
    """Draws all rows but those that have failed. labels: as of `figure_of_rows`."""
    drawn = data[~data.failed]
    is_crowded = len(data) > CROWDED
    _set_limits(plot, drawn, axes)
    looks = [*map(look, drawn.kind, drawn.row)]
    _draw_bars(plot, drawn, axes, [colour for colour, _ in looks])
    named = drawn.frontier | drawn.row.isin(labels) | (not is_crowded and not labels)
    points = zip(drawn.to_dict("records"), looks, named, strict=True)
    for point, (colour, marker), is_named in points:
        _draw_point(plot, point, axes, colour, marker, is_named, not is_crowded)
    if named.any():
        plot.figure.legend(loc="outside right center", fontsize=7, reverse=True)
    _draw_frontier(plot, drawn[drawn.frontier], axes)


def _set_limits(plot: Axes, drawn: pd.DataFrame, axes: Sequence[Axis]) -> None:
    """Sets the axes such that they hold the points, and the ends of the bars except
    those that are far from all others: these leave the picture."""
    for side, axis in zip("xy", axes, strict=True):
        _scale(plot, side, drawn[axis.name], axis)
        low = drawn[axis.low]
        high = drawn[axis.high]
        lower_fence, _ = outer_fences(low)
        _, upper_fence = outer_fences(high)
        shown_numbers = [
            drawn[axis.name],
            low[low >= lower_fence],
            high[high <= upper_fence],
        ]
        # matplotlib takes points, of which only one coordinate counts here
        points = [(number, number) for number in pd.concat(shown_numbers)]
        plot.update_datalim(points, updatex=side == "x", updatey=side == "y")
    plot.margins(0.12)
    plot.autoscale_view()
    plot.autoscale(enable=False)


def _draw_bars(
    plot: Axes, drawn: pd.DataFrame, axes: Sequence[Axis], colours: Sequence[str]
) -> None:
    """Draws the intervals of both numbers of each point. colours: of the points."""
    x, y = axes
    x_bars, y_bars = (
        (drawn[axis.name] - drawn[axis.low], drawn[axis.high] - drawn[axis.name])
        for axis in (x, y)
    )
    plot.errorbar(
        drawn[x.name],
        drawn[y.name],
        xerr=x_bars,
        yerr=y_bars,
        fmt="none",
        ecolor=colours,  # type: ignore[arg-type]  # a colour for each point
        alpha=0.6,
        elinewidth=1,
    )


def _draw_point(
    plot: Axes,
    point: dict[str, Any],
    axes: Sequence[Axis],
    colour: str,
    marker: str,
    is_named: bool,
    with_seeds: bool,
) -> None:
    """Draws a row's point, hollow where seeds are missing. is_named: whether the legend
    names the row. with_seeds: whether each seed has a small point of its own, if the
    metric is on the y axis."""
    x, y = (axis.name for axis in axes)
    label = point["method"]
    if axes[1].column == "number":
        label += f": {point[y]:.{int(point['digits'])}f}"
        if with_seeds:
            values = point["values"]
            plot.plot([point[x]] * len(values), values, ".", color=colour, alpha=0.6)
    style: dict[str, Any] = {"alpha": 0.5}
    if is_named:
        style = {"label": label, "markersize": 6}
    face = colour if point["n"] >= point["wanted"] else "white"
    plot.plot(
        point[x],
        point[y],
        marker,
        color=colour,
        markerfacecolor=face,
        zorder=3,
        **style,
    )


def _draw_frontier(plot: Axes, best: pd.DataFrame, axes: Sequence[Axis]) -> None:
    """Draws the frontier as a dashed line: at each x it is at the best y of the rows that
    are at least as good in x. best: the rows on the frontier, from the best x on."""
    if best.empty:
        return
    x, y = axes
    # The line goes from the worst y to the worst x, which are limits of the picture.
    left, right = plot.get_xlim()
    bottom, top = plot.get_ylim()
    worst_x = right if x.lower_is_better else left
    worst_y = top if y.lower_is_better else bottom
    best_x = best[x.name]
    best_y = best[y.name]
    plot.step(
        [best_x.iloc[0], *best_x, worst_x],
        [worst_y, *best_y, best_y.iloc[-1]],
        where="post",
        color="#555555",
        linewidth=0.9,
        linestyle="--",
        zorder=1,
    )


def _scale(plot: Axes, side: str, values: pd.Series, axis: Axis) -> None:
    """Sets the label, scale and ticks of an axis. It is logarithmic where costs differ by
    more than a factor of ten, with a linear piece near zero if some are zero. side: x or
    y. values: along it."""
    positive = values[values > 0]
    ticks_axis = getattr(plot, f"{side}axis")
    set_scale = getattr(plot, f"set_{side}scale")
    plot.set(**{f"{side}label": axis.label})
    is_cost = axis.lower_is_better and values.min() >= 0
    if is_cost and positive.max() > 10 * positive.min():
        if values.min() == 0:
            first_power = 10.0 ** np.floor(np.log10(positive.min()))
            set_scale("symlog", linthresh=first_power, linscale=0.4)
            ticks = [0.0, *first_power * 10.0 ** np.arange(12)]
            ticks_axis.set_major_locator(FixedLocator(ticks))
        else:
            set_scale("log")
            ticks_axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks_axis.minorticks_off()
    ticks_axis.set_major_formatter(FuncFormatter(lambda value, _: axis.tick(value)))
