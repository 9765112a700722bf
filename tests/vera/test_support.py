"""docs/methods.md says what is so: every pair is tried again, and compared with the page."""

import pytest
import support
from tiny import ARCHITECTURES

PAGE = support.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_page_tells_what_works_and_why_the_rest_does_not(architecture):
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("|")]
    column = table[0].index(architecture)
    printed = {row[0]: row[column] for row in table[2:]}
    found = {name: support.cell(architecture, name) for name in support.METHODS}
    assert printed == {name: letters for name, (letters, _) in found.items()}
    for name, (_, refusals) in found.items():
        for letter, reason in refusals.items():
            lines = [line for line in PAGE.splitlines() if line.startswith("- **") and line.endswith(f": {reason}")]
            said = any(letter in line.split("**")[1] and name in line for line in lines)
            assert said, f"make docs: the page lacks {letter} {name}: {reason}"
