"""What a model with a head answers for rows: predictions.csv in a run's folder, of the
dev rows at the epoch whose adapter is kept, and what is made of it: by_class.csv,
pictures, the rows with the largest loss.

It holds the user's own rows. No record, report, export or W&B has anything of it."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tasks
from runs.record.files import write_atomically
from runs.record.spreadsheet import csv_text, read_own_csv

NAME = "predictions.csv"
#: The columns after those that name a row; the last is the probability of a class, for
#: each class.
LABEL, PREDICTED, CHANCE = "label", "predicted", "p({})"
#: Those of a row's texts.
TEXTS = ("text", "text_pair")


def prediction_table(
    task: tasks.Task,
    about: Mapping[str, Sequence[Any]],
    outputs: Any,
    labels: Any = None,
) -> list[list[Any]]:
    """The columns' names, then each row: what names it, label, prediction, and
    probabilities of the classes.

    about: columns, such as of `Task.about`. outputs: (rows, num_labels), as
    `Task.answers` gives them. labels: (rows,), as the task has them; without, there is
    no such column."""
    classes = getattr(task, "classes", None)

    def as_text(values: Any) -> list[str]:
        return [
            f"{value:.7g}" if classes is None else classes[value] for value in values
        ]

    columns = dict(about) | ({} if labels is None else {LABEL: as_text(labels)})
    columns[PREDICTED] = as_text(task.predict(outputs))
    if classes is not None:
        shares = np.exp(
            np.asarray(outputs, np.float64) - np.max(outputs, axis=1, keepdims=True)
        )
        shares /= shares.sum(axis=1, keepdims=True)
        for name, shares_of_class in zip(classes, shares.T, strict=True):
            columns[CHANCE.format(name)] = [f"{p:.4g}" for p in shares_of_class]
    return [[*columns], *map(list, zip(*columns.values(), strict=True))]


def illustrate(task: tasks.Task, folder: Path, epoch: str) -> None:
    """Writes by_class.csv of the predictions in a finished run's folder, then draws
    them: pictures need more memory than a table. epoch: of the predictions."""
    rows = read_own_csv(folder / NAME)
    labels = [row[LABEL] for row in rows]
    predicted = [row[PREDICTED] for row in rows]
    classes = getattr(task, "classes", None)
    if classes is None:
        _draw_regression(task, folder, labels, predicted, epoch)
        return
    text = csv_text(by_class(labels, predicted, classes))
    write_atomically(folder / "by_class.csv", text)

    from tasks import pictures

    pictures.confusion(folder / "confusion.png", labels, predicted, classes, epoch)
    indices = np.asarray([classes.index(name) for name in predicted])
    task.illustrate(folder, indices)


def _draw_regression(
    task: tasks.Task,
    folder: Path,
    labels: Sequence[str],
    predicted: Sequence[str],
    epoch: str,
) -> None:
    from tasks import pictures

    expected = np.asarray(labels, np.float32)
    answers = np.asarray(predicted, np.float32)
    score = task.score(answers, expected)
    error = np.sqrt(np.mean((expected - answers) ** 2))
    title = f"{task.metric} {score:.3f}, RMSE {error:.6g}, {epoch}"
    pictures.scatter(folder / "scatter.png", expected, answers, title)


def by_class(
    labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> list[list[Any]]:
    """Each class that occurs, and their means, with the columns of scikit-learn's
    classification_report."""
    from sklearn.metrics import classification_report

    occurs = [name for name in classes if name in {*labels, *predicted}]
    options: Any = {"labels": occurs, "output_dict": True, "zero_division": 0}
    report: Any = classification_report(labels, predicted, **options)
    keys = ["precision", "recall", "f1-score", "support"]
    rows: list[list[Any]] = [["class", *keys]]
    for name in (*occurs, "macro avg", "weighted avg"):
        rows.append([name, *(f"{report[name][key]:.4g}" for key in keys)])
    return rows


# --- the rows with the largest loss


def loss(row: Mapping[str, str]) -> float:
    """A row's cross-entropy, or its absolute error in a regression. Raises ValueError
    for classes without probabilities, as in files of images from before 2026-11-30."""
    if (column := CHANCE.format(row[LABEL])) in row:
        return -math.log(max(float(row[column]), sys.float_info.min))
    return abs(float(row[LABEL]) - float(row[PREDICTED]))


def sentence(row: Mapping[str, str]) -> str:
    """A row on a line, without its texts: what names it, its label, what is predicted,
    and the loss."""

    def value(column: str) -> str:
        share = row.get(CHANCE.format(row[column]))
        return f"{column} {row[column]}" + (f" ({float(share):.0%})" if share else "")

    names = [
        f"{key} {row[key]}" for key in [*row][: [*row].index(LABEL)] if key not in TEXTS
    ]
    return (
        f"{', '.join(names)}: {value(LABEL)}, {value(PREDICTED)}, loss {loss(row):.6g}"
    )
