"""One process at a time does a run: the kernel's lock on OUTPUT/locks/RUN.

The run's own process takes it before it reads the checkpoint, and the kernel gives it back when that process
ends, however it does. Where locks do not reach another machine a run may be done twice, to the same record:
see runs/training/files.py."""

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from runs.alone import NO_LOCKS
from runs.errors import UserError
from runs.record import Record, finished_record, write_record

#: Seconds of waiting after which a line names who has a lock.
PATIENCE = 30.0


class Claim:
    """The lock on a run, or on another name, of an output folder."""

    def __init__(self, output: str | Path, name: str) -> None:
        self.path = Path(output) / "locks" / name
        self._lock = FileLock(self.path, thread_local=False, fallback_to_soft=False)

    def take(self, seconds: float = 1.0) -> bool:
        """Whether this process has the lock now. seconds: how long it tries, since somebody may only look
        whether the lock is held. A file system without locks lets everybody pass."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        with contextlib.suppress(OSError):  # for those who wait; a full disk changes nothing
            self.path.write_text(f"{os.getpid()} {socket.gethostname()}")
        return True

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def is_held(self) -> bool:
        """Whether another process has the lock now."""
        try:
            if self.path.is_file():
                self._lock.acquire(timeout=0)
                self._lock.release()
            return False
        except Timeout:
            return True
        except OSError:
            return False

    def holder(self) -> str:
        """The process that has the lock, in words; and a way out, where it is a stopped one of this
        machine."""
        with contextlib.suppress(OSError, ValueError):
            pid, host = self.path.read_text().split()
            words = f"process {int(pid)} on {host}"
            if host == socket.gethostname() and _is_stopped(pid):
                words += f", which is stopped: kill -CONT {pid} lets it go on, kill -KILL {pid} ends it"
            return words
        return "another process"


@contextlib.contextmanager
def claimed(output: str | Path, name: str, what: str) -> Iterator[None]:
    """Holds a lock for a block; waits while another process has it, and says so. what: the holder does, in
    words."""
    claim = Claim(output, name)
    for seconds in itertools.count():
        if claim.take():
            break
        if seconds == PATIENCE:
            print(f"{what} is being done by {claim.holder()}: waiting for it", flush=True)
    try:
        yield
    finally:
        claim.release()


def amend(output: str | Path, run_id: str, parts: Callable[[Record], Record]) -> None:
    """Adds keys to a finished record, under the run's lock. parts: of the record as it is now, the new
    keys."""
    with claimed(output, run_id, f"run {run_id}"):
        if record := finished_record(output, run_id):
            write_record(output, record | parts(record))


def check_leases(output: str | Path) -> None:
    """Raises UserError where an earlier version, whose commands know no locks, may be at work in this
    folder."""
    folder = Path(output) / "leases"
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is of an earlier version: end its commands, then delete the folder. Runs that it has"
            " not finished begin anew"
        )


def _is_stopped(pid: str) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
