"""What figures 2 to 6 share: their columns, and what the paper prints beside them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.figure import HEIGHT, WIDTH, Figure, Part
from analysis.frame import assign_table_columns
from analysis.notes import notes
from analysis.paper import GLUE, numbers, paper
from runs.record.ledger import in_conf

#: The model and task of the paper's figures 2 to 5.
PAPER_MODEL_AND_TASK = ("roberta_large", "rte")
#: The columns of the data, in order; a figure has some of them.
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
    """A figure of a model and task. That of the paper's own (PAPER_MODEL_AND_TASK) shows
    the paper's numbers and finding, too; another one has their names in its own, and a
    note.

    number: of the paper's figure. quoted: the paper's numbers, lines of the figure's
    data. height: in inches."""
    lines = [*notes]
    name = f"figure{number}"
    if model_and_task == PAPER_MODEL_AND_TASK:
        data = pd.concat([quoted, data], ignore_index=True)
        printed = paper()[name]
        if "note" in printed:
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

    model_and_task: by name; the task's has how it was measured, unless most rows were
    measured so. model_label, task_label: the same by label."""

    model_and_task: tuple[str, str]
    data: pd.DataFrame
    model_label: str
    task_label: str
    notes: list[str]


def panels(part: Part, cells: pd.DataFrame) -> Iterator[Panel]:
    """A panel for each model, task and way in which these cells were measured."""
    in_columns = assign_table_columns(cells.assign(column=cells.task))
    for (model, key), group in in_columns.groupby(["model", "table_column"]):
        first = group.iloc[0]
        is_same = (part.runs.model == model) & (part.runs.task == first.task)
        parts = [GLUE[first.task], first.measurement_text]
        yield Panel(
            model_and_task=(model, re.sub(r"\W+", "_", key.replace(",", ""))),
            data=group.assign(source=part.source, runs=group.ids),
            model_label=first.model_label,
            task_label=", ".join(filter(None, parts)),
            notes=notes(part.runs[is_same], group),
        )


def printed_rte(rows: list[str]) -> pd.DataFrame:
    """Table 2's accuracies on RTE of RoBERTa-large of these rows, with their exact
    `parameters` and the columns of a figure's data."""
    model, task = PAPER_MODEL_AND_TASK
    counts = {
        line["method"]: line["count"]
        for line in in_conf("counts.yaml")
        if line["model"] == model
    }
    frame = numbers()
    is_shown = (frame.table == "table2") & (frame.model == model) & (frame.task == task)
    printed = frame[is_shown].set_index("row", drop=False).loc[rows]
    printed = printed.drop(columns="spread")
    return printed.assign(
        parameters=printed.row.map(counts),
        kind=printed.row.str.partition("_")[0],
        runs=[()] * len(printed),
    )
