"""Pictures of predictions, as PNG: a confusion matrix, a scatter of a regression, a
grid of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from tasks.base import Array

RIGHT, WRONG = "#1b7837", "#c51b1b"


def grid(
    path: Path, pixels: Array, labels: Array, predictions: Array, classes: Sequence[str]
) -> None:
    """Draws images, uint8 (images, 3, height, width), each with its class, and a wrong
    prediction below."""
    columns = 8
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(columns * 1.5, rows * 1.9), dpi=120)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    top = 1 - 0.4 / (rows * 1.9)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=top, wspace=0.06, hspace=0.3
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, predicted in zip(
        axes.flat, pixels, labels, predictions, strict=False
    ):
        axis.imshow(image.transpose(1, 2, 0))
        right = label == predicted
        wrong = "" if right else f"\nsaid: {_short(classes[predicted])}"
        how = {
            "color": RIGHT if right else WRONG,
            "loc": "left",
            "pad": 2,
            "va": "bottom",
        }
        axis.set_title(_short(classes[label]) + wrong, fontsize=8, **how)
    figure.savefig(path, metadata={"Software": None})


def confusion(
    path: Path,
    labels: Sequence[str],
    predictions: Sequence[str],
    classes: Sequence[str],
    when: str,
) -> None:
    """Draws the confusion matrix: labels in rows, predictions in columns, in shares of
    the row, which stand there for few classes. when: the epoch, in words."""
    count, right = len(classes), sum(map(str.__eq__, labels, predictions))
    side = max(4.0, min(14.0, 2.0 + 0.45 * count))
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=120)
    axis = figure.subplots()
    how: Any = {"normalize": "true", "cmap": "Blues", "values_format": ".0%"}
    how |= {"include_values": count <= 25, "xticks_rotation": 90}
    how["display_labels"] = list(map(_short, classes))
    ConfusionMatrixDisplay.from_predictions(
        labels, predictions, labels=classes, ax=axis, **how
    )
    axis.tick_params(labelsize=9 if count <= 25 else max(3.0, 260 / count))
    axis.set_title(
        f"{right} of {len(labels)} right ({100 * right / len(labels):.1f}%), {when}"
    )
    figure.savefig(path, metadata={"Software": None})


def scatter(path: Path, labels: Array, predictions: Array, title: str) -> None:
    """Draws a regression's predictions (rows,) over labels (rows,), and the line where
    both are equal."""
    figure = Figure(figsize=(5, 5), layout="constrained", dpi=120)
    axis = figure.subplots()
    axis.scatter(
        labels, predictions, s=12, alpha=0.5, edgecolors="none", color="#2166ac"
    )
    axis.axline((float(np.mean(labels)),) * 2, slope=1, color="#888888", linewidth=1)
    axis.locator_params(nbins=5)  # prices are wide
    axis.set(xlabel="label", ylabel="predicted")
    axis.set_title(title, fontsize=10)
    figure.savefig(path, metadata={"Software": None})


def _short(name: str) -> str:
    """The name for a label of matplotlib, for which a dollar begins mathematics."""
    name = name.replace("_", " ")
    return (name if len(name) <= 18 else f"{name[:17]}…").replace("$", r"\$")
