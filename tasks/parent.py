"""Child processes that end with their parent, even if SIGKILL ends it, which leaves no time for a clean-up.

On Linux the kernel does this from the child's start (PR_SET_PDEATHSIG in prctl(2)). Elsewhere a thread of the
child checks twice a second, once Python has started there; a program in another language is not covered.

The kernel goes by the thread that started the child, not by its process: that thread must live as long as the
child."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from typing import Any

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Makes this process end when its parent does. parent: the parent's id. Ends it at once if that process
    is not the parent any more."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before prctl, which then does nothing
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def tied() -> dict[str, Any]:
    """Arguments of subprocess.Popen that make the child end with this process. None except on Linux."""
    return {} if _LIBC is None else {"preexec_fn": functools.partial(end_with, os.getpid())}


def tie_forks() -> None:
    """Makes every process that this one forks from now on end with it; not the processes that those fork."""
    parent = os.getpid()

    def forked() -> None:
        nonlocal parent
        if parent:
            parent, was = 0, parent
            end_with(was)

    os.register_at_fork(after_in_child=forked)
