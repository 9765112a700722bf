"""One run, in a process of its own: it takes the run's lock, trains, and tries again where that helps.

The processes are forked from a server that has imported torch already. So a run starts in a fraction of a
second, and no state leaks from one run to the next."""

import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from runs.alone import run_lock
from runs.errors import Stop
from runs.fork_server import STOPPING
from runs.record import run_folder
from runs.record.text import describe
from runs.run import Run
from runs.tracking import Tracking
from runs.training.files import Attempt
from runs.training.tries import BUSY, CAN_GO_ON, FAILED, KILLED, STOPPED, End, do, leave


class Process:
    """A run's process. alone: a user's mistake leaves no record. visible: the run's CUDA_VISIBLE_DEVICES,
    where they are not this process's. ready: what multiprocessing.connection.wait waits for."""

    def __init__(self, run: Run, run_id: str, tracking: Tracking, alone: bool, visible: str | None) -> None:
        context = multiprocessing.get_context("forkserver")
        self.ready, sender = context.Pipe(duplex=False)
        work = (run, run_id, tracking, alone, visible, sender)
        self.child: Any = context.Process(target=_child, args=work, daemon=True)
        with contextlib.closing(sender), contextlib.suppress(OSError, EOFError):  # the server was killed now
            self.child.start()

    def signal(self, number: int) -> None:
        """SIGTERM asks the run to save and to end."""
        with contextlib.suppress(OSError, TypeError):  # it has ended, or never begun
            os.kill(self.child.pid, number)

    def ended(self) -> End:
        """Waits for its end, and returns it."""
        end: End | None = None
        with contextlib.closing(self.ready), contextlib.suppress(EOFError, OSError):
            end = self.ready.recv()
        if self.child.pid:
            self.child.join()
        code = self.child.exitcode
        if end or code == CAN_GO_ON:
            return end or (STOPPED, "")
        killed = code in (-signal.SIGKILL, 255, None)  # 255: the server has ended, too. None: before it began
        return KILLED, f"the process {'was killed (out of memory?)' if killed else f'ended with code {code}'}"


def _child(
    run: Run, run_id: str, tracking: Tracking, alone: bool, visible: str | None, sender: Connection
) -> None:
    """The main function of a run's process. Its output goes into the run's log. It sends how it has ended."""
    if visible is not None:  # the server may be older than the lock on a device
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command handles Ctrl-C, and ends this process
    attempt, stop, lock = list[Attempt](), Stop(), run_lock(run.config["output"], run_id)

    def ask_to_stop(*_: object) -> None:
        stop.wanted = True
        if not stop.listens:
            leave(*attempt)

    for number in STOPPING:
        signal.signal(number, ask_to_stop)
    try:
        _log_into(run, run_id)
        # The process holds the lock to its end
        end = do(run, run_id, attempt, stop, tracking, alone) if lock.take() else (BUSY, "")
    except Exception as error:  # such as a log that cannot be written
        end = FAILED, describe(error)
    sender.send(end)


def _log_into(run: Run, run_id: str) -> None:
    """Opens the run's log at its end, as this process's output."""
    path = run_folder(run.config["output"], run_id) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}, run {run_id}", flush=True)
