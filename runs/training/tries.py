"""The tries of one run in its process: training, and training again where that helps, until the run has a
record, cannot have one, or was asked to stop."""

import contextlib
import dataclasses
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from runs.errors import StoppedError, is_users
from runs.record import finished_record, run_folder
from runs.record.text import describe, duration
from runs.run import Run
from runs.tracking import Tracking
from runs.training.failures import ROOM, Stop, cause_of, less_memory, wait_for_room, with_room
from runs.training.files import Attempt, saved

Event = dict[str, Any]
#: How a run's process ended, and why there is no finished record.
End = tuple[str, str]
#: DONE: it has a record; FAILED: and has a failed record, but for a mistake of a single run. BUSY: another
#: process has, or had, the lock. STOPPED: it can go on. KILLED, or its device is lost: a new
#: process may succeed.
DONE, FAILED, BUSY, STOPPED, KILLED = "done", "failed", "busy", "stopped", "killed"
#: The exit code of a run that was asked to stop, whose process has no time to send a word.
CAN_GO_ON = 75
#: Seconds between two writings of a run's progress.
EVERY = 1.0


def do(run: Run, run_id: str, attempts: list[Attempt], stop: Stop, tracking: Tracking, alone: bool) -> End:
    """Does a run whose lock this process has. attempts: gets this one. alone: a user's mistake leaves no
    record."""
    output = run.config["output"]
    try:
        if finished_record(output, run_id):
            return BUSY, ""
        attempts.append(with_room(lambda: Attempt(output, run_id), stop))
        return _until_done(run, attempts[0], stop, tracking, alone)
    except Exception as error:
        if finished_record(output, run_id):  # of another attempt, where locks let both pass
            return DONE, ""
        return FAILED, describe(error)


def leave(*attempts: Attempt) -> None:
    """Ends the process of a run that can go on. Under MPS, work that is left on a GPU may hang the others."""
    torch = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        for attempt in attempts:
            attempt.save(stopped=True)
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    os._exit(CAN_GO_ON)


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
            written, cut_off = time.monotonic(), path.with_name(f".{path.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # a full disk must not stop the run here
                cut_off.write_text(json.dumps(latest | process))
                os.replace(cut_off, path)

    return report


def _until_done(run: Run, attempt: Attempt, stop: Stop, tracking: Tracking, alone: bool) -> End:
    phase, output = ["loading"], run.config["output"]

    def show(event: Event) -> None:
        phase[0] = event["phase"]

    report, pauses, before = reporter(run, attempt.run_id, show), [*ROOM], saved(output, attempt.run_id)
    while error := _train(run, attempt, stop, report, tracking):
        if finished_record(output, attempt.run_id):  # this one is late
            break
        cause, words = error
        gc.collect()
        if (now := saved(output, attempt.run_id)) != before:
            pauses, before = [*ROOM], now
        if cause == "stopped":
            leave(attempt)
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
            return KILLED, words
    return DONE, ""


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
