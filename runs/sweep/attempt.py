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
from collections.abc import Callable
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
from runs.sweep.leases import Heart, Lease, LostLeaseError
from tasks.parent import PARENT

#: How a run's process ends that was asked to stop: it goes on later (sysexits.h: a temporary failure).
INTERRUPTED = 75
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: How the operating system says that the disk, or the user's part of it, is full.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: What a run's process may take to save when it is asked to stop, in seconds.
GRACE = 60


@dataclass(frozen=True)
class Ending:
    """How an attempt ended. cause: record, mistake, memory, killed, device, disk, error, interrupted or
    lost."""

    cause: str
    error: str = ""
    phase: str = ""


class Attempt:
    """One attempt of a run, in a process of its own. Another thread, or a signal's handler, may `stop` it."""

    def __init__(self, run: Run, run_id: str, lease: Lease, attempts: dict[str, Any]) -> None:
        """attempts: what earlier ones left (runs/sweep/progress.py)."""
        self.run, self.run_id, self.lease, self.attempts = run, run_id, lease, attempts
        self.asked = False  # to stop
        self._child: Any = None
        self._phase = "loading"
        self._error: Event | None = None  # why the process gave up, as it says itself

    def stop(self) -> None:
        """Asks the run to save and to end."""
        self.asked = True
        if self._child is not None:
            self._child.terminate()

    def go(self, heart: Heart, show: Callable[[Event], None], idle: Callable[[], None]) -> Ending:
        """Does the run, and says how that ended. show: is given each event of the run. idle: is called in
        each second without one."""
        context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        killed_before = _kernel_kills()
        work = (self.run, self.run_id, self.lease, self.attempts, sender)
        child = context.Process(target=_child, args=work, daemon=True)
        try:
            child.start()
        except (OSError, EOFError):  # of a connection: the server was killed at this moment
            return Ending("killed", "the process that runs are forked from was killed", "loading")
        finally:
            sender.close()
        self._child = child  # which can be asked to stop from here on
        try:
            self._follow(child, receiver, heart, show, idle)
            child.join()
        except BaseException:
            _end(child)
            raise
        finally:
            self._child = None
            receiver.close()
        return Ending("lost") if heart.lost else self._ending(child.exitcode or 0, killed_before)

    def _follow(
        self,
        child: Any,
        receiver: Connection,
        heart: Heart,
        show: Callable[[Event], None],
        idle: Callable[[], None],
    ) -> None:
        """Passes on what the process says, until it ends; keeps how the run stands in its folder."""
        latest: Event = {}
        written, here = 0.0, {"host": os.uname().nodename, "pid": os.getpid()}
        while True:
            if self.asked and child.is_alive():
                child.terminate()  # it may have come before there was a process to ask
            if heart.lost:
                child.kill()
            try:
                if not receiver.poll(1.0):
                    idle()
                    continue
                event = receiver.recv()
            except EOFError:
                return
            if "cause" in event:
                self._error = event
                continue
            self._phase = event["phase"]
            show(event)
            latest = {k: v for k, v in latest.items() if k not in ("done", "of", "milestone")} | event
            if self._phase != "training" or time.monotonic() - written > 2:
                written = time.monotonic()
                progress.write_progress(self.run.config["output"], self.run_id, latest | here)

    def _ending(self, code: int, killed_before: int) -> Ending:
        """What the process's exit code, and what it has said, mean."""
        if self._error:
            return Ending(self._error["cause"], self._error["error"], self._phase)
        asked = self.asked and code in [-number for number in STOPPING]
        if code == INTERRUPTED or asked:
            return Ending("interrupted")
        if code == 0:
            return Ending("record")
        if code == -signal.SIGKILL and _kernel_kills() > killed_before:
            return Ending("memory", "out of memory: the kernel ended the process", self._phase)
        if code in (-signal.SIGKILL, 255):  # 255: the server that it was forked from is gone, too
            return Ending("killed", "the process was killed (signal 9; out of memory?)", self._phase)
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Ending("killed" if code < 0 else "error", f"the process ended with {words}", self._phase)


def _end(child: Any) -> None:
    """Ends a run's process: it may save first. A second Ctrl-C does not wait."""
    end, warned = time.monotonic() + GRACE, False
    try:
        while child.is_alive() and time.monotonic() < end:
            child.terminate()  # again: one that comes before the process listens is not heard
            child.join(1)
            if child.is_alive() and not warned:
                warned = True
                why = "saving where the run is. Ctrl-C again does not wait for it"
                print(f"\n{why}", file=sys.stderr, flush=True)
    finally:
        if child.is_alive():
            child.kill()
            child.join(5)


def start_fork_server() -> None:
    """Starts the process that every run is forked from, while this one goes on: it imports what takes long,
    once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs.preload"])
    os.environ[PARENT] = str(os.getpid())
    # A signal to a whole group of processes, as schedulers and terminals send it, is for the run's process
    # and this one: what is ignored now, the server inherits. It ends with this process (with this thread, to
    # be exact), and its runs with it: see runs/preload.py and tasks/parent.py.
    before = {number: listen(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOPPING)}
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            listen(number, handler)


def listen(number: int, handler: Any) -> Any:
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
    from runs.training.loop import Training
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
        train(Training(run, run_id, report, lease, stop, attempts))
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
