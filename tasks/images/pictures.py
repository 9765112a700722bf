"""Pictures of a run on images: a grid of predictions and a confusion matrix, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasks.base import Array

RIGHT, WRONG = "#1b7837", "#c51b1b"


def grid(path: Path, pixels: Array, labels: Array, predictions: Array, classes: Sequence[str]) -> None:
    """Draws images, uint8 (images, 3, height, width), each with its class, and a wrong prediction below."""
    columns = 8
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(columns * 1.5, rows * 1.9), dpi=120)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.4 / (rows * 1.9), wspace=0.06, hspace=0.3
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, predicted in zip(axes.flat, pixels, labels, predictions, strict=False):
        axis.imshow(image.transpose(1, 2, 0))
        right = label == predicted
        wrong = "" if right else f"\nsaid: {_short(classes[predicted])}"
        how = {"color": RIGHT if right else WRONG, "loc": "left", "pad": 2, "va": "bottom"}
        axis.set_title(_short(classes[label]) + wrong, fontsize=8, parse_math=False, **how)
    _save(figure, path)


def confusion(path: Path, labels: Array, predictions: Array, classes: Sequence[str]) -> None:
    """Draws the confusion matrix: labels in rows, predictions in columns, in shares of the row; with counts
    for few classes."""
    count = len(classes)
    counts = np.zeros((count, count), int)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(4.0, min(14.0, 2.0 + 0.45 * count))
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=120)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9 if count <= 25 else max(3.0, 260 / count)
    names = [_short(name) for name in classes]
    axis.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(range(count), names, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("label")
    right, total = np.trace(counts), len(labels)
    axis.set_title(f"{right} of {total} right ({100 * right / total:.1f}%), last epoch")
    if count <= 25:
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the label's images")
    _save(figure, path)


def _short(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= 18 else f"{name[:17]}…"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})
