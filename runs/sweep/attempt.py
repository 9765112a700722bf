"""One attempt of a run: the process that does it, and how it ended.

The processes are forked from a server that has torch imported already, so a run starts in a fraction of a
second, and no state leaks from one to the next."""

import errno
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from runs.config import Run
from runs.errors import is_users
from runs.record import run_folder
from runs.record.text import describe
from runs.sweep import progress
from runs.sweep.display import Event
from runs.sweep.leases import Lease, LostLeaseError
from tasks.parent import PARENT

#: How a run's process ends that was asked to stop: it goes on later (sysexits.h: a temporary failure).
INTERRUPTED = 75
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: How the operating system says that the disk, or the user's part of it, is full.
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Ending:
    """How a try of a run ended. cause: record, mistake, memory, killed, device, disk, error, interrupted or
    lost."""

    cause: str
    error: str = ""
    phase: str = ""


def start_fork_server() -> None:
    """Starts the process that every run is forked from, while this one goes on: it imports what takes long,
    once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs.preload"])
    os.environ[PARENT] = str(os.getpid())
    # A signal to a whole group of processes, as schedulers and terminals send it, is for the run's process
    # and this one: what is ignored now, the server inherits. It ends with this process (with this thread, to
    # be exact), and its runs with it: see runs/preload.py and tasks/parent.py.
    before = {number: _listen(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOPPING)}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            _listen(number, handler)


def _listen(number: int, handler: Any) -> Any:
    """Sets a signal's handler and returns the one before, in the main thread; elsewhere signals are somebody
    else's."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, handler)


def _kernel_kills() -> int:
    """How often the kernel has ended a process of this machine or container for want of memory."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        count += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count


def _child(run: Run, run_id: str, lease: Lease, attempts: dict[str, Any], events: Connection) -> None:
    """The process's whole life: output into the run's log, progress to the executor, one line for an
    error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the executor's, which ends this process
    stop: Any = None

    def asked(number: int, frame: FrameType | None) -> None:
        if stop is not None and stop.listens:
            stop.wanted = True
        else:
            os._exit(INTERRUPTED)

    for number in STOPPING:
        signal.signal(number, asked)
    folder = run_folder(run.config["output"], run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = progress.append(folder / "log.txt")
    except OSError as error:
        cause, words = cause_of(error)
        events.send({"cause": cause, "error": words})
        sys.exit(1)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}, run {run_id}", flush=True)
    from runs.training.context import Stop, StoppedError
    from runs.training.train import train

    stop = Stop()
    last = 0.0

    def report(event: Event) -> None:
        nonlocal last
        if event["phase"] != "training" or time.monotonic() - last > 0.25:
            last = time.monotonic()
            try:
                events.send(event)
            except OSError:  # the executor was killed
                os._exit(1)

    try:
        train(run, run_id, report, lease, stop, attempts)
    except StoppedError:
        os._exit(INTERRUPTED)
    except BaseException as error:
        if not is_users(error) and not isinstance(error, LostLeaseError):
            import traceback

            traceback.print_exc()
        cause, words = cause_of(error)
        events.send({"cause": cause, "error": words})
        sys.exit(1)


def cause_of(error: BaseException) -> tuple[str, str]:
    """Why a run's process gave up, and in one line."""
    words, name = describe(error), type(error).__name__
    if isinstance(error, LostLeaseError):
        return "lost", words
    if is_users(error):
        return "mistake", words
    if (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
    ):
        return "memory", "out of memory"
    if isinstance(error, RuntimeError) and any(
        w in str(error) for w in ("out of memory", "can't allocate memory")
    ):
        return "memory", "out of memory"
    if isinstance(error, OSError):
        return ("disk" if error.errno in FULL else "mistake"), words
    if name == "AcceleratorError" or (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return "device", f"{name}: {words}"
    return "error", f"{name}: {words}"
