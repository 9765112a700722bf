"""Lets one process at a time do something."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def alone(lock: Path, doing: str) -> Iterator[bool]:
    """Waits while another process holds this lock, and says so. doing: what both do, "fetching MiniLM". A
    process that was killed holds no lock. Gives False where the file system has no locks: nobody waits
    there."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held, of_both = False, FileLock(lock, thread_local=False)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NotImplementedError):
            try:
                stack.enter_context(of_both.acquire(timeout=0))
            except Timeout:
                print(f"waiting for another process, which is {doing}", flush=True)
                stack.enter_context(of_both.acquire())
            held = True
        yield held
