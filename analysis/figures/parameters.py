"""The dev metric by trainable parameters: of the demo, and of the tasks of tables 2 and 5."""

from dataclasses import replace

import pandas as pd

from analysis.figures.figure import Figure, Part, is_varied, nothing
from analysis.figures.pareto import CROWDED, of_rows
from analysis.paper import GLUE

#: The x axes of the pictures of very many rows.
COSTS = ("parameters", "bytes", "seconds", "memory")
#: The demo's numbers of training and dev rows (conf/task/reviews.yaml).
DEMO = (1000, 500)


def demo(part: Part) -> list[Figure]:
    """The demo's: a picture for each model and number of rows (task.train_rows and dev_rows; 0: all)."""
    runs, name = (
        part.runs[(part.runs.kind == "result") & (part.runs.task == "reviews")],
        "accuracy_vs_parameters",
    )
    asked = pd.Series(
        [(of.get("train_rows") or 0, of.get("dev_rows") or 0) for of in runs.settings], runs.index
    )
    figures = []
    for size in sorted(set(asked)):
        of, several = runs[asked == size], asked.nunique() > 1
        # The demo's own size has the plain name, where there are others
        of_size = f"{name}_{size[0]}_{size[1]}" if several and size != DEMO else name
        rows = f", {of.train_rows.iloc[0]:,.0f} training and {of.dev_rows.iloc[0]:,.0f} dev rows"
        figures += _by_model(of, of_size, "minilm", part, rows * several)
    return figures or [nothing(name, "The demo: dev metric by parameters", "Nothing has run: make demo.")]


def make(part: Part) -> list[Figure]:
    """The same of the tasks of tables 2 and 5, a picture for each model and task: table 2's rows, without
    other ranks and ablations. With tasks: of these instead, whatever they are, there with every row."""
    runs = part.runs[part.runs.kind == "result"]
    usual = (runs.task.isin(list(GLUE)) | (runs.family == "images")) & ~runs.row.map(is_varied).astype(bool)
    runs = runs[runs.task.isin(part.tasks) if part.tasks else usual]
    return [
        figure
        for task, of in runs.groupby("task")
        for figure in _by_model(of, f"parameters_{task}", "", part)
    ]


def _by_model(runs: pd.DataFrame, name: str, usual: str, part: Part, more: str = "") -> list[Figure]:
    """A picture for each model, of one task's runs; of very many rows a picture for each of COSTS. usual: the
    model that the name needs no word for. more: what the title says of the data."""
    figures = []
    for model, of in runs.groupby("model"):
        whole = name if model == usual else f"{name}_{model}"
        for x in COSTS if of.row.nunique() > CROWDED else COSTS[:1]:
            of_axes = replace(part, axes=(x, "metric"))
            figures.append(of_rows(of, of_axes, whole.replace("parameters", x), more, spans=True))
    return figures
