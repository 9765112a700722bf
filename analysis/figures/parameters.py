"""The dev metric by trainable parameters: of the demo, and of the tasks of tables 2 and 5."""

from dataclasses import replace

import pandas as pd

from analysis.figures.figure import Figure, Part, is_varied, nothing
from analysis.figures.pareto import CROWDED, of_rows
from analysis.figures.points import of_pair, points
from analysis.paper import GLUE

#: The x axes of the pictures of very many rows.
COSTS = ("parameters", "bytes", "seconds", "memory")
#: The demo's numbers of training and dev rows (conf/task/reviews.yaml).
DEMO = [1000, 500]


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


def make(part: Part) -> list[Figure]:
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
