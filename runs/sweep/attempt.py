"""One attempt of a run, in a process of its own: its work, and how it ended.

The processes are forked from a server that has imported torch already. So a run starts in a fraction of a
second, and no state leaks from one run to the next."""

import contextlib
import errno
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from runs import SEVERAL
from runs.errors import DeviceError, StoppedError, is_users
from runs.record import run_folder
from runs.record.text import FULL, describe
from runs.run import Run
from runs.sweep import progress
from runs.sweep.display import Event
from runs.sweep.leases import Heart, Lease, LostLeaseError
from runs.sweep.signals import STOPPING, handling
from runs.tracking import Tracking
from tasks.parent import PARENT

#: The exit code of a run's process that was asked to stop and can continue (sysexits.h: temporary failure).
INTERRUPTED = 75
#: Seconds that an executor and its run's process have to save, after they were asked to stop.
GRACE = 60


@dataclass(frozen=True)
class Ending:
    """How an attempt ended. cause: record, mistake, memory, killed, device, disk, error, interrupted or lost.
    phase: of training, at the end."""

    cause: str
    error: str = ""
    phase: str = ""


class Attempt:
    """One attempt of a run, in a process of its own. A signal's handler, or another thread, may `stop` it."""

    def __init__(
        self, run: Run, run_id: str, lease: Lease, attempts: dict[str, Any], tracking: Tracking
    ) -> None:
        """attempts: of progress.read_attempts."""
        self.run, self.run_id, self.lease, self.attempts = run, run_id, lease, attempts
        self.tracking = tracking
        self.stopping = False  # whether it was asked to stop
        self._child: Any = None
        self._phase = "loading"
        self._error: Event | None = None  # that the process sent before it gave up

    def stop(self) -> None:
        """Asks the run to save and to end."""
        self.stopping = True
        if self._child is not None:
            self._child.terminate()

    def go(self, heart: Heart, show: Callable[[Event], None], idle: Callable[[], None]) -> Ending:
        """Does the run; returns how that ended. show: called with each event of the run. idle: called after
        each second without an event."""
        context = multiprocessing.get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        killed_before = _kernel_kills()
        # The server may be older than the lease on a device
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        work = (self.run, self.run_id, self.lease, self.attempts, self.tracking, sender, visible)
        child = context.Process(target=_child, args=work, daemon=True)
        try:
            child.start()
        except (OSError, EOFError):  # a broken connection: the server was killed at this moment
            return Ending("killed", "the process that runs are forked from was killed", "loading")
        finally:
            sender.close()
        self._child = child  # `stop` can reach it from here on
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
        """Passes the process's events on until it ends, and writes the run's progress into its folder."""
        latest: Event = {}
        written, process = 0.0, {"host": os.uname().nodename, "pid": os.getpid()}
        while True:
            if self.stopping and child.is_alive():
                child.terminate()  # `stop` may have come before there was a process
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
                progress.write_progress(self.run.config["output"], self.run_id, latest | process)

    def _ending(self, code: int, killed_before: int) -> Ending:
        """The meaning of the process's exit code and of the error that it sent."""
        if self._error:
            return Ending(self._error["cause"], self._error["error"], self._phase)
        stopped = self.stopping and code in [-number for number in STOPPING]
        if code == INTERRUPTED or stopped:
            return Ending("interrupted")
        if code == 0:
            return Ending("record")
        if code == -signal.SIGKILL and _kernel_kills() > killed_before:
            return Ending("memory", "out of memory: the kernel ended the process", self._phase)
        if code in (-signal.SIGKILL, 255):  # 255: the server that it was forked from has ended, too
            return Ending("killed", "the process was killed (signal 9; out of memory?)", self._phase)
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Ending("killed" if code < 0 else "error", f"the process ended with {words}", self._phase)


def _end(child: Any) -> None:
    """Ends a run's process, which may save first. A second Ctrl-C ends it at once."""
    end, warned = time.monotonic() + GRACE, False
    try:
        while child.is_alive() and time.monotonic() < end:
            child.terminate()  # again, for a process that had not set its handler yet
            child.join(1)
            if child.is_alive() and not warned:
                warned = True
                why = "saving a checkpoint. Ctrl-C again does not wait for it"
                print(f"\n{why}", file=sys.stderr, flush=True)
    finally:
        if child.is_alive():
            child.kill()
            child.join(5)


def start_fork_server(several: bool = True) -> None:
    """Starts the process that every run is forked from. It imports torch and others once, while this process
    continues. several: whether more than one run will be; a single one waits for fewer imports."""
    if several:
        os.environ[SEVERAL] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runs.preload"])
    os.environ[PARENT] = str(os.getpid())
    # Schedulers and terminals send a signal to a whole group of processes. The server must ignore it, and
    # inherits what this process ignores now. The server ends with this process (with this thread, to be
    # exact), and its runs with it: see runs/preload.py and tasks/parent.py.
    with handling(signal.SIG_IGN, (signal.SIGINT, *STOPPING)):
        multiprocessing.forkserver.ensure_running()


def _kernel_kills() -> int:
    """How often the kernel has killed a process of this machine or container for lack of memory."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        count += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return count


def _leave() -> None:
    """Ends a run's process, which can continue. Under MPS, work that is left on a GPU may hang the others."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
    os._exit(INTERRUPTED)


def _child(
    run: Run,
    run_id: str,
    lease: Lease,
    attempts: dict[str, Any],
    tracking: Tracking,
    events: Connection,
    visible: str | None,
) -> None:
    """The main function of a run's process. Its output goes into the run's log, its events to the executor,
    and an error as one event. visible: CUDA_VISIBLE_DEVICES."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the executor handles Ctrl-C, and ends this process
    stop: Any = None

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        if stop is not None and stop.listens:
            stop.wanted = True
        else:
            _leave()

    for number in STOPPING:
        signal.signal(number, ask_to_stop)
    _print_to_log(run, run_id, events)
    from runs.training.context import Stop
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
        train(Training(run, run_id, report, lease, stop, attempts), tracking)
    except StoppedError:
        os._exit(INTERRUPTED)
    except BaseException as error:
        if not is_users(error) and not isinstance(error, LostLeaseError):
            import traceback

            traceback.print_exc()
        cause, words = cause_of(error)
        events.send({"cause": cause, "error": words})
        sys.exit(1)


def _print_to_log(run: Run, run_id: str, events: Connection) -> None:
    """Has this process print into the run's log."""
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


#: What torch, CUDA's libraries and the driver say where memory ends; cuBLAS cannot start without some.
MEMORY = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDACachingAllocator",
)
#: What they say of a device that fails, or is lost: a new process may find it again.
DEVICE = ("CUDA", "CUDNN", "cuDNN error", "CUBLAS", "NCCL", "Error 802", "unable to find an engine")


def cause_of(error: BaseException) -> tuple[str, str]:
    """The cause of an error as `Ending` has it, and the error in one line."""
    words, name = describe(error), type(error).__name__
    if isinstance(error, LostLeaseError):
        return "lost", words
    if isinstance(error, DeviceError):
        return "device", words
    if is_users(error):
        return "mistake", words
    from_torch = isinstance(error, RuntimeError)  # torch.AcceleratorError and torch.OutOfMemoryError, too
    if (
        isinstance(error, MemoryError)
        or name == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
        or (from_torch and any(word in str(error) for word in MEMORY))
    ):
        return "memory", "out of memory"
    if isinstance(error, OSError):
        return ("disk" if error.errno in FULL else "mistake"), words
    if name == "AcceleratorError" or (from_torch and any(word in str(error) for word in DEVICE)):
        return "device", f"{name}: {words}"
    return "error", f"{name}: {words}"
