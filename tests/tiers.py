"""What makes a test slow: that it uses one of these fixtures, which only say so. `make
test` leaves slow tests out.

Two more start what they are named after, where it is used: `slurm` (test_sweep.py) and
`browser` (test_report.py)."""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Iterable
from typing import Any

import pytest

SLOW = {"process", "network", "java", "browser", "slurm", "ray", "real_model"}
#: CI sets it: what is missing there is a failure, and no reason to skip a test.
ALL_TESTS = bool(os.environ.get("ALL_TESTS"))


@pytest.fixture(scope="session")
def process() -> None:
    """Starts processes, other than git."""


@pytest.fixture(scope="session")
def network(process) -> None:
    """Asks a server that is not the test's own, such as pip's package index."""


@pytest.fixture(scope="session")
def java(process) -> None:
    """Scores texts with Java."""
    if shutil.which("java") is None and not ALL_TESTS:
        pytest.skip("METEOR, ROUGE-L and CIDEr need Java")


@pytest.fixture(scope="session")
def ray(process) -> None:
    """Sweeps on Ray."""
    if importlib.util.find_spec("ray") is None and not ALL_TESTS:
        pytest.skip("Ray is an extra: pip install -e '.[ray]'")


@pytest.fixture(scope="session")
def real_model() -> None:
    """Loads a model that people use, and no tiny one of the tests."""


def slow_fixtures_of(item: pytest.Item) -> set[str]:
    """The fixtures of SLOW that a test uses, itself or through others; a parameter
    names its own by pytest.mark.slow(NAME)."""
    marked = [name for mark in item.iter_markers("slow") for name in mark.args]
    return SLOW.intersection([*marked, *getattr(item, "fixturenames", ())])


def pair_up(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Each row with one column, and each column with a row, as a test's parameters."""
    rows, columns = list(rows), list(columns)
    return [
        (rows[i % len(rows)], columns[i % len(columns)])
        for i in range(max(len(rows), len(columns)))
    ]


def all_pairs(rows: Iterable[str], columns: Iterable[str]) -> list[Any]:
    """Every row with every column; those of `each` are fast."""
    return slow_except(itertools.product(rows, columns), *pair_up(rows, columns))


def slow_except(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """All cases as a test's parameters, of which those that are not in `fast` are slow:
    the rest of a matrix."""
    cases = list(cases)
    assert all(case in cases for case in fast), "a fast case is none of the cases"
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in fast else pytest.mark.slow,
        )
        for case in cases
    ]
