"""Labels of texts: which are classes and which are numbers to predict, and what each
row's label is."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.base import DataError, list_names, quoted
from tasks.tables import DataTable

#: The largest number that a model of 32 bits can answer.
LARGEST_NUMBER = float(np.finfo(np.float32).max)


def class_names(
    table: DataTable, column: str, regression: bool | None
) -> list[str] | None:
    """The names of the classes in the training rows, numbers by size and then words;
    None for a regression. regression: whether the labels are numbers to predict; None:
    by the labels."""
    labels = [(line, row[column]) for line, row in table.rows]
    if regression is None:
        regression = _is_regression(table.place, labels)
    if regression:
        return None
    names = {str(label) for _, label in labels}
    numbers = [name for name in names if _is_finite(name)]
    numbers.sort(key=lambda name: (float(name), name))
    classes = numbers + sorted(names.difference(numbers))
    if len(classes) < 2:
        label = quoted(classes[0])
        raise DataError(f"{table.place}: only one label, {label}: nothing to learn")
    return classes


def _is_regression(place: Path | str, labels: list[tuple[int, object]]) -> bool:
    """Whether labels (line, label) are numbers, some with a fractional part. Raises
    DataError for a word among such numbers, and for NaN or infinity among any numbers:
    it may stand for a missing value."""
    fraction = None
    odd = None
    for line, label in labels:
        number = _number(label)
        if number is None or not math.isfinite(number):
            odd = odd or (line, label)
        elif fraction is None and number % 1:
            fraction = label
    if odd is None:
        return fraction is not None
    has_words = any(_number(label) is None for _, label in labels)
    if fraction is None and has_words:
        return False
    others_are = "are numbers"
    if fraction is not None:
        others_are = f"have a fractional part ({quoted(fraction)})"
    line, label = odd
    raise DataError(
        f"{place} line {line}: label {quoted(label)} is not a finite number, and others "
        f"{others_are}. For classes: task.regression=false"
    )


def parse_label(
    value: object, classes: list[str] | None, place: Path | str, line: int
) -> int | float:
    """The index of a class, or a number where classes is None. Raises DataError with
    file and line for any other label, also for NaN where a file has numbers: it stands
    for a missing value."""
    number = _number(value)
    if classes is None:
        if number is not None and abs(number) <= LARGEST_NUMBER:
            return number
        expected = "a finite number of 32 bits"
        raise DataError(f"{place} line {line}: label {quoted(value)} is not {expected}")
    finite = not isinstance(value, float) or math.isfinite(value)
    if finite and str(value) in classes:
        return classes.index(str(value))
    expected = "a finite number of 32 bits"
    if finite:
        expected = f"one of {list_names(classes)}"
    hint = ""
    if number is not None and all(_number(name) is not None for name in classes):
        hint = ". Numbers to predict: task.regression=true"
    raise DataError(
        f"{place} line {line}: label {quoted(value)} is not {expected}{hint}"
    )


def mean_and_spread(labels: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the labels of a regression; the deviation of equal
    labels is 1."""
    numbers = np.asarray(labels, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std()) or 1.0


def _is_finite(value: object) -> bool:
    number = _number(value)
    return number is not None and math.isfinite(number)


def _number(value: object) -> float | None:
    """The value as a number, which may be NaN or infinite; None for anything else."""
    try:
        return float(value)  # type: ignore[arg-type]  # which raises TypeError
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf
    except (TypeError, ValueError):
        return None
