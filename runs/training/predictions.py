"""What a model with a head predicts for rows. predictions.csv in a run's folder has the
dev rows at the epoch whose adapter is kept; by_class.csv, pictures and the rows with the
largest loss are made from it.

These files hold the user's own rows, so no record, report, export or W&B has anything
of them."""

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
#: The columns after those that name a row. There is one PROBABILITY for each class.
LABEL, PREDICTED, PROBABILITY = "label", "predicted", "p({})"
#: The columns of a row's texts.
TEXTS = ("text", "text_pair")


def prediction_table(
    task: tasks.Task,
    about: Mapping[str, Sequence[Any]],
    outputs: Any,
    labels: Any = None,
) -> list[list[Any]]:
    """The columns' names, then each row: what names it, label, prediction, and
    probabilities of the classes.

    about: the columns that name a row, such as those of `Task.about`. outputs: (rows,
    num_labels), as `Task.answers` gives them. labels: (rows,), as the task has them;
    None for rows without labels, which get no such column."""
    classes = getattr(task, "classes", None)

    def as_text(values: Any) -> list[str]:
        return [
            f"{value:.7g}" if classes is None else classes[value] for value in values
        ]

    columns = dict(about) | ({} if labels is None else {LABEL: as_text(labels)})
    columns[PREDICTED] = as_text(task.predict(outputs))
    if classes is not None:
        probabilities = np.exp(
            np.asarray(outputs, np.float64) - np.max(outputs, axis=1, keepdims=True)
        )
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        for name, column in zip(classes, probabilities.T, strict=True):
            columns[PROBABILITY.format(name)] = [f"{p:.4g}" for p in column]
    return [[*columns], *map(list, zip(*columns.values(), strict=True))]


def illustrate(task: tasks.Task, folder: Path, epoch: str) -> None:
    """Writes by_class.csv of the predictions in a finished run's folder, then draws
    them. The table comes first, since drawing may run out of memory. epoch: what the
    pictures call the epoch of the predictions."""
    rows = read_own_csv(folder / NAME)
    labels = [row[LABEL] for row in rows]
    predicted = [row[PREDICTED] for row in rows]
    classes = getattr(task, "classes", None)
    if classes is None:
        _draw_regression(task, folder, labels, predicted, epoch)
        return
    text = csv_text(class_report(labels, predicted, classes))
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


def class_report(
    labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> list[list[Any]]:
    """The rows of by_class.csv: each class that occurs, and the means over classes,
    with the columns of scikit-learn's classification_report."""
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


def row_loss(row: Mapping[str, str]) -> float:
    """A row's cross-entropy, or its absolute error in a regression. Raises ValueError
    for a class without probabilities, as in files of images from before 2026-11-30."""
    column = PROBABILITY.format(row[LABEL])
    if column in row:
        return -math.log(max(float(row[column]), sys.float_info.min))
    return abs(float(row[LABEL]) - float(row[PREDICTED]))


def describe_row(row: Mapping[str, str]) -> str:
    """A row on a line, without its texts: what names it, its label, what is predicted,
    and the loss."""
    names = list[str]()
    for column, value in row.items():
        if column == LABEL:
            break
        if column not in TEXTS:
            names.append(f"{column} {value}")
    label = _with_probability(row, LABEL)
    predicted = _with_probability(row, PREDICTED)
    return f"{', '.join(names)}: {label}, {predicted}, loss {row_loss(row):.6g}"


def _with_probability(row: Mapping[str, str], column: str) -> str:
    """A row's label or prediction, with the probability that the model gives it."""
    text = f"{column} {row[column]}"
    probability = row.get(PROBABILITY.format(row[column]))
    return f"{text} ({float(probability):.0%})" if probability else text
