"""What figures 2 to 6 share: their columns, and what the paper prints beside them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.figure import HEIGHT, WIDTH, Figure, Part
from analysis.frame import assign_table_columns
from analysis.notes import notes
from analysis.paper import GLUE, paper, printed_numbers
from runs.record.ledger import in_conf

#: The model and task of the paper's figures 2 to 5.
PAPER_MODEL_AND_TASK = ("roberta_large", "rte")
#: The columns of the figures' data, in order; each figure has some of them.
COLUMNS = (
    "method",
    "row",
    "kind",
    "rank",
    "alpha",
    "scaling",
    "pair",
    "source",
    "site",
    "layer",
    "parameters",
    "accuracy",
    "head",
    "gain",
    "median",
    "mean",
    "low",
    "high",
    "spread",
    "least",
    "b",
    "n",
    "total",
    "wanted",
    "complete",
    "runs",
)

#: Draws a figure's data on matplotlib's axes.
Draw = Callable[[Axes, pd.DataFrame], object]


def paper_figure(
    number: int,
    title: str,
    data: pd.DataFrame,
    notes: Sequence[str],
    draw: Draw,
    subtitle: str,
    model_and_task: tuple[str, str] = PAPER_MODEL_AND_TASK,
    quoted: pd.DataFrame | None = None,
    height: float = HEIGHT,
) -> Figure:
    """A figure of the paper, drawn for one model and task.

    For the model and task of the paper's own figure it has the paper's numbers and
    finding, too. For any other, their names are in the figure's name, and a note says
    that they are not in the paper.

    Args:
        number: of the paper's figure.
        title: after the number.
        data: with some of COLUMNS.
        notes: on the data.
        draw: draws the data.
        subtitle: below the title.
        model_and_task: their names. Figure 6, which has neither, takes the default.
        quoted: the paper's numbers, as lines of the data.
        height: in inches.
    """
    lines = [*notes]
    name = f"figure{number}"
    if model_and_task == PAPER_MODEL_AND_TASK:
        # concat leaves out a frame that is None
        data = pd.concat([quoted, data], ignore_index=True)
        printed = paper()[name]
        if "note" in printed:  # figure 4 has none
            lines.append(f"{printed['note']}.")
            lines.append(f"Its finding: {printed['finding']}.")
    else:
        place = " on ".join(model_and_task)
        lines.append(
            f"{place} is not in the paper, whose figure is RoBERTa-large on RTE."
        )
        name = "_".join([name, *model_and_task])
    columns = [column for column in COLUMNS if column in data]
    full_title = f"Figure {number}: {title}"
    size = (WIDTH, height)
    return Figure(name, full_title, data[columns], lines, draw, subtitle, size=size)


@dataclass(frozen=True)
class Panel:
    """The cells of a model and task as a figure's data, with notes.

    model_and_task: their names, for the names of files. Where the task was measured in
    several ways, its name says how, except for the usual way. model_label, task_label:
    their labels."""

    model_and_task: tuple[str, str]
    data: pd.DataFrame
    model_label: str
    task_label: str
    notes: list[str]


def panels(part: Part, cells: pd.DataFrame) -> Iterator[Panel]:
    """The data and notes of a figure for each model, task and way in which these cells
    were measured. cells: of GLUE's tasks."""
    in_columns = assign_table_columns(cells.assign(column=cells.task))
    for (model, key), group in in_columns.groupby(["model", "table_column"]):
        first = group.iloc[0]
        is_of_panel = (part.runs.model == model) & (part.runs.task == first.task)
        label_parts = [GLUE[first.task], first.measurement_text]
        yield Panel(
            # "sst2, 1,000 training rows" becomes sst2_1000_training_rows
            model_and_task=(model, re.sub(r"\W+", "_", key.replace(",", ""))),
            data=group.assign(source=part.source, runs=group.ids),
            model_label=first.model_label,
            task_label=", ".join(filter(None, label_parts)),
            notes=notes(part.runs[is_of_panel], group),
        )


def printed_rte(rows: list[str]) -> pd.DataFrame:
    """The accuracies that the paper's table 2 prints for these rows of RoBERTa-large on
    RTE (value), with the exact `parameters` of the rows and the columns of a figure's
    data."""
    model, task = PAPER_MODEL_AND_TASK
    counts = {
        line["method"]: line["count"]
        for line in in_conf("counts.yaml")
        if line["model"] == model
    }
    frame = printed_numbers()
    is_shown = (frame.table == "table2") & (frame.model == model) & (frame.task == task)
    printed = frame[is_shown].set_index("row", drop=False).loc[rows]
    # `spread` in a figure's data is over the seeds of our runs
    printed = printed.drop(columns="spread")
    return printed.assign(
        parameters=printed.row.map(counts),
        kind=printed.row.str.partition("_")[0],
        runs=[()] * len(printed),
    )
