"""What a launcher is: its settings as fields, checked by pydantic, and what it does. The
two simplest ones, which do runs on this machine, stand here."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from runs.record.keys import ConfigPart, Count

#: The most workers of a sweep where `executors` is null.
MAX_WORKERS = 8
#: Counts the workers that are alive.
CountWorkers = Callable[[], int]


class Worker(Protocol):
    """What each worker of a sweep does (runs/sweep/worker.py has it).

    folder: for the sweep's logs; its name is the sweep's. workers: how many there
    are."""

    folder: Path
    workers: int

    def __call__(self, number: int) -> int:
        """Does runs of the sweep until none is left for it; returns an exit code."""

    def all_done(self) -> bool:
        """Whether every run of the sweep has ended."""


class Launcher(ConfigPart):
    """How the runs of a command are started. The fields of a subclass are the settings
    `launcher.KEY=VALUE`."""

    name: str

    def check(self) -> None:
        """Raises UserError where it can start nothing here. Called before anything
        starts."""


class OnThisMachine(Launcher):
    """The command itself does the runs.

    runs_per_device: how many runs, of all commands, may share a device."""

    runs_per_device: Count = 1

    @property
    def uses_all_devices(self) -> bool:
        """Whether runs take all devices at once, and not one after another."""
        return False


class ByWorkers(Launcher):
    """Workers do the runs, each one run after another.

    executors: how many at once; None: one for each run, at most MAX_WORKERS."""

    executors: Count | None = None

    def count_workers(self, runs: int) -> int:
        """How many workers do so many runs."""
        return min(self.executors or MAX_WORKERS, runs)

    @abstractmethod
    def start(self, worker: Worker) -> AbstractContextManager[CountWorkers]:
        """Starts the workers 0 to worker.workers - 1, for a block. Gives a function
        that counts those that are alive. Raises UserError where they cannot start."""


class ByScript(ByWorkers):
    """Workers that a script starts, which the command can also print.

    dry_run: whether it prints the script, submits nothing, and ends."""

    #: What the printed script leaves unexplained, a line each.
    remarks: ClassVar[Sequence[str]] = ()

    dry_run: bool = False

    @abstractmethod
    def script(self, folder: Path, workers: int) -> str:
        """What would be submitted for so many workers."""


# --- runs on this machine, each in a process of its own


class Serial(OnThisMachine):
    """One run after another."""

    name: Literal["serial"] = "serial"


class Local(OnThisMachine):
    """Runs at once, on all devices."""

    name: Literal["local"] = "local"

    @property
    def uses_all_devices(self) -> bool:
        """All of them."""
        return True
