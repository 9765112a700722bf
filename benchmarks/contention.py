"""A run on cores that others use, too: how OpenMP's threads wait decides how much it suffers."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.timing import Row, interleaved
from runs import SPINNING
from runs.errors import UserError

#: How threads wait: GCC's OpenMP turns a loop 300,000 times by default before a thread sleeps.
WAITS = {
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    "the harness's": SPINNING,
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
NAMES = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"}
#: Other processes that never rest.
BUSY = 2


def contention(full: bool) -> list[Row]:
    """Seconds of an epoch of full fine-tuning, MiniLM on reviews, by how threads wait: on a machine that is
    idle otherwise, and beside busy processes."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = itertools.count()  # each run has its own: a finished one would not be done again
        _epoch(folder, seeds, {}, 0)  # fetches model and data
        work = {
            f"{name}, beside {busy} busy processes": partial(_epoch, folder, seeds, waits, busy)
            for busy in (0, BUSY)
            for name, waits in WAITS.items()
        }
        return interleaved(work, 3 if full else 1, {"part": "contention"}, warm_up=0)


def _epoch(folder: str, seeds: Iterator[int], waits: dict[str, str], busy: int) -> float:
    """The seconds that a run says it took to train and to evaluate."""
    command = [sys.executable, "-m", "runs", "task=reviews", "model=minilm", "method=full", "keep=none"]
    command += ["tracking=off", "train.epochs=1", f"seed={next(seeds)}", f"output={folder}", "table=false"]
    env = {name: value for name, value in os.environ.items() if name not in NAMES} | waits
    with busy_processes(busy):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the run that is timed failed: {done.stderr.strip().splitlines()[-1:]}")
    latest = max(Path(folder).glob("records/*.json"), key=lambda path: path.stat().st_mtime)
    cost = json.loads(latest.read_text())["cost"]
    return float(cost["train_seconds"] + cost["evaluate_seconds"])


@contextmanager
def busy_processes(count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """So many processes that compute, as long as this lasts."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}: pass"  # none outlives this process
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()
