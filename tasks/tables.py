"""Reads tables of texts and labels (CSV, TSV, JSONL and parquet files, and data sets of
the hub), and decides whether labels are classes or numbers to predict."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.base import DataError, Settings, first_line, list_names, quoted
from tasks.files import open_text, read_parquet, validated

#: The number of a row's line in its file, and the row's values by column.
Row = tuple[int, dict[str, Any]]


class DataTable(NamedTuple):
    """The rows of a file or of a hub split. place: its path or name, for messages."""

    place: Path | str
    rows: list[Row]


def read_table(path: Path) -> Iterator[Row]:
    """Rows of a CSV, TSV, JSONL or parquet file. Raises DataError with the line that is
    wrong."""
    if path.suffix == ".parquet":
        yield from read_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from read_csv(path, TSV if path.suffix == ".tsv" else {})
    elif path.suffix in (".jsonl", ".json"):
        with open_text(path) as file:
            for line, text in enumerate(file, 1):
                yield line, validated(dict[str, Any], text, f"{path} line {line}")
    else:
        raise DataError(
            f"{path}: the name should end in .csv, .tsv, .jsonl or .parquet"
        )


#: The dialect of TSV files. Benchmarks write them without quoting: a lone quotation mark is
#: text.
TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
#: Python's own limit, 131,072 characters, is shorter than some texts.
LONGEST_FIELD = 10_000_000


def read_csv(
    path: Path, dialect: Mapping[str, Any], header: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a CSV file. dialect: arguments of csv.reader, such as TSV. header: the columns
    of a file that does not name them. Raises DataError for a row that has not as many
    columns as the header."""
    csv.field_size_limit(LONGEST_FIELD)
    with open_text(path) as file:
        reader = csv.DictReader(file, header, strict=True, **dialect)
        try:
            for row in reader:
                if None in row or None in row.values():
                    problem = _column_count_problem(row, is_tsv=dialect == TSV)
                    raise DataError(f"{path} line {reader.line_num}: {problem}")
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path} line {reader.reader.line_num}: {error}") from None


def _column_count_problem(row: Mapping[Any, Any], is_tsv: bool) -> str:
    """The message for a row that has more or fewer values than the header has columns.
    row: of csv.DictReader, which puts surplus values under the key None, and gives None
    for missing ones."""
    columns = [name for name in row if name is not None]
    surplus = row.get(None, [])
    count = len(surplus) + sum(row[name] is not None for name in columns)
    problem = f"{count} of {len(columns)} columns"
    if surplus:
        problem = f"{count} columns instead of {len(columns)}"
    if is_tsv:
        problem += ". A .tsv has no quoting, a .csv has"
    elif surplus:
        problem += ". Put a text with a comma into double quotes"
    return problem


def read_hub(settings: Settings, split: str) -> DataTable:
    """A split of the data set that task.hub names. Raises DataError where it cannot be
    loaded."""
    from datasets import load_dataset

    place = f"{settings['hub']}:{split}"
    try:
        rows = load_dataset(
            settings["hub"],
            settings.get("hub_config"),
            split=split,
            revision=settings.get("revision"),
        )
        return DataTable(place, list(enumerate(rows, 1)))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{place}: {first_line(error)}. "
            "Or give files: task.train_file= and task.dev_file="
        ) from None


# --- labels


#: The largest number that a model of 32 bits can answer.
LARGEST_NUMBER = float(np.finfo(np.float32).max)


def class_names(
    table: DataTable, column: str, regression: bool | None
) -> list[str] | None:
    """The names of the classes, in the order of their indices: numbers by size and then
    words. None for a regression.

    Args:
        table: the training rows.
        column: where their labels are.
        regression: whether the labels are numbers to predict; None lets the labels
            themselves decide (`_is_regression`).

    Raises DataError for a single class, and for labels of an unclear kind."""
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
    """Whether all labels are numbers, some of them with a fractional part. labels: the
    line and the label of each row. Raises DataError for a word among such numbers, and
    for NaN or infinity among any numbers: it may stand for a missing value."""
    # The first label with a fractional part, and the first (line, label) that is no finite
    # number
    fraction = None
    not_finite = None
    for line, label in labels:
        number = _number(label)
        if number is None or not math.isfinite(number):
            not_finite = not_finite or (line, label)
        elif fraction is None and number % 1:
            fraction = label
    if not_finite is None:
        return fraction is not None
    has_words = any(_number(label) is None for _, label in labels)
    if fraction is None and has_words:
        return False
    other_labels = "are numbers"
    if fraction is not None:
        other_labels = f"have a fractional part ({quoted(fraction)})"
    line, label = not_finite
    raise DataError(
        f"{place} line {line}: label {quoted(label)} is not a finite number, and others "
        f"{other_labels}. For classes: task.regression=false"
    )


def parse_label(
    value: object, classes: list[str] | None, place: Path | str, line: int
) -> int | float:
    """The index of a label's class, or its number where classes is None. Raises DataError
    with file and line for any other label. A float that is NaN or infinite is never a
    class, even one of this name: a parquet or JSONL file has it for a missing value."""
    number = _number(value)
    if classes is None:
        if number is not None and abs(number) <= LARGEST_NUMBER:
            return number
        expected = "a finite number of 32 bits"
        raise DataError(f"{place} line {line}: label {quoted(value)} is not {expected}")
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if is_finite and str(value) in classes:
        return classes.index(str(value))
    expected = "a finite number of 32 bits"
    if is_finite:
        expected = f"one of {list_names(classes)}"
    hint = ""
    if number is not None and all(_number(name) is not None for name in classes):
        hint = ". Numbers to predict: task.regression=true"
    raise DataError(
        f"{place} line {line}: label {quoted(value)} is not {expected}{hint}"
    )


def mean_and_spread(labels: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of the labels of a regression. If all labels are equal,
    the deviation is given as 1, since labels are divided by it."""
    numbers = np.asarray(labels, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std()) or 1.0


def _is_finite(value: object) -> bool:
    """Whether the value is a number, and neither NaN nor infinite."""
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
