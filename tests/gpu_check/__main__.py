"""What only a GPU can show of this project, and what a CPU can show of the same code.

python -W ignore -m gpu_check every part, some ten minutes on one GPU python -W ignore
-m gpu_check parity speed these alone python -W ignore -m gpu_check device=cpu in a few
minutes; what only a GPU can show is named

environment  torch and the driver see the same cards; the flags of each precision
parity       outputs and gradients beside float64 on the CPU, of every architecture, method and way of VeRA
repeats      the same steps three times, to the bit
memory       a run whose memory ends halves its micro-batch
families     every kind of task through python -m runs: twice, and killed and resumed
speed        steps of table 2's rows, by precision, and their FLOP a second

The parts are test_PART.py beside this file. pytest runs their checks one after another
in a process of xdist's: one that crashes, or hangs for three minutes, fails alone. What
each finds is added to OUTPUT/gpu_check.jsonl. The exit code is 1 where a check failed.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from runs.command.advice import require_known
from runs.command.parser import CommonSettings, entry_point, read_command_line, setting

PARTS = ("environment", "parity", "repeats", "memory", "families", "speed")
HERE = Path(__file__).parent
#: Seconds that a check may take; a CPU may be busy with other things.
LIMITS = {"cuda": 180.0, "cpu": 600.0}
MARKS = {"passed": "pass", "failed": "FAIL", "skipped": "  - "}
PYTEST = ("-n", "1", "--max-worker-restart", "100", "-p", "no:terminal")
PYTEST += (
    "-p",
    "no:warnings",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=",
    "--import-mode=importlib",
)


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Where it is done, and where its findings go."""

    device: Literal["cuda", "cpu"] = setting("cuda", "what is checked")
    output: str = setting(
        "outputs", "the findings go to gpu_check.jsonl in this folder"
    )


class Findings:
    """A line on the screen and one in the file for each check, as soon as it has
    ended."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.counts, self.failed = path, Counter[str](), list[str]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.keep(about)

    def keep(self, values: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def pytest_runtest_logreport(self, report: Any) -> None:
        # what a check needs was made, or taken away
        if report.passed and report.when != "call":
            return
        values, (path, _, check) = (
            dict(getattr(report, "user_properties", ())),
            report.nodeid.partition("::"),
        )
        name = f"{Path(path).stem.removeprefix('test_')}: {check.removeprefix('test_').replace('_', ' ')}"
        crash, said = (
            getattr(report.longrepr, "reprcrash", None),
            values.pop("detail", ""),
        )
        if report.skipped:
            said = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            said = (crash.message if crash else str(report.longrepr)).partition("\n")[
                0
            ][:200]
            self.failed.append(name)
            print(report.longreprtext)
        self.counts[report.outcome] += 1
        print(f"{MARKS[report.outcome]}  {name}{said and ': '}{said}", flush=True)
        self.keep({"name": name, "outcome": report.outcome, "detail": said, **values})

    pytest_collectreport = pytest_runtest_logreport


def check(paths: Iterable[Path], device: str, output: Path, limit: float) -> bool:
    """Runs the checks of these files, each for so many seconds at most. Returns whether
    one failed."""
    import torch

    from runs.run.provenance import code_state, describe_device, versions

    header = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe_device(torch.device(device)),
    }
    findings = Findings(
        output / "gpu_check.jsonl",
        header | {"versions": versions(), "code": code_state()},
    )
    os.environ |= {"GPU_CHECK_DEVICE": device, "GPU_CHECK_LIMIT": str(limit)}
    code = pytest.main([*PYTEST, *map(str, paths)], [findings])
    passed, failed, absent = (findings.counts[name] for name in MARKS)
    print(f"\non {device}: {passed} passed, {failed} failed, {absent} not on a CPU")
    print(
        "\n".join(
            [
                *(f"  {name}" for name in findings.failed),
                f"what each found: {findings.path}",
            ]
        )
    )
    return bool(code or failed)


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="[PART ...]")
    words = [
        name for word in line.positional for name in word.replace(",", " ").split()
    ]
    parts = [require_known("part", name, PARTS) for name in words] or list(PARTS)
    device, output = line.settings.device, Path(line.settings.output)
    if device == "cuda":
        from runs.machine.gpus import uses_cuda

        uses_cuda(device)  # raises DeviceError where torch cannot use the GPU
    return check(
        [HERE / f"test_{part}.py" for part in parts], device, output, LIMITS[device]
    )


if __name__ == "__main__":
    entry_point(main)
