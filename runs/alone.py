"""Lets one process at a time do something."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

#: What file systems without locks say: Lustre that is mounted without them, NFS without its lock daemon.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def alone(lock: Path, doing: str) -> Iterator[bool]:
    """Waits while another process holds this lock, and says so. doing: what both do, "fetching MiniLM". A
    process that was killed holds no lock. Gives False where the file system has no locks: nobody waits
    there."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    # The fallback is a file that a process killed on another machine leaves for ever.
    of_both = FileLock(lock, thread_local=False, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(of_both.acquire(timeout=0))
        except Timeout:
            print(f"waiting for another process, which is {doing}", flush=True)
            stack.enter_context(of_both.acquire())
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield of_both.is_locked
