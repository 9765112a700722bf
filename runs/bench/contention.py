"""A run on cores that others use, too: how OpenMP's threads wait decides how much it suffers."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs import SPINNING
from runs.bench.models import Row
from runs.errors import UserError
from tasks.parent import tied

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
    idle otherwise, and beside busy processes, in turns."""
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        seeds = itertools.count()  # each run has its own: a finished one would not be done again
        _epoch(folder, next(seeds), {})  # fetches model and data
        for _ in range(3 if full else 1):
            for beside in ("idle", f"beside {BUSY} busy processes"):
                for name, waits in WAITS.items():
                    with _busy(0 if beside == "idle" else BUSY):
                        taken = _epoch(folder, next(seeds), waits)
                    seconds.setdefault((name, beside), []).append(taken)
    return [
        {"part": "contention", "variant": f"{name}, {beside}", "seconds": taken}
        for (name, beside), taken in seconds.items()
    ]


def _epoch(folder: str, seed: int, waits: dict[str, str]) -> float:
    """The seconds that a run says it took to train and to evaluate."""
    command = ["-m", "runs", "task=reviews", "model=minilm", "method=full", "keep=none", "tracking=off"]
    command += ["train.epochs=1", f"seed={seed}", f"output={folder}", "table=false"]
    env = {name: value for name, value in os.environ.items() if name not in NAMES} | waits
    done = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, check=False, **tied()
    )
    if done.returncode:
        raise UserError(f"the run that is timed failed: {done.stderr.strip().splitlines()[-1:]}")
    latest = max(Path(folder).glob("records/*.json"), key=lambda path: path.stat().st_mtime)
    cost = json.loads(latest.read_text())["cost"]
    return float(cost["train_seconds"] + cost["evaluate_seconds"])


@contextmanager
def _busy(count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """So many processes that compute without end, as long as this lasts."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"], **tied()) for _ in range(count)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()
