"""Lets one process at a time do something, by a lock of the kernel, which gives it back when the process that
has it ends, however it ends."""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

#: What file systems without locks say: Lustre that is mounted without them, NFS without its lock daemon.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
#: Seconds of waiting after which a line names who has a lock.
PATIENCE = 30.0


class Lock:
    """A lock by the name of a file."""

    def __init__(self, path: Path, **more: Any) -> None:
        """more: of FileLock."""
        self.path = path
        # The fallback is a file that a process killed on another machine leaves for ever
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False, **more)

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
        try:
            pid, host = self.path.read_text().split()
        except (OSError, ValueError):
            return "another process"
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if host == socket.gethostname() and state in "Tt":
                out = f"kill -CONT {pid} lets it go on, kill -KILL {pid} ends it"
                return f"process {pid} on {host}, which is stopped: {out}"
        return f"process {pid} on {host}"


def run_lock(output: str | Path, name: str) -> Lock:
    """The lock on a run of an output folder, or on another name."""
    return Lock(Path(output) / "locks" / name)


@contextlib.contextmanager
def alone(lock: Lock, doing: str) -> Iterator[bool]:
    """Holds a lock for a block; waits while another process has it, and says so. doing: what both do,
    "fetching MiniLM". Gives False where the file system has no locks: nobody waits there."""
    for seconds in itertools.count():
        if lock.take():
            break
        if seconds == PATIENCE:
            print(f"{doing} is being done by {lock.holder()}: waiting for it", flush=True)
    try:
        yield lock._lock.is_locked
    finally:
        lock.release()
