"""Locks on files, which the kernel keeps. By them the commands of one machine, or of
several with a shared folder, agree on who does a run."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

#: The errors of file systems without locks, such as Lustre that is mounted without them
#: and NFS without its lock daemon.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
#: Seconds of waiting after which a line names who has a lock.
PATIENCE_S = 30.0
POLL_INTERVAL_S = 0.05
#: What a lock's file contains: the process that has it and its machine, or the
#: beginning of that.
HOLDER = re.compile(rb"((?P<pid>\d{1,10})( (?P<host>[\w.-]{0,255}))?)?")
#: One byte more than HOLDER can have, so that a longer file does not match.
HOLDER_BYTES = 268
#: The locks that this process has.
HELD_LOCKS: "set[Lock]" = set()


class Lock:
    """A lock that the kernel keeps on a file, and releases when the process ends.

    The file is opened once, and everything is written through that descriptor: in a
    folder that others can write, a name may mean another file a moment later."""

    def __init__(self, path: Path, mode: int | None = None) -> None:
        """mode: the permissions of a file that this lock creates, whatever the umask."""
        self.path = path
        self._mode = mode
        self._descriptor: int | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this object has the lock; never on a file system without locks."""
        return self._descriptor is not None

    def take(self, seconds: float = 1.0) -> bool:
        """Tries to take the lock. Returns whether the caller may go on: this process
        has the lock, or the file system has no locks (see `is_locked`). Raises OSError
        where the file cannot be locked for another reason.

        seconds: how long it tries. Another process may have the lock for a moment, to see
        whether it is held."""
        deadline = time.monotonic() + seconds
        try:
            while not self._take_at_once():
                if time.monotonic() >= deadline:
                    return False
                time.sleep(POLL_INTERVAL_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return True
        self._write_holder()
        return True

    def release(self) -> None:
        """Gives the lock back."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._close()

    def is_held(self) -> bool:
        """Whether another process has the lock now."""
        if self.is_locked or not self.path.is_file():
            return False
        try:
            is_free = self._take_at_once()
        except OSError:
            # another user's file, a read-only disk, or a file system without locks
            return False
        self.release()
        return not is_free

    def holder(self) -> str:
        """The process that has the lock, in words. Of a stopped process of this machine
        they also say how to continue or end it."""
        import psutil

        try:
            descriptor = _open_regular(self.path, os.O_RDONLY)
        except OSError:
            return "another process"
        try:
            written = HOLDER.fullmatch(os.pread(descriptor, HOLDER_BYTES, 0))
        finally:
            os.close(descriptor)
        if not written or not written["host"]:
            return "another process"
        pid, host = int(written["pid"]), written["host"].decode()
        name = f"process {pid} on {host}"
        if host != _host_name():
            return name
        with contextlib.suppress(psutil.Error, OverflowError):
            if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                advice = f"kill -CONT {pid} lets it go on, kill -KILL {pid} ends it"
                return f"{name}, which is stopped: {advice}"
        return name

    def _take_at_once(self) -> bool:
        """Takes the lock if it is free, and returns whether this process has it. Raises
        OSError where the file cannot be locked."""
        if self.is_locked:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_or_create(self.path, self._mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a file that was removed while we opened it has no name, and locks nobody out
            if os.fstat(descriptor).st_nlink:
                self._descriptor = descriptor
                HELD_LOCKS.add(self)
        except BlockingIOError:  # another process has it
            pass
        finally:
            if not self.is_locked:
                os.close(descriptor)
        return self.is_locked

    def _write_holder(self) -> None:
        """Writes into the file who has the lock, for those who wait for it. It overwrites
        nothing else: the name may be a hard link to somebody's file."""
        assert self._descriptor is not None
        holder = f"{os.getpid()} {_host_name()}".encode()
        # on a full disk the lock holds without this
        with contextlib.suppress(OSError):
            written = os.pread(self._descriptor, HOLDER_BYTES, 0)
            if HOLDER.fullmatch(written):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, holder, 0)

    def _close(self) -> None:
        """Closes this process's descriptor of the file, if it has one. Unlike `release`
        it leaves the lock to other processes with a copy of the descriptor."""
        HELD_LOCKS.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


def _host_name() -> str:
    """This machine's name, in the characters that HOLDER allows."""
    return re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)


def _open_or_create(path: Path, mode: int | None) -> int:
    """A descriptor of a lock's file. It is created in a step of its own: in a folder
    such as /tmp Linux may forbid to open another user's file with O_CREAT
    (fs.protected_regular)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666 if mode is None else mode)
    except FileExistsError:
        return _open_regular(path, os.O_RDWR)
    if mode is not None:
        os.fchmod(descriptor, mode)
    return descriptor


def _open_regular(path: Path, flags: int) -> int:
    """A descriptor of a regular file. Raises OSError for a link and anything else, such
    as a pipe, for whose other end it does not wait."""
    safe_flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | safe_flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def _close_locks_of_parent() -> None:
    """Closes the copies of its parent's locks that a forked process gets, in that
    process. They would hold the locks after the parent has died."""
    for lock in list(HELD_LOCKS):
        lock._close()


os.register_at_fork(after_in_child=_close_locks_of_parent)


def run_lock(output: str | Path, name: str) -> Lock:
    """The lock of this name in an output folder: a run's id, or another name."""
    return Lock(Path(output) / "locks" / name)


@contextlib.contextmanager
def holding(lock: Lock, doing: str) -> Iterator[bool]:
    """Holds a lock for a with block. While another process has it, this one waits, and
    after a while says so. Gives the block whether the lock is held: False where the file
    system has no locks, so that nobody waits.

    doing: what both processes do, such as "fetching MiniLM"."""
    seconds_waited = 0
    while not lock.take(seconds=1):
        if seconds_waited == PATIENCE_S:
            print(
                f"{doing} is being done by {lock.holder()}: waiting for it", flush=True
            )
        seconds_waited += 1
    try:
        yield lock.is_locked
    finally:
        lock.release()
