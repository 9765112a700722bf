"""One run, in a process of its own: it takes the run's lock, trains, and tries again where that helps.

The processes are forked from a server that has imported torch already. So a run starts in a fraction of a
second, and no state leaks from one run to the next."""

import contextlib
import dataclasses
import gc
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from runs import SEVERAL
from runs.errors import StoppedError, is_users
from runs.record import check_regular, finished_record, run_folder
from runs.record.text import describe, duration
from runs.run import Run
from runs.sweep.claim import Claim
from runs.tracking import Tracking
from runs.training.failures import ROOM, Stop, cause_of, less_memory, wait_for_room, with_room
from runs.training.files import Attempt, saved
from tasks.parent import PARENT

Event = dict[str, Any]
#: The exit codes of a run's process. DONE: it has a record; FAILED: it sends why not, and leaves a failed
#: record, but for a mistake of a single run. STOPPED: it can go on. AGAIN: a new process may succeed.
DONE, FAILED, BUSY, AGAIN, STOPPED = 0, 1, 73, 74, 75
#: The signals that ask a command to stop. Slurm's come before the end of a job's time.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: Seconds between two writings of a run's progress.
EVERY = 1.0


@contextlib.contextmanager
def handling(handler: Any, signals: Sequence[int] = STOPPING) -> Iterator[None]:
    """Sets the handler of signals for a block. It does nothing outside the main thread, where Python allows
    it."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals} if main else {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def start_fork_server(several: bool = True) -> None:
    """Starts the process that every run is forked from. It imports torch and others once, while this process
    continues. several: whether more than one run will be; a single one waits for fewer imports."""
    if several:
        os.environ[SEVERAL] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["runs.preload"])
    os.environ[PARENT] = str(os.getpid())
    # Schedulers and terminals send a signal to a whole group of processes. The server must ignore it, and
    # inherits what this process ignores now. It ends with this process (with this thread, to be exact), and
    # its runs with it: see runs/preload.py and tasks/parent.py.
    with handling(signal.SIG_IGN, (signal.SIGINT, *STOPPING)):
        multiprocessing.forkserver.ensure_running()


class Process:
    """A run's process. alone: a user's mistake leaves no record. visible: the run's CUDA_VISIBLE_DEVICES,
    where they are not this process's. ready: what multiprocessing.connection.wait waits for."""

    def __init__(self, run: Run, run_id: str, tracking: Tracking, alone: bool, visible: str | None) -> None:
        context = multiprocessing.get_context("forkserver")
        self.ready, sender = context.Pipe(duplex=False)
        work = (run, run_id, tracking, alone, visible, sender)
        self.child: Any = context.Process(target=_child, args=work, daemon=True)
        try:
            self.child.start()
        except (OSError, EOFError):  # the server was killed at this moment
            self.child = None
        finally:
            sender.close()

    def stop(self) -> None:
        """Asks the run to save and to end."""
        if self.child is not None:
            self.child.terminate()

    def kill(self) -> None:
        """Ends it at once."""
        if self.child is not None:
            self.child.kill()

    def ended(self) -> tuple[int, str]:
        """Waits for its end; returns its exit code, and why it has no finished record."""
        with contextlib.closing(self.ready):
            try:
                words: str = self.ready.recv()
            except (EOFError, OSError):
                words = ""
        if self.child is not None:
            self.child.join()
        code = self.child.exitcode if self.child is not None else -signal.SIGKILL
        if code in (-signal.SIGKILL, 255):  # 255: the server that it was forked from has ended, too
            return code, "the process was killed (signal 9; out of memory?)"
        return (
            code,
            words or f"the process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}",
        )


def reporter(run: Run, run_id: str, also: Callable[[Event], None]) -> Callable[[Event], None]:
    """A function that writes a run's events into its progress.json, for whoever looks on. also: called with
    each."""
    path, latest, written = run_folder(run.config["output"], run_id) / "progress.json", Event(), 0.0
    process = {"host": os.uname().nodename, "pid": os.getpid()}

    def report(event: Event) -> None:
        nonlocal latest, written
        also(event)
        of_now = ("done", "of", "milestone")
        latest = {key: value for key, value in latest.items() if key not in of_now} | event
        if event["phase"] != "training" or time.monotonic() - written > EVERY:
            written, partial = time.monotonic(), path.with_name(f".{path.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # a full disk must not stop the run here
                partial.write_text(json.dumps(latest | process))
                os.replace(partial, path)

    return report


def _child(
    run: Run, run_id: str, tracking: Tracking, alone: bool, visible: str | None, sender: Connection
) -> None:
    """The main function of a run's process. Its output goes into the run's log. It sends one text: why there
    is no record, or a failed one."""
    if visible is not None:  # the server may be older than the lock on a device
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command handles Ctrl-C, and ends this process
    attempt, stop, claim = list[Attempt](), Stop(), Claim(run.config["output"], run_id)

    def ask_to_stop(*_: object) -> None:
        if stop.listens:
            stop.wanted = True
        else:
            _leave(attempt)

    for number in STOPPING:
        signal.signal(number, ask_to_stop)
    try:
        _log_into(run, run_id)
        code, words = BUSY, ""
        if claim.take():  # which it holds to its end
            code, words = carry_out(run, run_id, attempt, stop, tracking, alone)
    except Exception as error:  # such as a log that cannot be written
        code, words = FAILED, describe(error)
    sender.send(words)
    if code == STOPPED:
        os._exit(code)
    sys.exit(code)


def carry_out(
    run: Run, run_id: str, attempt: list[Attempt], stop: Stop, tracking: Tracking, alone: bool
) -> tuple[int, str]:
    """Does a run whose lock this process has. Returns the exit code, and why there is no finished record.
    attempt: becomes this one."""
    output = run.config["output"]
    try:
        if finished_record(output, run_id):
            return DONE, ""
        attempt.append(with_room(lambda: Attempt(output, run_id), stop))
        return _until_done(run, attempt[0], stop, tracking, alone)
    except Exception as error:
        if finished_record(output, run_id):  # of another attempt, where locks let both pass
            return DONE, ""
        return FAILED, describe(error)


def _log_into(run: Run, run_id: str) -> None:
    """Opens the run's log at its end, as this process's output. A pipe in its place would block."""
    path = run_folder(run.config["output"], run_id) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
    check_regular(os.fstat(log), path)
    for stream in (1, 2):
        os.dup2(log, stream)
    print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}, run {run_id}", flush=True)


def _leave(attempt: Sequence[Attempt]) -> None:
    """Ends a run's process, which can go on. Under MPS, work that is left on a GPU may hang the others."""
    torch = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        for one in attempt:
            one.save(stopped=True)
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    os._exit(STOPPED)


def _until_done(run: Run, attempt: Attempt, stop: Stop, tracking: Tracking, alone: bool) -> tuple[int, str]:
    """Trains until the run has a record, cannot have one, or was asked to stop. Returns the exit code, and
    why."""
    phase, output = ["loading"], run.config["output"]

    def show(event: Event) -> None:
        phase[0] = event["phase"]

    report, pauses, before = reporter(run, attempt.run_id, show), [*ROOM], saved(output, attempt.run_id)
    while True:
        error = _train(run, attempt, stop, report, tracking)
        if error is None or finished_record(output, attempt.run_id):  # else this one is late
            return DONE, ""
        cause, words = error
        gc.collect()
        if (now := saved(output, attempt.run_id)) != before:
            pauses, before = [*ROOM], now
        if cause == "stopped":
            attempt.save(stopped=True)
            return STOPPED, ""
        if cause == "memory" and less_memory(run.config | attempt.settings, phase[0], attempt):
            print(f"{words}: tried again with {attempt.deviations[-1]}", flush=True)
        elif cause == "disk" and pauses:
            print(f"{words}: tried again in {duration(pauses[0])}", flush=True)
            wait_for_room(pauses.pop(0), stop)
        elif cause == "mistake" and alone:
            return FAILED, words
        elif cause != "device":
            with_room(partial(attempt.fail, run, words), stop)
            return FAILED, words
        attempt.ended.append(words)
        with_room(partial(attempt.save, stopped=cause == "device"), stop)
        if cause == "device":
            return AGAIN, words


def _train(
    run: Run, attempt: Attempt, stop: Stop, report: Callable[[Event], None], tracking: Tracking
) -> tuple[str, str] | None:
    """Trains once; returns the cause and the words of an error. With this function's end the error is gone,
    and with it the tensors that its traceback holds."""
    from runs.training.loop import Training
    from runs.training.train import train

    stop.listens = False
    try:
        stop.check()
        now = dataclasses.replace(run, config=run.config | attempt.settings)
        train(Training(now, attempt.run_id, report, attempt, stop), tracking)
        return None
    except StoppedError:
        return "stopped", ""
    except BaseException as error:
        if not is_users(error) and not finished_record(run.config["output"], attempt.run_id):
            traceback.print_exc()
        return cause_of(error)
