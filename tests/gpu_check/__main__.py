"""What only a GPU can show of this project, and what a CPU can show of the same code.

python -W ignore -m gpu_check                     every part, some ten minutes on one GPU
python -W ignore -m gpu_check parity speed        these alone
python -W ignore -m gpu_check device=cpu          in a few minutes; what only a GPU can show is named

environment  torch and the driver see the same cards; the flags of each precision
parity       outputs and gradients beside float64 on the CPU, of every architecture, method and way of VeRA
repeats      the same steps three times, to the bit
memory       a run whose memory ends halves its micro-batch
families     every kind of task through python -m runs: twice, and killed and resumed
speed        steps of table 2's rows, by precision, and their FLOP a second

Each part is done in a process of its own, and ends after three minutes on a GPU at the latest. What it finds
is written to OUTPUT/gpu_check/PART.json. The exit code is 1 where a check failed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpu_check.report import failures, tally

from runs.command import Common, entry_point, one_of, read, setting
from runs.record import write_atomically

PARTS = ("environment", "parity", "repeats", "memory", "families", "speed")
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
    found = {}
    for part in parts:
        print(f"--- {part}", flush=True)
        found[part] = run_part(part, device, folder)
    failed = [f"  {part}: {name}" for part, of in found.items() for name in failures(of)]
    print("\n".join([f"\non {device}: {tally(list(found.values()))}", *failed]))
    print(f"the findings of each part: {folder}")
    return bool(failed)


def run_part(part: str, device: str, folder: Path) -> dict[str, Any]:
    """Does a part in a process of its own. Returns what it has found; of a process that failed, what."""
    path = folder / f"{part}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "gpu_check.report", part, device, str(folder)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": places, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(LIMITS[device])
        problem = f"signal {-code}" if code < 0 else f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        problem = f"it was ended after {LIMITS[device]:.0f} seconds"
    finally:  # with whatever it has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = {"part": part, "device": device, "ended": False, "findings": []}
    with contextlib.suppress(OSError, ValueError):
        found = dict(json.loads(path.read_bytes()))
    if problem:
        print(f"FAIL  {part}: {problem}", flush=True)
        found |= {"ended": False, "problem": problem}
        write_atomically(path, json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    entry_point(main)
