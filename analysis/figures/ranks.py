"""Figure 2: the metric by trainable parameters, over the ranks of VeRA and LoRA."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator

from analysis.figures.figure import (
    COUNT_FORMATTER,
    Figure,
    Part,
    count_range,
    draw_lines,
    look,
    metric_label,
)
from analysis.figures.paper_figure import (
    PAPER_MODEL_AND_TASK,
    Panel,
    panels,
    paper_figure,
    printed_rte,
)
from analysis.frame import SEEDS, reported_cells
from analysis.paper import GLUE, METHOD_NAMES
from runs.record.text import plural

#: The scaling of LoRA's alpha at its recipe's own rank, which both of LoRA's lines show: a
#: constant alpha and one proportional to r are the same there.
BOTH_SCALINGS = "constant and proportional"
#: What follows LoRA's name in the legend, by the scaling of alpha. A "given" alpha, which
#: follows neither rule, stands with the constant ones.
SCALING_TEXTS = {
    "constant": ", constant alpha",
    "given": ", constant alpha",
    "proportional": ", alpha proportional to r",
}
VERA_COLOUR, VERA_MARKER = look("vera")
LORA_COLOUR, LORA_MARKER = look("lora")
#: The colour, dash and marker of each line; LoRA without a scaling is only quoted.
LINES = {
    "VeRA": (VERA_COLOUR, "-", VERA_MARKER),
    "LoRA, constant alpha": (LORA_COLOUR, "-", LORA_MARKER),
    "LoRA, alpha proportional to r": (LORA_COLOUR, "--", LORA_MARKER),
    "LoRA": (LORA_COLOUR, "", ""),
}
#: The rows of the figure.
ROWS = r"(vera|lora)(_r\d+)?(_proportional)?"
#: The rows of table 2 that we quote in the figure of the paper's model and task, with
#: their ranks.
QUOTED = {"vera": 256, "lora": 8}
MODEL_AND_TASK = ["model", "task"]


def figure2(part: Part) -> Iterator[Figure]:
    """The dev metric against trainable parameters, over VeRA's and LoRA's ranks: a figure
    for each model and task on which a method has several ranks, and for the paper's.

    A point has all runs of a rank (with one scaling of alpha), whether the rank was set
    on the command line or by a row of that rank."""
    ranks = runs_by_rank(part.runs)
    comparable = most_common_data(ranks)
    left_out = ranks[~ranks.id.isin(comparable.id)]
    cells = reported_cells(comparable, seeds=SEEDS)
    cells = cells.sort_values(["method", "rank", "scaling"], kind="stable")
    cells = cells.assign(
        kind=cells.method,
        method=cells.method.map(METHOD_NAMES),
        low=cells["values"].map(np.min),  # NaN where a seed has no number
        high=cells["values"].map(np.max),
    )
    # A duplicate is a second rank of a method on a model and task.
    second_ranks = cells[cells.duplicated([*MODEL_AND_TASK, "kind"])]
    models_and_tasks = {
        PAPER_MODEL_AND_TASK,
        *pd.MultiIndex.from_frame(second_ranks[MODEL_AND_TASK]),
    }
    models_and_tasks_of_cells = pd.MultiIndex.from_frame(cells[MODEL_AND_TASK])
    cells = cells[models_and_tasks_of_cells.isin(models_and_tasks)]
    for panel in panels(part, cells):
        yield _figure_of_panel(panel, left_out)


def runs_by_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """The results of VeRA and LoRA on GLUE. Each row is renamed after its rank (vera_r256),
    and `scaling` says how LoRA's alpha depends on the rank: a key of SCALING_TEXTS, or
    BOTH_SCALINGS at the recipe's own rank; "" for VeRA."""
    is_of_figure = runs.row.astype(str).str.fullmatch(ROWS)
    is_result = (runs.kind == "result") & runs.task.isin(list(GLUE))
    results = runs[is_result & is_of_figure]
    results = results[results["rank"].notna()]
    rank = results["rank"].astype(int)
    suffix = results.row.astype(str).str.extract("(_proportional)$")[0].fillna("")
    is_lora = results.method == "lora"
    return results.assign(
        row=results.method + "_r" + rank.astype(str) + suffix,
        rank=rank,
        scaling=results.scaling.fillna(BOTH_SCALINGS).where(is_lora, ""),
    )


def most_common_data(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs on the sizes of data that most rows of a model and task have and, of each
    method, with the number of epochs that most of its rows have: points of other data or
    epochs would not compare. Of equally frequent sizes or epochs the largest are taken."""
    runs = _with_most_common(runs, ["train_rows", "dev_rows"], MODEL_AND_TASK)
    return _with_most_common(runs, ["epochs"], [*MODEL_AND_TASK, "method"])


def _with_most_common(
    runs: pd.DataFrame, columns: list[str], keys: list[str]
) -> pd.DataFrame:
    """The runs with the values of `columns` that most rows have among the runs with the
    same values of `keys`."""
    row_counts = runs.groupby([*keys, *columns], as_index=False).row.nunique()
    row_counts = row_counts.sort_values(["row", *columns])
    most_common = row_counts.drop_duplicates(keys, keep="last")
    return runs.merge(most_common[[*keys, *columns]], on=[*keys, *columns])


def _figure_of_panel(panel: Panel, left_out: pd.DataFrame) -> Figure:
    """The figure of a model and task. left_out: runs on other data or of other epochs
    (`most_common_data`), of any model and task; a note counts those of this one."""
    data = panel.data
    notes = [*panel.notes]
    count = len(left_out.merge(data[MODEL_AND_TASK].drop_duplicates()))
    if count:
        notes.append(
            f"{plural(count, 'run')} on other data, or of other epochs, than most "
            "ranks: left out."
        )
    subtitle = (
        f"median of {count_range(data.n)} seeds, bands from the lowest to the highest"
    )
    if (data.n < data.wanted).any():
        subtitle += "; hollow: fewer seeds"
    ylabel = f"{panel.task_label} dev {metric_label(data.metric.iloc[0])}"
    quoted = printed_rte([*QUOTED]).rename(columns={"value": "median"})
    quoted = quoted.assign(
        rank=[*QUOTED.values()], scaling="", source="paper, table 2 (quoted)"
    )
    title = f"{panel.task_label} by trainable parameters, {panel.model_label}"
    draw = partial(_draw_ranks, ylabel=ylabel)
    return paper_figure(
        number=2,
        title=title,
        data=data,
        notes=notes,
        draw=draw,
        subtitle=subtitle,
        model_and_task=panel.model_and_task,
        quoted=quoted,
    )


def _draw_ranks(axes: Axes, data: pd.DataFrame, ylabel: str) -> None:
    """Draws LINES, with the rank at each of our points."""
    # BOTH_SCALINGS becomes two points, one on each of LoRA's lines.
    lines = data.assign(line=data.scaling.str.split(" and "))
    lines = lines.explode("line", ignore_index=True)
    # If no other rank has a proportional alpha, that line would be a single point.
    if not (data.scaling == "proportional").any():
        lines = lines[lines.line != "proportional"]
    suffix = lines.line.map(lambda scaling: SCALING_TEXTS.get(scaling, ""))
    lines["line"] = lines.method + suffix
    draw_lines(
        axes,
        lines,
        "parameters",
        "median",
        "line",
        LINES,
        xscale="log",
        xlabel="trainable parameters, without the classification head",
        ylabel=ylabel,
    )
    is_ours = (data.runs.map(len) > 0) & data["median"].notna()
    for point in data[is_ours].drop_duplicates(["kind", "rank"]).itertuples():
        label = axes.annotate(
            f"r={point.rank:g}",
            (point.parameters, point.median),
            (2, 4),
            textcoords="offset points",
            fontsize=6,
            color=look(point.kind)[0],
            rotation=45,
        )
        label.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(COUNT_FORMATTER)
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.12)
