"""What makes a test slow: that it uses one of the fixtures here, which only say what it
needs. `make test` leaves slow tests out.

Two more fixtures make a test slow, and also start what they are named after: `slurm`
(test_sweep.py) and `browser` (test_report.py)."""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Iterable
from typing import Any

import pytest

#: The fixtures that make a test slow.
SLOW = {"process", "network", "java", "browser", "slurm", "ray", "real_model"}
#: Whether a test fails, and is not skipped, where a program that it needs is missing. CI
#: sets the variable.
ALL_TESTS = bool(os.environ.get("ALL_TESTS"))


@pytest.fixture(scope="session")
def process() -> None:
    """The test starts processes, other than git."""


@pytest.fixture(scope="session")
def network(process) -> None:
    """The test asks a server that is not its own, such as pip's package index."""


@pytest.fixture(scope="session")
def java(process) -> None:
    """The test scores texts with Java."""
    if shutil.which("java") is None and not ALL_TESTS:
        pytest.skip("METEOR, ROUGE-L and CIDEr need Java")


@pytest.fixture(scope="session")
def ray(process) -> None:
    """The test sweeps on Ray."""
    if importlib.util.find_spec("ray") is None and not ALL_TESTS:
        pytest.skip("Ray is an extra: pip install -e '.[ray]'")


@pytest.fixture(scope="session")
def real_model() -> None:
    """The test loads a model that people use, not a tiny one."""


def slow_fixtures_of(item: pytest.Item) -> set[str]:
    """The fixtures of SLOW that a test uses, itself or through other fixtures. A parameter
    of a test may name further ones by pytest.mark.slow(NAME)."""
    marked = [name for mark in item.iter_markers("slow") for name in mark.args]
    return SLOW.intersection([*marked, *getattr(item, "fixturenames", ())])


def pair_up(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """The fewest pairs (row, column) in which each row and each column occurs, as a test's
    parameters. The shorter list is repeated."""
    rows, columns = list(rows), list(columns)
    count = max(len(rows), len(columns))
    return [(rows[i % len(rows)], columns[i % len(columns)]) for i in range(count)]


def all_pairs(rows: Iterable[str], columns: Iterable[str]) -> list[Any]:
    """Every pair of a row and a column as a test's parameters. Those of `pair_up` are fast,
    the others slow."""
    return slow_except(itertools.product(rows, columns), *pair_up(rows, columns))


def slow_except(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """All cases as a test's parameters. Those that are not in `fast` are marked as slow. A
    case is a value, or a tuple of the values of several parameters."""
    cases = list(cases)
    assert all(case in cases for case in fast), "a fast case is none of the cases"
    parameters = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marks = () if case in fast else pytest.mark.slow
        parameters.append(pytest.param(*values, marks=marks))
    return parameters
