"""What only a GPU can show, and what a CPU can show of the same code: see __main__.py.
On a CPU, and so in `make test-all`, what only a GPU can show is skipped, named, and
never counted as passed."""

import os

import pytest

#: cuda as `make gpu-check` asks; the tests of this project check the same code on a
#: CPU.
DEVICE = os.environ.get("GPU_CHECK_DEVICE", "cpu")
ON_GPU = DEVICE == "cuda"
GPU_ONLY = pytest.mark.skipif(not ON_GPU, reason="not on a CPU")


def cases(every, few):
    """A test's parameters, of which a CPU has time for a few: there the others are one,
    not done."""
    others = [pytest.param(*next(iter(every)), marks=GPU_ONLY, id="the others")]
    return [*every] if ON_GPU else [*few, *others]
