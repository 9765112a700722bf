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

FILE_NAME = "predictions.csv"
#: The columns after those that name a row.
LABEL = "label"
PREDICTED = "predicted"
#: The column with the probability of a class, whose name replaces the braces.
PROBABILITY = "p({})"
#: The columns of a row's texts.
TEXTS = ("text", "text_pair")


def prediction_table(
    task: tasks.Task,
    about: Mapping[str, Sequence[Any]],
    outputs: Any,
    labels: Any = None,
) -> list[list[Any]]:
    """The rows of predictions.csv: the columns' names, then for each row what names it,
    its label, the prediction, and the probabilities of the classes.

    about: the columns that name a row, such as those of `Task.about`. outputs: (rows,
    num_labels), as `Task.answers` gives them. labels: (rows,), as the task has them;
    None for rows without labels, which get no such column."""
    classes = getattr(task, "classes", None)

    def as_text(values: Any) -> list[str]:
        """The names of classes, given by their indices, or a regression's numbers."""
        if classes is None:
            return [f"{value:.7g}" for value in values]
        return [classes[index] for index in values]

    columns = dict(about)
    if labels is not None:
        columns[LABEL] = as_text(labels)
    columns[PREDICTED] = as_text(task.predict(outputs))
    if classes is not None:
        probabilities = _softmax(outputs)
        for name, column in zip(classes, probabilities.T, strict=True):
            columns[PROBABILITY.format(name)] = [f"{p:.4g}" for p in column]
    rows = zip(*columns.values(), strict=True)
    return [[*columns], *map(list, rows)]


def _softmax(outputs: Any) -> np.ndarray[Any, Any]:
    """The probabilities (rows, classes) of logits, in float64."""
    largest = np.max(outputs, axis=1, keepdims=True)
    exponentials: np.ndarray[Any, Any] = np.exp(
        np.asarray(outputs, np.float64) - largest
    )
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def illustrate(task: tasks.Task, folder: Path, epoch: str) -> None:
    """Draws the predictions in a run's folder there. Of classes it first writes
    by_class.csv, since drawing may run out of memory.

    epoch: what the pictures call the epoch of the predictions."""
    rows = read_own_csv(folder / FILE_NAME)
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
    """Draws scatter.png, a regression's predictions against the labels. Both are
    numbers as predictions.csv has them."""
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
    """The rows of by_class.csv: the columns' names, each class that occurs, and the means
    over classes, with the columns of scikit-learn's classification_report."""
    from sklearn.metrics import classification_report

    occurring = [name for name in classes if name in {*labels, *predicted}]
    options: Any = {"labels": occurring, "output_dict": True, "zero_division": 0}
    report: Any = classification_report(labels, predicted, **options)
    columns = ["precision", "recall", "f1-score", "support"]
    rows: list[list[Any]] = [["class", *columns]]
    for name in (*occurring, "macro avg", "weighted avg"):
        rows.append([name, *(f"{report[name][column]:.4g}" for column in columns)])
    return rows


# --- the rows with the largest loss


def row_loss(row: Mapping[str, str]) -> float:
    """The cross-entropy of a row of predictions.csv, or its absolute error in a
    regression. Raises ValueError for a class without probabilities, as in files of
    images from before 2026-11-30."""
    column = PROBABILITY.format(row[LABEL])
    if column in row:
        # a probability may have been rounded to 0
        return -math.log(max(float(row[column]), sys.float_info.min))
    # numbers of a regression; float() raises the error for a class's name
    return abs(float(row[LABEL]) - float(row[PREDICTED]))


def describe_row(row: Mapping[str, str]) -> str:
    """A row of predictions.csv on a line, without its texts: what names it, its label,
    what is predicted, and the loss."""
    names = list[str]()
    for column, value in row.items():
        if column == LABEL:  # the columns before it name the row
            break
        if column not in TEXTS:
            names.append(f"{column} {value}")
    label = _with_probability(row, LABEL)
    predicted = _with_probability(row, PREDICTED)
    return f"{', '.join(names)}: {label}, {predicted}, loss {row_loss(row):.6g}"


def _with_probability(row: Mapping[str, str], column: str) -> str:
    """A row's label or prediction, with the probability that the model gives it; without
    one in a regression. column: LABEL or PREDICTED."""
    text = f"{column} {row[column]}"
    probability = row.get(PROBABILITY.format(row[column]))
    if probability:
        text += f" ({float(probability):.0%})"
    return text
