"""CSV files, which people open in a spreadsheet: one writer for all of them.

A spreadsheet runs a text that begins with = as a formula, and such a text may come from
a stranger: a row of a data set, a label, a note. The writer puts an apostrophe before
it, and the reader takes the apostrophe away."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: How a text begins that a spreadsheet may run, or that has an apostrophe already.
FORMULA_START = re.compile(r"[\s']*[=+\-@]")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the text of a CSV file. None and NaN are empty cells."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def read_own_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `csv_text` made. Each maps a column to its text, without
    the apostrophes that the writer put there."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        return [
            {_original(column): _original(cell) for column, cell in row.items()}
            for row in rows
        ]


def _cell(value: Any) -> Any:
    """A value as the CSV writer gets it: "" for NaN, an apostrophe before a formula."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, str) and _is_formula(value):
        return f"'{value}"
    return value


def _original(cell: str) -> str:
    """The text that `_cell` was given."""
    if cell and cell[0] == "'" and _is_formula(cell[1:]):
        return cell[1:]
    return cell


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may run a text. It reads -0.3 as a number."""
    if not FORMULA_START.match(text):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False
