"""What only a GPU can show of this project, and what a CPU can show of the same code.

python -W ignore -m gpu_check                     every part, some ten minutes on one GPU
python -W ignore -m gpu_check parity reads        these alone
python -W ignore -m gpu_check device=cpu          in a few minutes; what only a GPU can show is named

environment  torch and the driver see the same cards; the flags of each precision
parity       outputs and gradients beside float64 on the CPU, of every architecture, method and way of VeRA
reads        how often a training step waits for the device
repeats      the same steps three times, to the bit
memory       a run whose memory ends halves its micro-batch
families     every kind of task through python -m runs: twice, and killed and resumed
speed        steps of table 2's rows, by precision, and their FLOP a second
crowd        steps a second of several processes on one device

Each part is done in a process of its own, and ends after three minutes on a GPU at the latest. What it finds
is written to OUTPUT/gpu_check/PART.json; all parts together in gpu.json. The exit code is 1 where a
check failed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpu_check.report import failures, tally
from runs.command import Common, entry_point, one_of, read, setting
from runs.record import write_atomically

PARTS = ("environment", "parity", "reads", "repeats", "memory", "families", "speed", "crowd")
ROOT = Path(__file__).parents[2]
#: Seconds that a part may take; a CPU may be busy with other things.
LIMITS = {"cuda": 180.0, "cpu": 600.0}


@dataclass(frozen=True)
class Settings(Common):
    """Where it is done, and where its findings go."""

    device: Literal["cuda", "cpu"] = setting("cuda", "what is checked")
    output: str = setting("outputs", "the findings go to gpu_check/ in this folder")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[PART ...]")
    words = [name for word in line.names for name in word.replace(",", " ").split()]
    parts = [one_of("part", name, PARTS) for name in words] or list(PARTS)
    device, folder = line.settings.device, Path(line.settings.output) / "gpu_check"
    if device == "cuda":
        from runs.gpus import check_usable  # which imports torch

        check_usable(device)
    failed, everything = [], []
    for part in parts:
        print(f"--- {part}", flush=True)
        began = time.monotonic()
        problem = run_part(part, device, folder)
        if problem:
            print(f"FAIL  {part}: {problem}", flush=True)
        found = read_part(folder / f"{part}.json", part, device, problem)
        failed += [f"{part}: {name}" for name in failures(found)]
        everything.append(found)
        print(f"      {time.monotonic() - began:.0f} s", flush=True)
    write_atomically(folder / "gpu.json", json.dumps(joined(folder, device), indent=1) + "\n")
    print(f"\non {device}: {tally(everything)}" + "".join(f"\n  {name}" for name in failed))
    print(f"the findings of each part, and all of them: {folder / 'gpu.json'}")
    return bool(failed)


def run_part(part: str, device: str, folder: Path) -> str:
    """Does a part in a process of its own. Returns what went wrong with that process, or nothing."""
    (folder / f"{part}.json").unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "gpu_check.part", part, device, str(folder)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": places, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    if part == "families":  # it forks, and OpenMP's threads do not survive that
        environment |= {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(LIMITS[device])
    except subprocess.TimeoutExpired:
        return f"it was ended after {LIMITS[device]:.0f} seconds"
    finally:  # with whatever it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"signal {-code}" if code < 0 else f"exit code {code}" if code else ""


def read_part(path: Path, part: str, device: str, problem: str = "") -> dict[str, Any]:
    """What a part has left; one that could not begin has found nothing. problem: of its process."""
    try:
        found = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        found = {"part": part, "device": device, "ended": False, "findings": []}
    if problem:
        found |= {"ended": False, "problem": problem}
        write_atomically(path, json.dumps(found, indent=1) + "\n")
    return found


def joined(folder: Path, device: str) -> dict[str, Any]:
    """All parts that lie in a folder, of one kind of device; those of earlier commands, too. crowd: steps
    a second by the number of processes."""
    found = {part: read_part(folder / f"{part}.json", part, device) for part in PARTS}
    parts = {name: part for name, part in found.items() if part["device"] == device and "date" in part}
    failed = {name: failures(part) for name, part in parts.items() if failures(part)}
    crowd = {
        one["how"]: one["rates"] for part in parts.values() for one in part["findings"] if one.get("rates")
    }
    return {"device": device, "failed": failed, "crowd": crowd, "parts": parts}


if __name__ == "__main__":
    entry_point(main)
