"""What a part of the check finds: a line on the screen for each thing, and all of it in PART.json.

python -m gpu_check.report PART DEVICE FOLDER does one part; __main__.py starts it."""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runs.record import write_atomically


class Report:
    """The findings of one part on one device. The file is written anew with each, so that a crash costs none.

    passed: of a check; None of what was measured and is neither right nor wrong, and of what this device
    cannot show."""

    def __init__(self, part: str, device: str, folder: Path, header: dict[str, Any] | None = None) -> None:
        self.part, self.device, self.path = part, device, folder / f"{part}.json"
        self.header, self.began, self.on_gpu = header or {}, time.monotonic(), device == "cuda"
        self.findings: list[dict[str, Any]] = []
        self.write()

    def check(self, name: str, passed: bool, detail: str = "", **values: Any) -> None:
        """Something that has to hold. values: the numbers behind it, for whoever reads the file."""
        self._add("pass" if passed else "FAIL", name, detail, {"passed": bool(passed), **values})

    def measured(self, name: str, detail: str, **values: Any) -> None:
        """A number to keep."""
        self._add("    ", name, detail, {"passed": None, **values})

    def absent(self, *names: str) -> None:
        """What only a GPU can show, on a CPU."""
        for name in () if self.on_gpu else names:
            self._add("  - ", name, "not on a CPU", {"passed": None, "absent": True})

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """What fails inside is a check that failed, and the part goes on."""
        try:
            yield
        except Exception as error:  # whatever torch, a driver or a model says
            import traceback

            traceback.print_exc(limit=-4)
            self.check(name, False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")

    def write(self, ended: bool = False) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        made = {"part": self.part, "device": self.device, "ended": ended, "seconds": seconds}
        whole = made | self.header | {"findings": self.findings}
        write_atomically(self.path, json.dumps(whole, indent=1) + "\n")

    def _add(self, mark: str, name: str, detail: str, values: dict[str, Any]) -> None:
        print(f"{mark}  {name}{detail and ': '}{detail}", flush=True)
        self.findings.append({"name": name, "detail": detail, **values})
        self.write()


def failures(part: dict[str, Any]) -> list[str]:
    """The names of what did not hold in a part's file; one more where it did not end."""
    names = [one["name"] for one in part["findings"] if one["passed"] is False]
    return names if part["ended"] else [*names, "the part ends"]


def tally(parts: list[dict[str, Any]]) -> str:
    """How many checks of these parts passed and failed, and how many only a GPU can make."""
    findings = [one for part in parts for one in part["findings"]]
    passed, absent = (sum(bool(one.get(key)) for one in findings) for key in ("passed", "absent"))
    return f"{passed} passed, {sum(len(failures(part)) for part in parts)} failed, {absent} not on a CPU"


def main(part: str, device: str, folder: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as home:
        os.environ["XDG_CACHE_HOME"] = f"{home}/cache"  # nothing of the user's is read or written
        import torch
        from transformers.utils import logging

        from runs.provenance import code_state, machine, versions

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        header = {"date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device(device))}
        header |= {"threads": torch.get_num_threads(), "versions": versions(), "code": code_state()}
        report = Report(part, device, Path(folder), header)
        with report.guarded(f"{part} goes on to its end"):
            importlib.import_module(f"gpu_check.{part}").run(report, Path(home))
        report.write(ended=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
