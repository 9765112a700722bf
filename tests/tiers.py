"""What makes a test slow: that it uses one of these fixtures, which only say so. `make test` leaves slow
tests out.

Two more start what they are named after, where it is used: `slurm` (test_executor.py) and `browser`
(test_report.py)."""

import contextlib
import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

SLOW = {"process", "network", "java", "browser", "slurm", "ray", "real_model"}
#: CI sets it: what is missing there is a failure, and no reason to skip a test.
ALL_TESTS = bool(os.environ.get("ALL_TESTS"))
#: Programs that answer at once: also torch asks for a compiler where peft's BOFT is imported, and matplotlib
#: for fonts.
QUICK = {"git", "uname", "ninja", "gcc", "fc-list"}
#: Bytes of weights that no tiny model of the tests has: the smallest real one (MiniLM) takes 90 MB.
REAL = 50_000_000


@pytest.fixture(scope="session")
def process() -> None:
    """Starts processes, other than QUICK."""


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


def declared(item: pytest.Item) -> set[str]:
    """The fixtures of SLOW that a test uses, itself or through others; a parameter names its own by
    pytest.mark.slow(NAME)."""
    marked = [name for mark in item.iter_markers("slow") for name in mark.args]
    return SLOW.intersection([*marked, *getattr(item, "fixturenames", ())])


def pairs(rows: Iterable[str], columns: Iterable[str]) -> list[Any]:
    """Every row with every column, as a test's parameters. Each row with one column, and each column with a
    row, is fast."""
    rows, columns = list(rows), list(columns)
    fast = [(rows[i % len(rows)], columns[i % len(columns)]) for i in range(max(len(rows), len(columns)))]
    return sample(itertools.product(rows, columns), *fast)


def sample(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """All cases as a test's parameters, of which those that are not in `fast` are slow: the rest of a
    matrix."""
    cases = list(cases)
    assert all(case in cases for case in fast), "a fast case is none of the cases"
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if case in fast else pytest.mark.slow
        )
        for case in cases
    ]


class Guard:
    """Fails a test that does what makes it slow, and uses no fixture that says so."""

    def __init__(self) -> None:
        self.allowed, self.found = set(SLOW), ""

    def stand(self) -> None:
        """From now on."""
        from transformers import PreTrainedModel

        start, serve = BaseProcess.start, forkserver.ensure_running
        load = PreTrainedModel.from_pretrained.__func__

        def started(process):
            self._need("process", "starts a process")
            start(process)

        def from_pretrained(cls, folder, *arguments, **more):
            if sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) > REAL:
                self._need("real_model", f"loads {folder}")
            return load(cls, folder, *arguments, **more)

        sys.addaudithook(self._heard)
        BaseProcess.start = started
        PreTrainedModel.from_pretrained = classmethod(from_pretrained)
        # A sweep starts the server that runs are forked from, and may then be refused: such a test needs none
        forkserver.ensure_running = lambda: serve() if "process" in self.allowed else None

    def _heard(self, event: str, arguments: tuple) -> None:
        if event == "os.fork":
            self._need("process", "starts a process")
        elif event == "subprocess.Popen" and os.path.basename(os.fsdecode(arguments[0])) not in QUICK:
            self._need("process", f"starts {arguments[0]}")

    def _need(self, fixture: str, what: str) -> None:
        if fixture not in self.allowed:
            self.found = f"it {what}: have the test use the fixture {fixture} (tests/tiers.py): it is slow"
            pytest.fail(self.found)

    @contextlib.contextmanager
    def watch(self, item: pytest.Item) -> Iterator[None]:
        """While a test is on, with its fixtures."""
        self.allowed, self.found = declared(item), ""
        try:
            yield
        finally:
            self.allowed = set(SLOW)


guard = Guard()
