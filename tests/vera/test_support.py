"""docs/methods.md says what is so: every pair is tried again, and compared with the
page."""

from itertools import product

import peft
import pytest
import support
import torch
from support import classes
from tiers import slow_except
from tiny import ARCHITECTURES, answer, dequantised

pytestmark = pytest.mark.contract

PAGE = support.PAGE.read_text(encoding="utf-8")
#: Of each table, the rows of cells: this library's methods and peft's classes by
#: architecture, and the facts.
OWN, THEIRS, FACTS = (
    [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for i, line in enumerate(block.splitlines())
        if i != 1  # the rule below the head
    ]
    for block in PAGE.split("\n\n")
    if block.startswith("|")
)
#: The slow tests try all, the fast ones every third method, each on another
#: architecture, and every twelfth class.
METHODS = [*zip([*support.METHODS][::3], ARCHITECTURES, strict=False)]
CLASSES = [(name, "RoBERTa") for name in classes()[::12]]


def test_the_page_has_every_method_architecture_and_class_of_the_installed_peft():
    assert ["", *ARCHITECTURES] == OWN[0] == THEIRS[0]
    assert [row[0] for row in OWN[1:]] == [*support.METHODS]
    hint = f"docs/methods.md is not of peft {peft.__version__} (make methods)."
    assert {row[0] for row in THEIRS[1:]} == set(classes()), hint
    assert f"class of peft {peft.__version__} " in PAGE, hint
    works = [
        row[0] for row in THEIRS[1:] if any(cell.startswith("T") for cell in row[1:])
    ]
    assert [row[0] for row in FACTS[1:]] == works, hint


def letters_of(rows: list[list[str]], name: str, architecture: str) -> str:
    return {row[0]: row for row in rows}[name][rows[0].index(architecture)]


@pytest.mark.parametrize(
    ("name", "architecture"),
    slow_except(product(support.METHODS, ARCHITECTURES), *METHODS),
)
def test_the_page_tells_what_works(name, architecture):
    assert letters_of(OWN, name, architecture) == support.cell(architecture, name)


@pytest.mark.parametrize(
    ("name", "architecture"), slow_except(product(classes(), ARCHITECTURES), *CLASSES)
)
def test_the_page_tells_what_a_class_of_peft_does(name, architecture):
    assert letters_of(THEIRS, name, architecture) == support.cell(architecture, name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_was_trained_over_4_bit_weights_loads_onto_others(architecture):
    method = support.METHODS["VeRA"](architecture)
    model, again = (
        support.adapted(architecture, method, four_bit=True),
        dequantised(architecture),
    )
    support.reloaded(model, method, again)
    assert torch.allclose(
        answer(again), answer(model), rtol=0, atol=support.tolerance_for(again, method)
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", FACTS[1:], ids=lambda row: row[0])
def test_the_page_has_the_count_and_the_bytes_of_each_class_on_roberta_base(row):
    assert row[1:] == support.class_facts(row[0])
