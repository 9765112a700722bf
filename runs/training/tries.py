"""The tries of one run in its process: training, and training again where that helps, until the run has a
record, cannot have one, or was asked to stop."""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from runs.errors import DeviceError, Stop, StoppedError, is_users
from runs.record import finished_record, run_folder
from runs.record.text import FULL, describe, duration
from runs.run import Run
from runs.tracking import Tracking
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
#: On a full disk, or where it does not answer: seconds before each new try. Somebody may make room meanwhile.
ROOM = (30, 60, 120, 240)
DISK = (*FULL, errno.EIO, errno.ESTALE)
#: Seconds between two writings of a run's progress.
EVERY = 1.0


def do(run: Run, run_id: str, attempts: list[Attempt], stop: Stop, tracking: Tracking, alone: bool) -> End:
    """Does a run whose lock this process has. attempts: gets this one. alone: a user's mistake leaves no
    record."""
    output, pauses, before = run.config["output"], [*ROOM], saved(run.config["output"], run_id)
    while True:
        try:
            if finished_record(output, run_id):
                return BUSY, ""
            if not attempts:
                attempts.append(Attempt(output, run_id))
            return _until_done(run, attempts[0], stop, tracking, alone)
        except Exception as error:
            if finished_record(output, run_id):  # of another attempt, where locks let both pass
                return DONE, ""
            if (now := saved(output, run_id)) != before:
                pauses, before = [*ROOM], now
            words, disk = describe(error), isinstance(error, OSError) and error.errno in DISK
            if not (pauses and disk):
                with contextlib.suppress(OSError):  # there may be no room for that, either
                    for attempt in attempts if disk else ():
                        attempt.fail(run, words)
                return FAILED, words
            print(f"{words}: tried again in {duration(pauses[0])}", flush=True)
            for attempt in attempts:
                attempt.ended.append(words)
        stop.listens = False  # SIGTERM ends the process at once
        if stop.wanted:
            leave(*attempts)
        time.sleep(pauses.pop(0))


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
    phases = deque(["loading"], maxlen=1)
    report = reporter(run, attempt.run_id, lambda event: phases.append(event["phase"]))
    while error := _train(run, attempt, stop, report, tracking):
        if finished_record(run.config["output"], attempt.run_id):  # this one is late
            break
        cause, words = error
        gc.collect()
        if cause == "stopped":
            leave(attempt)
        elif cause == "memory" and less_memory(run.config | attempt.settings, phases[0], attempt):
            print(f"{words}: tried again with {attempt.deviations[-1]}", flush=True)
            attempt.ended.append(words)
            attempt.save()
        elif cause == "disk":
            raise OSError(errno.EIO, words)
        elif cause == "device":
            attempt.ended.append(words)
            attempt.save(stopped=True)
            return KILLED, words
        else:
            if cause != "mistake" or not alone:
                attempt.fail(run, words)
            return FAILED, words
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


# --- what an error means


def less_memory(config: dict[str, Any], phase: str, attempt: Attempt) -> bool:
    """Halves what an attempt computes at once in a phase, after memory ran out; False where that would not
    help. The effective batch stays: a micro-batch changes the gradient by rounding, and what dropout
    draws."""
    whole = config["train"]["effective_batch"]
    if phase.startswith(("training", "evaluated")):  # an epoch's first step tells of itself when it is done
        key, name, kept = "micro_batch", "micro-batch", "; the effective batch stays"
        before = min(config["micro_batch"] or whole, whole)
    elif phase.startswith(("evaluating", "decoding")):
        key, name, kept, before = "eval_batch", "evaluation batch", "", config["eval_batch"]
    else:  # the model alone is too large
        return False
    if before < 2:
        return False
    attempt.settings[key] = before // 2
    attempt.deviations = [words for words in attempt.deviations if not words.startswith(name)]
    attempt.deviations.append(f"{name} {before // 2}, since memory ran out at {before}{kept}")
    return True


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
    """The cause of an error (mistake, memory, disk, device or error), and the error in one line."""
    words, name = describe(error), type(error).__name__
    said = str(error) if isinstance(error, RuntimeError) else ""  # torch's own errors are such, too
    if isinstance(error, DeviceError):
        return "device", words
    if is_users(error):
        return "mistake", words
    no_memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if no_memory or name == "OutOfMemoryError" or any(word in said for word in MEMORY):
        return "memory", "out of memory"
    if isinstance(error, OSError):
        return ("disk" if error.errno in DISK else "mistake"), words
    if name == "AcceleratorError" or any(word in said for word in DEVICE):
        return "device", f"{name}: {words}"
    return "error", f"{name}: {words}"
