"""CSV files: no cell of them is a formula, and each is read as it was given."""

import csv
import io
import re

import pytest

from runs.record.ledger import ROOT
from runs.record.spreadsheet import csv_text, read_own_csv

pytestmark = pytest.mark.properties

FORMULAS = [
    "=HYPERLINK(0)",
    "+1+cmd",
    "-2+3",
    "@SUM(1)",
    " =1",
    "\t=1",
    "\n=1",
    "-e1",
    "'=1",
    "''=1",
    '=a,"b"\n\'c',
]
PLAIN = ["", "'", "it's", "a=b", "-0.3", "+1e-05", "-inf", "5 - 3", "'quoted'"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_a_cell_is_no_formula_and_is_read_as_it_was_given(text, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(csv_text([["=name", "text"], [text, text]]), newline="")
    header, row = csv.reader(io.StringIO(path.read_text(), newline=""))
    guarded = f"'{text}" if text in FORMULAS else text
    assert (header, row) == (["'=name", "text"], [guarded, guarded])
    assert read_own_csv(path) == [{"=name": text, "text": text}]


def test_numbers_and_empty_cells_are_no_texts():
    text = csv_text([[1, -0.5, True, None, float("nan"), ""]])
    assert text == "1,-0.5,True,,,\n"


def test_no_other_code_writes_csv():
    """pandas' and csv's own writers leave formulas as they are."""
    writers = set()
    for room in ("vera", "tasks", "runs", "analysis"):
        for path in (ROOT / room).rglob("*.py"):
            source = path.read_text()
            if re.search(r"\.to_csv\(|csv\.(Dict)?[wW]riter\(", source):
                writers.add(str(path.relative_to(ROOT)))
    assert writers == {"runs/record/spreadsheet.py"}
