"""What a launcher is: its settings as fields, which pydantic checks, and its methods. The
two simplest launchers, which do the runs on this machine, are here."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from runs.record.keys import ConfigPart, Count

#: The most workers of a sweep where `executors` is null.
MAX_WORKERS = 8
#: Returns how many workers are alive.
CountWorkers = Callable[[], int]


class Worker(Protocol):
    """What each worker of a sweep (a process that does its runs one after another) does;
    runs/sweep/worker.py implements it.

    folder: the folder of the sweep's logs; its name is the sweep's. workers: how many
    there are."""

    folder: Path
    workers: int

    def __call__(self, number: int) -> int:
        """Does runs of the sweep until none is left for this worker. Returns an exit
        code. number: the worker's, from 0."""

    def all_done(self) -> bool:
        """Whether every run of the sweep has ended."""


class Launcher(ConfigPart):
    """How the runs of a command are started. The fields of a subclass are the settings
    `launcher.KEY=VALUE`."""

    name: str

    def check(self) -> None:
        """Raises UserError where this launcher can start nothing here. Called before
        anything starts."""


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
        """How many workers to start for so many runs."""
        return min(self.executors or MAX_WORKERS, runs)

    @abstractmethod
    def start(self, worker: Worker) -> AbstractContextManager[CountWorkers]:
        """A context manager that starts the workers 0 to worker.workers - 1, and gives
        a function that counts those that are alive. Raises UserError where they cannot
        start."""


class ByScript(ByWorkers):
    """Workers that a script starts, which the command can also print.

    dry_run: whether it prints the script, submits nothing, and ends."""

    #: Lines that explain what a reader of the printed script may not understand.
    remarks: ClassVar[Sequence[str]] = ()

    dry_run: bool = False

    @abstractmethod
    def script(self, folder: Path, workers: int) -> str:
        """The script that would be submitted for so many workers."""


# --- runs on this machine, each in a process of its own


class Serial(OnThisMachine):
    """One run after another."""

    name: Literal["serial"] = "serial"


class Local(OnThisMachine):
    """Runs at once, on all devices."""

    name: Literal["local"] = "local"

    @property
    def uses_all_devices(self) -> bool:
        """Always."""
        return True
