"""The time that a check may take, and how it says what it has found."""

import faulthandler
import os
import sys

import pytest

#: Seconds of a check.
LIMIT = float(os.environ.get("GPU_CHECK_LIMIT", "600"))


@pytest.fixture(autouse=True)
def limit():
    """A check that hangs ends this process. xdist reports it, and starts another one
    for the checks that are left."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def found(record_property):
    """Keeps a few words on what a check has seen, and the numbers behind them."""

    def keep(detail: str, **values) -> None:
        for name, value in {"detail": detail, **values}.items():
            record_property(name, value)

    return keep
