"""Pictures of predictions, as PNG: a confusion matrix, a scatter of a regression, a
grid of images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from tasks.base import Array

#: The colours of right and wrong predictions.
RIGHT = "#1b7837"
WRONG = "#c51b1b"
#: How many images stand in a row of a grid.
COLUMNS = 8
#: The inches of an image in a grid, with the space for the texts above it.
IMAGE_WIDTH = 1.5
IMAGE_HEIGHT = 1.9
#: A confusion matrix of more classes has no numbers in its cells.
NUMBERED_CLASSES = 25
#: The longest name of a class in a picture.
NAME_CHARACTERS = 18


def draw_grid(
    path: Path, pixels: Array, labels: Array, predictions: Array, classes: Sequence[str]
) -> None:
    """Draws images in a grid. Above each is its class, and below that the predicted class
    where it is another one.

    Args:
        pixels: uint8 (images, 3, height, width).
        labels, predictions: the index of each image's class, (images,).
        classes: the names of the classes."""
    rows = math.ceil(len(pixels) / COLUMNS)
    height = rows * IMAGE_HEIGHT
    figure = Figure(figsize=(COLUMNS * IMAGE_WIDTH, height), dpi=120)
    axes: Any = figure.subplots(rows, COLUMNS, squeeze=False)
    top = 1 - 0.4 / height  # leaves 0.4 inches to the texts of the first row
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=top, wspace=0.06, hspace=0.3
    )
    for axis in axes.flat:
        axis.axis("off")
    # The last row of the grid may have fewer images than axes: not strict
    for axis, image, label, predicted in zip(
        axes.flat, pixels, labels, predictions, strict=False
    ):
        axis.imshow(image.transpose(1, 2, 0))
        title = _short(classes[label])
        color = RIGHT
        if label != predicted:
            title += f"\nsaid: {_short(classes[predicted])}"
            color = WRONG
        axis.set_title(title, fontsize=8, color=color, loc="left", pad=2, va="bottom")
    figure.savefig(path, metadata={"Software": None})


def confusion(
    path: Path,
    labels: Sequence[str],
    predictions: Sequence[str],
    classes: Sequence[str],
    epoch: str,
) -> None:
    """Draws the confusion matrix: labels in rows, predictions in columns. A cell shows its
    share of the row, as a number where there are few classes.

    Args:
        labels, predictions: the name of each row's class.
        classes: all names, in the order of the matrix.
        epoch: which epoch predicted this, in words for the title."""
    count = len(classes)
    has_numbers = count <= NUMBERED_CLASSES
    side = max(4.0, min(14.0, 2.0 + 0.45 * count))
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=120)
    axis = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        labels,
        predictions,
        labels=classes,
        ax=axis,
        normalize="true",
        cmap="Blues",
        values_format=".0%",
        include_values=has_numbers,
        xticks_rotation=90,
        display_labels=[_short(name) for name in classes],
    )
    axis.tick_params(labelsize=9 if has_numbers else max(3.0, 260 / count))
    pairs = zip(labels, predictions, strict=True)
    right = sum(label == predicted for label, predicted in pairs)
    share = 100 * right / len(labels)
    axis.set_title(f"{right} of {len(labels)} right ({share:.1f}%), {epoch}")
    figure.savefig(path, metadata={"Software": None})


def scatter(path: Path, labels: Array, predictions: Array, title: str) -> None:
    """Draws a regression's predictions (rows,) over labels (rows,), and the line where
    both are equal."""
    figure = Figure(figsize=(5, 5), layout="constrained", dpi=120)
    axis = figure.subplots()
    axis.scatter(
        labels, predictions, s=12, alpha=0.5, edgecolors="none", color="#2166ac"
    )
    mean = float(np.mean(labels))
    axis.axline((mean, mean), slope=1, color="#888888", linewidth=1)
    axis.locator_params(nbins=5)  # prices are wide
    axis.set(xlabel="label", ylabel="predicted")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def _short(name: str) -> str:
    """A class's name for a label of matplotlib: shortened, with blanks for underscores,
    and with dollars escaped, which would begin mathematics."""
    name = name.replace("_", " ")
    if len(name) > NAME_CHARACTERS:
        name = f"{name[: NAME_CHARACTERS - 1]}…"
    return name.replace("$", r"\$")
