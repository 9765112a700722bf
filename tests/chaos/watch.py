"""What the runs of an output folder do at this moment, and the processes of a
campaign."""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import psutil

#: The environment variable by which a campaign knows its processes, whatever has become
#: of those that started them.
MARK = "CHAOS_HOME"
#: What each phase of a run is. The names are those of progress.json, apart from the
#: first and the last: then there is no such file.
PHASES = {
    "starting": "its process has the run's lock, and has not reported a phase yet",
    "loading": "it loads model and data",
    "reading the fixed text": "it measures the loss on a fixed text (forgetting)",
    "estimating the reach": "it estimates what the run can change",
    "training": "it trains, and saves a checkpoint after each step",
    "evaluating": "it evaluates an epoch",
    "evaluated": "it keeps what an epoch left, and trains the next one",
    "decoding": "it writes the texts of the test rows",
    "scoring": "it scores the texts",
    "writing the record": "the record is there, and it moves the run's files",
}


class Sighting(NamedTuple):
    """A run that is on: its phase, and its process."""

    run_id: str
    phase: str
    pid: int


class Watch:
    """Looks at the runs of an output folder."""

    def __init__(self, home: Path, output: Path) -> None:
        self.home = home
        self.output = output
        #: The processes that have reported a phase.
        self._reporting = set[int]()

    def look(self) -> list[Sighting]:
        """The runs that are on."""
        sightings = []
        for lock in (self.output / "locks").glob("*"):
            sighting = self.look_at(lock.name)
            if sighting:
                sightings.append(sighting)
        return sightings

    def look_at(self, run_id: str) -> Sighting | None:
        """What a run does; None where no process of the campaign does it."""
        pid = self._holder(run_id)
        if pid is None or not is_member(pid, self.home):
            return None
        phase = self._reported_phase(run_id, pid)
        if phase:
            self._reporting.add(pid)
        elif pid in self._reporting:
            phase = "writing the record"
        else:
            phase = "starting"
        return Sighting(run_id, phase, pid)

    def _holder(self, run_id: str) -> int | None:
        """The process that has a run's lock, or had it last."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (self.output / "locks" / run_id).read_text()
            return int(text.split()[0])
        return None

    def _reported_phase(self, run_id: str, pid: int) -> str:
        """The phase in progress.json, without numbers; "" where this process has not
        written one, or the file is damaged."""
        path = self.output / "runs" / run_id / "progress.json"
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            progress = json.loads(path.read_bytes())
            if progress["pid"] == pid:
                return phase_name(progress["phase"])
        return ""


def phase_name(phase: str) -> str:
    """A phase as it is reported, without what it says beside its name."""
    words = re.match("[a-z ]*[a-z]", phase)
    return words[0] if words else ""


def is_member(pid: int, home: Path) -> bool:
    """Whether a process is alive and belongs to the campaign in this folder."""
    with contextlib.suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        return f"{MARK}={home}".encode() in environment.split(b"\0")
    return False


def members(home: Path) -> list[int]:
    """The processes of a campaign that are alive."""
    return [pid for pid in psutil.pids() if is_member(pid, home)]


def parent(pid: int) -> int:
    """The parent of a process. Raises psutil.Error where it has ended."""
    return psutil.Process(pid).ppid()


def end_all(home: Path, signal_number: int) -> None:
    """Sends a signal to every process of a campaign."""
    for pid in members(home):
        with contextlib.suppress(OSError):
            os.kill(pid, signal_number)
