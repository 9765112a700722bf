"""A process that ends with the one that started it, whatever ended that: SIGKILL leaves it no time to tell
its children.

On Linux the kernel sees to it, and from the first moment (PR_SET_PDEATHSIG in prctl(2)). Elsewhere a thread
of the child looks twice a second, once Python has started there; a program in another language is left to
notice that its input ends.

The kernel goes by the thread that started the child, not by its process: that thread has to stay for as long
as the child."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from typing import Any

#: The environment variable that tells a process which is not told otherwise whom it ends with.
PARENT = "VERA_BENCH_PARENT"

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Has this process killed when its parent, whose id this is, ends. Ends it now where the parent is gone
    already."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the kernel was asked, which then says nothing
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def tied() -> dict[str, Any]:
    """What subprocess.Popen is given beside a program, for it to end with this process. Elsewhere than on
    Linux: nothing."""
    return {} if _LIBC is None else {"preexec_fn": functools.partial(end_with, os.getpid())}


def tie_forks() -> None:
    """Has every process that is forked from this one from here on end with it; what those fork is left to
    them."""
    parent = os.getpid()

    def forked() -> None:
        nonlocal parent
        if parent:
            parent, was = 0, parent
            end_with(was)

    os.register_at_fork(after_in_child=forked)
