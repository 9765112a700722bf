"""What commands share: locks by the names of files, and SHA-256 of files, each read
once."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runs.errors import UserError
from runs.record import Record, hash_of, write_atomically
from tasks.fetch import cache_folder
from tasks.files import stamp

#: What file systems without locks say: Lustre that is mounted without them, NFS without
#: its lock daemon.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
#: Seconds of waiting after which a line names who has a lock.
PATIENCE = 30.0


class Lock:
    """A lock by the name of a file."""

    def __init__(self, path: Path, **more: Any) -> None:
        """more: of FileLock."""
        self.path = path
        # The fallback is a file that a process killed on another machine leaves for
        # ever
        self._lock = FileLock(path, thread_local=False, fallback_to_soft=False, **more)

    def take(self, seconds: float = 1.0) -> bool:
        """Whether this process has the lock now. seconds: how long it tries, since
        somebody may only look whether the lock is held. A file system without locks
        lets everybody pass."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        # for those who wait; a full disk changes nothing
        with contextlib.suppress(OSError):
            self.path.write_text(f"{os.getpid()} {socket.gethostname()}")
        return True

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def is_held(self) -> bool:
        """Whether another process has the lock now."""
        free = True
        # of another user's file, of one on a disk to read
        with contextlib.suppress(OSError):
            free = not self.path.is_file() or self.take(0)
            self.release()
        return not free

    def holder(self) -> str:
        """The process that has the lock, in words; and a way out, where it is a stopped
        one of here."""
        import psutil

        try:
            pid, host = self.path.read_text().split()
        except (OSError, ValueError):
            return "another process"
        with contextlib.suppress(psutil.Error, ValueError, OverflowError):
            if (
                host == socket.gethostname()
                and psutil.Process(int(pid)).status() == psutil.STATUS_STOPPED
            ):
                out = f"kill -CONT {pid} lets it go on, kill -KILL {pid} ends it"
                return f"process {pid} on {host}, which is stopped: {out}"
        return f"process {pid} on {host}"


def run_lock(output: str | Path, name: str) -> Lock:
    """The lock on a run of an output folder, or on another name."""
    return Lock(Path(output) / "locks" / name)


@contextlib.contextmanager
def alone(lock: Lock, doing: str) -> Iterator[bool]:
    """Holds a lock for a block; waits while another process has it, and says so. doing:
    what both do, "fetching MiniLM". Gives False where the file system has no locks:
    nobody waits there."""
    for seconds in itertools.count():
        if lock.take():
            break
        if seconds == PATIENCE:
            print(
                f"{doing} is being done by {lock.holder()}: waiting for it", flush=True
            )
    try:
        yield lock._lock.is_locked
    finally:
        lock.release()


# --- hashes, and what else the user's cache keeps


#: Stands for the hash of a file that cannot be read.
MISSING = "missing"
#: What the cache keeps, and how the JSON of a sound value looks.
KEPT = {
    "sha256": r'"[0-9a-f]{64}"',
    "flops": r"null|\[[\d.e+]+, [\d.e+]+\]",
    "weights": r"\d+",
}
#: What this process has found or made, by the cache's files: it may be unable to write
#: them.
FOUND: dict[Path, Any] = {}


def kept_in_cache(kind: str, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` gives, a value of JSON; from the user's cache where it was made
    before. One that is not of its kind, such as MISSING, is not kept. A cache that
    cannot be written costs time, no more."""
    path, text = cache_folder() / kind / f"{hash_of(key)[:24]}.json", ""
    if path in FOUND:
        return FOUND[path]
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text()
    if not re.fullmatch(KEPT[kind], text):
        text = json.dumps(value := make())
        if not re.fullmatch(KEPT[kind], text):
            return value
        with contextlib.suppress(OSError):
            write_atomically(path, text)
    return FOUND.setdefault(path, json.loads(text))


def file_hash(path: Path) -> str:
    """A file's SHA-256, or MISSING; from the cache, which knows files by path, size and
    time of change."""
    return str(
        kept_in_cache(
            "sha256", [str(path.resolve()), *stamp(path)], lambda: digest(path)
        )
    )


def check_kept(record: Record, path: Path) -> None:
    """Raises UserError where a run's file is not the one that its record names. Older
    records name none."""
    wanted = record.get("files", {}).get(path.name)
    if wanted and digest(path) != wanted:
        raise UserError(
            f"{path} is not the file that the record of run {record['id']} names: something has changed it."
            " redo=true makes the run again"
        )


def digest(*paths: Path) -> str:
    """SHA-256 of the current content; of several files, as if they were one. MISSING
    where one of them is not there or is no regular file: whether it is needed is for
    the task to say."""
    whole = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            return MISSING
        try:
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: whole)
        except OSError:
            return MISSING
    return whole.hexdigest()
