"""docs/methods.md says what is so: every pair is tried again, and compared with the page."""

import pytest
import support
from tiers import pairs
from tiny import ARCHITECTURES

PAGE = support.PAGE.read_text(encoding="utf-8")
HEAD, _, *ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")
]


def test_the_page_has_every_method_and_every_architecture():
    assert ["", *ARCHITECTURES] == HEAD
    assert [row[0] for row in ROWS] == [*support.METHODS]


@pytest.mark.parametrize(("name", "architecture"), pairs(support.METHODS, ARCHITECTURES))
def test_the_page_tells_what_works_and_why_the_rest_does_not(name, architecture):
    letters, refusals = support.cell(architecture, name)
    assert {row[0]: row[HEAD.index(architecture)] for row in ROWS}[name] == letters
    for letter, reason in refusals.items():
        lines = [
            line for line in PAGE.splitlines() if line.startswith("- **") and line.endswith(f": {reason}")
        ]
        said = any(letter in line.split("**")[1] and name in line for line in lines)
        assert said, f"make methods: the page lacks {letter} {name}: {reason}"
