"""The process that every run is forked from. It imports torch and others once (runs/preload.py), which takes
seconds: a command starts it before its own imports.

Child processes end with their parent, even if SIGKILL ends it, which leaves no time for a clean-up. On Linux
the kernel does this from the child's start (PR_SET_PDEATHSIG in prctl(2)); elsewhere a thread of the child
checks twice a second, once Python has started there. The kernel goes by the thread that started the child,
not by its process: that thread must live as long as the child."""

import contextlib
import ctypes
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from runs import PARENT, SEVERAL

#: The signals that ask a command to stop. Slurm's come before the end of a job's time.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def handling(handler: Any, signals: Sequence[int] = STOPPING) -> Iterator[None]:
    """Sets the handler of signals for a block; nothing outside the main thread, where Python allows it."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals} if main else {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def start_fork_server(several: bool = True) -> None:
    """Starts it, unless it is on. several: whether more than one run will be; a single one waits for fewer
    imports."""
    if several:
        os.environ[SEVERAL] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["runs.preload"])
    os.environ[PARENT] = str(os.getpid())
    # Schedulers and terminals send a signal to a whole group of processes. The server must ignore it, and
    # inherits what this process ignores now. It ends with this process (with this thread, to be exact), and
    # its runs with it: see runs/preload.py.
    with handling(signal.SIG_IGN, (signal.SIGINT, *STOPPING)):
        multiprocessing.forkserver.ensure_running()


def start_early(words: Sequence[str]) -> None:
    """Starts it where runs of this machine seem to be wanted. A wrong guess costs a process that ends with
    this one."""
    elsewhere = ("-", "launcher=slurm", "launcher=ray", "debug=")
    if words and not any(word.startswith(elsewhere) for word in words) and "LOCAL_RANK" not in os.environ:
        start_fork_server(several=any("," in word or word.startswith("experiment=") for word in words))


def end_with(parent: int) -> None:
    """Makes this process end when its parent does. parent: the parent's id. Ends it at once if that process
    is not the parent any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before prctl, which then does nothing
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def tie_forks() -> None:
    """Makes every process that this one forks from now on end with it; not the processes that those fork."""
    parent = os.getpid()

    def forked() -> None:
        nonlocal parent
        if parent:
            parent, was = 0, parent
            end_with(was)

    os.register_at_fork(after_in_child=forked)
