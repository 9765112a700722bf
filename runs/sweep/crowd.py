"""Several runs on one GPU: how many fit, and NVIDIA's MPS, without which their kernels take turns.

A step of a base model is about a thousand small kernels; between them a GPU waits for the host."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs import gpus
from runs.forecast.memory import SHARE, training_bytes
from runs.run import Run
from tasks.parent import tied

#: More runs on a device were not expected to help; each keeps a core or two busy.
MOST, CORES = 6, 2
#: Worth sharing a GPU for.
GAIN = 1.1
CONTROL = "nvidia-cuda-mps-control"
PIPE, LOG = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"


def room(runs: Sequence[Run], devices: int) -> int:
    """How many of these runs fit on each device at once: by the memory that is free on the fullest one, and
    by the machine's cores. 1 where a run's memory is not known."""
    free, needs = gpus.free_memory(), [training_bytes(run) for run in runs]
    if free is None or not needs or any(need is None for need in needs):
        return 1
    by_memory = int(SHARE * free / max(need for need in needs if need))
    return max(1, min(MOST, by_memory, len(gpus.cores()) // CORES // max(devices, 1)))


def measured(output: str) -> int:
    """How many runs on a GPU without MPS bring most steps in all, as gpu-check has measured on this machine
    (OUTPUT/gpu_check/gpu.json); 1 where it has not, or where they bring less than a tenth more."""
    try:
        rates = json.loads((Path(output) / "gpu_check" / "gpu.json").read_bytes())["crowd"]["without MPS"]
        best = max(rates, key=lambda count: float(rates[count]))
        return int(best) if rates[best] >= GAIN * rates["1"] else 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 1


def pinned(place: int, places: int) -> dict[str, Any]:
    """What subprocess.Popen is given for a program that ends with this process and keeps to its share of the
    cores, the first of `places` or a later one. Where there are fewer cores than places, or the system does
    not pin, all of them."""
    how, mine = tied(), gpus.cores()
    each = len(mine) // places
    if places == 1 or not each or not hasattr(os, "sched_setaffinity"):
        return how
    share, before = mine[place * each : (place + 1) * each], how.get("preexec_fn")

    def begin() -> None:
        if before:
            before()
        os.sched_setaffinity(0, share)

    return how | {"preexec_fn": begin}


class MPS:
    """NVIDIA's Multi-Process Service for the runs of a sweep: the one that serves this machine already, or
    one that is started, with its pipe in a folder of its own, and stopped at the end."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.environment: dict[str, str] = {}  # of processes that use it
        self.runs = False

    def start(self) -> bool:
        """Whether it serves this machine now."""
        if os.path.exists(os.path.join(os.environ.get(PIPE, "/tmp/nvidia-mps"), "control")):
            self.runs = True
        elif shutil.which(CONTROL) and not any(len(group) > 1 for group in gpus.uuids().values()):
            self.folder = Path(tempfile.mkdtemp(prefix="vera-bench-mps-"))
            self.environment = {PIPE: str(self.folder), LOG: str(self.folder)}
            self.runs = self._control("-d") and (self.folder / "control").exists()
        return self.runs

    def stop(self) -> None:
        """Ends the one that was started. Its clients have to have ended before."""
        if self.folder:
            self._control(said="quit\n")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder, self.runs, self.environment = None, False, {}

    def _control(self, *options: str, said: str = "") -> bool:
        try:
            done = subprocess.run(
                [CONTROL, *options],
                input=said,
                env=os.environ | self.environment,
                stdout=subprocess.DEVNULL,  # a daemon would keep a pipe open
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=30,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0
