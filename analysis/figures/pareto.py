"""Two numbers of each row against each other, with the frontier: rows than which no
other is better in both."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from analysis.figures.figure import (
    COUNT_FORMATTER,
    VARIED,
    Figure,
    Part,
    count_range,
    finite,
    metric_label,
)
from analysis.figures.scatter import (
    BY_DEMONSTRATIONS,
    CROWDED,
    Axis,
    draw_rows,
    outer_fences,
)
from analysis.frame import cells, in_cells, with_reported_scores
from analysis.notes import notes
from analysis.paper import GLUE
from runs.record.intervals import median_interval
from runs.record.schema import TEXT_SCORES
from runs.record.text import megabytes

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
#: How the name of a row ends that was trained by reward.
BY_REWARD = "_by_reward"
#: The size of a picture in inches; it is higher for more than CROWDED rows.
WIDTH = 7
HEIGHT = 4.4
HEIGHT_OF_CROWD = 6.4


def parameter_figures(part: Part) -> Iterator[Figure]:
    """The pictures of table 2's and table 5's tasks without other ranks and ablations
    (VARIED), and those of tasks with a row that was trained by reward, with every row. Two
    rows or more must have run. If the user has named tasks, the pictures of these tasks
    with every row."""
    if part.names_tasks:
        return pareto_figures(part)
    runs = part.runs
    is_of_table = runs.task.isin(list(GLUE)) | (runs.family == "images")
    rows = runs.row.astype(str)
    has_reward = runs.task.isin(runs.task[rows.str.endswith(BY_REWARD)])
    is_drawn = has_reward | (is_of_table & ~rows.str.match(VARIED))
    figures = pareto_figures(replace(part, runs=runs[is_drawn]))
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
            scored = with_reported_scores(runs)
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
        runs: of the model and task (`frame.with_reported_scores`).
        row_cells: their cells, one for each row.
        axis_names: of AXES, for x and y.
        file_name: of the figure's files, without an ending.
        labels: the rows that the legend names beside the frontier. If it is empty, the
            legend names all rows (none for more than CROWDED rows).
        suffix: what the title says of the data's size.
    """
    usual_score = row_cells["name"].mode().iloc[-1]
    has_other_score = row_cells["name"] != usual_score
    # The metric's axis shows one score, the usual one, and takes its label from it.
    axes = [_axis(name, row_cells[~has_other_score]) for name in axis_names]
    lines = list[str]()
    if "metric" in axis_names:
        lines += [
            f"{row.label}: reports {row.name}: not drawn."
            for row in row_cells[has_other_score].itertuples()
        ]
        row_cells = row_cells[~has_other_score]
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
    # A figure's data call the label method, the method kind, and the ids runs.
    data = data.assign(kind=data.method, method=data.label, runs=data.ids)
    data = data[["method", "row", "kind", *axis_columns, *DATA_COLUMNS]]
    height = HEIGHT_OF_CROWD if len(data) > CROWDED else HEIGHT
    return Figure(
        name=file_name,
        title=_title(row_cells, axes, suffix),
        data=data,
        notes=[*lines, *foot, *notes(runs, row_cells)],
        draw=partial(draw_rows, axes=axes, labels=labels),
        subtitle=subtitle,
        foot=foot,
        size=(WIDTH, height),
    )


def _title(row_cells: pd.DataFrame, axes: Sequence[Axis], suffix: str) -> str:
    """The title: the model, the task and the names of both numbers."""
    first = row_cells.iloc[0]
    # the name of a score ends with its epoch, which the axis says: "accuracy, best epoch"
    x, y = (_title_name(axis.name.partition(",")[0]) for axis in axes)
    return f"{first.model_label} on {first.task_label}{suffix}: {y} against {x}"


def _title_name(name: str) -> str:
    """What a title calls a number. EPONYMS have a capital."""
    text = name.replace("_", " ")
    return text.capitalize() if name in EPONYMS else text


def _subtitle(data: pd.DataFrame) -> str:
    """Over how many seeds a point is, and how to read the lines and bars. data: with the
    count of each point's runs as `runs`."""
    text = "one seed"
    if data.runs.max() > 1:
        text = f"median of {count_range(data.runs)} seeds; bars: its interval"
    text += "; dashed: the frontier"
    if (data.n < data.wanted).any():
        text += "; hollow: fewer seeds"
    if data.row.astype(str).str.endswith(BY_DEMONSTRATIONS).any():
        text += "; half-filled: by demonstrations"
    return text


def _with_frontier(data: pd.DataFrame, axes: Sequence[Axis]) -> pd.DataFrame:
    """The rows that have both numbers, sorted along x from the best to the worst, with two
    flags: `frontier` (`on_frontier`) and `failed` (`_is_failed_outlier`, and not on the
    frontier). If the metric is on an axis, its column, whose name is that of the score, is
    copied to failed_number; otherwise no row has failed."""
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
        data["failed"] = _is_failed_outlier(data, scores["number"]) & ~data.frontier
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
    # A diverged run ended early, so its costs and its forgetting are not those of the row.
    # Its score counts, and its parameters are as for any other run.
    depends_on_end = axis.column not in ("number", "parameters")
    run_numbers = runs[axis.column]
    if depends_on_end:
        run_numbers = run_numbers.where(runs.status == "done")
    number_by_run = dict(zip(runs.id, run_numbers, strict=True))
    numbers = finite(row_cells.ids.explode().map(number_by_run))
    numbers_by_cell = numbers.groupby(level=0)
    ends = numbers_by_cell.agg(interval_or_value)
    sizes = zip(
        row_cells.label, numbers_by_cell.size(), numbers_by_cell.count(), strict=True
    )
    notes_on_missing = [
        f"{row}: {size - count} of {size} runs without a finite {axis.name}."
        for row, size, count in sizes
        if count < size
    ]
    columns = {
        axis.name: numbers_by_cell.median(),
        axis.low: ends.str[0].astype(float),
        axis.high: ends.str[1].astype(float),
    }
    return row_cells.assign(**columns), notes_on_missing


def interval_or_value(values: pd.Series) -> tuple[float, float]:
    """The interval of the median of several values; of one value, the value twice; of no
    value, NaN."""
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


def _is_failed_outlier(data: pd.DataFrame, score: pd.Series) -> pd.Series:
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
