"""What a part of the check finds: a line on the screen for each thing, and all of it in PART.json."""

import json
import time
from collections.abc import Callable, Iterator
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
        self.header, self.began = header or {}, time.monotonic()
        self.findings: list[dict[str, Any]] = []
        self.write()

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def check(self, name: str, passed: bool, detail: str = "", **values: Any) -> None:
        """Something that has to hold. values: the numbers behind it, for whoever reads the file."""
        self._add("pass" if passed else "FAIL", name, detail, {"passed": bool(passed), **values})

    def measured(self, name: str, detail: str, **values: Any) -> None:
        """A number to keep."""
        self._add("    ", name, detail, {"passed": None, **values})

    def absent(self, name: str) -> None:
        """Something that only a GPU can show, on a CPU."""
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
        write_atomically(
            self.path, json.dumps(made | self.header | {"findings": self.findings}, indent=1) + "\n"
        )

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


def steady(step: Callable[[], Any], times: int, wait: Callable[[], None]) -> float:
    """Seconds a call, once it is warm. wait: until the device has done what it was given."""
    for _ in range(min(times, 5)):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        step()
    wait()
    return (time.perf_counter() - began) / times
