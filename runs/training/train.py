"""One run in its process, from its start to its record: training, and training again where that helps, until
the run has a record, cannot have one, or was asked to stop. torch is imported where a run trains."""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runs.errors import DeviceError, Stop, StoppedError, is_users
from runs.provenance import made_with
from runs.record import Record, finished_record, run_folder
from runs.record.text import FULL, describe, duration
from runs.run import Run
from runs.tracking import Tracker, Tracking
from runs.training.files import Attempt, saved

if TYPE_CHECKING:
    from runs.training.loop import Training

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
    phase = "loading"

    def follow(event: Event) -> None:
        nonlocal phase
        phase = event["phase"]

    report = reporter(run, run_id, follow)
    while True:
        try:
            if finished_record(output, run_id):
                return BUSY, ""
            if not attempts:
                attempts.append(Attempt(output, run_id))
            attempt = attempts[0]
            cause, words = _try(run, attempt, stop, report, tracking)
            if cause == "done" or finished_record(output, run_id):  # of another attempt: this one is late
                return DONE, ""
            gc.collect()
            if cause == "stopped":
                leave(attempt)
            elif cause == "memory" and less_memory(run.config | attempt.settings, phase, attempt):
                print(f"{words}: tried again with {attempt.deviations[-1]}", flush=True)
                attempt.ended.append(words)
                attempt.save()
                continue
            elif cause == "device":
                attempt.ended.append(words)
                attempt.save(stopped=True)
                return KILLED, words
            elif cause != "disk":
                if cause != "mistake" or not alone:
                    attempt.fail(run, words)
                return FAILED, words
        except Exception as error:  # of the attempt's own files
            cause, words = cause_of(error)[0], describe(error)
        if finished_record(output, run_id):
            return DONE, ""
        if (now := saved(output, run_id)) != before:
            pauses, before = [*ROOM], now
        if cause != "disk" or not pauses:
            with contextlib.suppress(OSError):  # there may be no room for that, either
                for attempt in attempts if cause == "disk" else ():
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


# --- one try


def _try(
    run: Run, attempt: Attempt, stop: Stop, report: Callable[[Event], None], tracking: Tracking
) -> tuple[str, str]:
    """Trains once; returns "done", or the cause and the words of an error. With this function's end the error
    is gone, and with it the tensors that its traceback holds."""
    from runs.training.loop import Training

    stop.listens = False
    try:
        stop.check()
        now = dataclasses.replace(run, config=run.config | attempt.settings)
        train(Training(now, attempt.run_id, report, attempt, stop), tracking)
        return "done", ""
    except StoppedError:
        return "stopped", ""
    except BaseException as error:
        if not is_users(error) and not finished_record(run.config["output"], attempt.run_id):
            traceback.print_exc()
        return cause_of(error)


def train(training: "Training", tracking: Tracking | None = None) -> Record:
    """Does one run, writes its record, and moves the attempt's files into the run's folder. Where another
    attempt has finished the run before, its record and files stay, and this one's are removed. tracking:
    whether W&B shows the run. Raises StoppedError where `training.stop` asks for it."""
    from runs.training.result import build_record

    accelerator = training.accelerator
    made = made_with(training.code, accelerator.device)
    training.tracker = Tracker(tracking, training.run, training.run_id, made)
    try:
        record = build_record(training, training.go())
        if record["status"] == "done" and training.task.pictures:
            _illustrate(training)
        if accelerator.is_main_process:
            training.attempt.finish(record)
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    except BaseException as error:
        training.tracker.finish(None, error)
        raise
    training.tracker.finish(record)
    return record


def _illustrate(training: "Training") -> None:
    """Has the task draw pictures of the last epoch's predictions."""
    if training.predictions is None:  # of a run that was resumed after its last epoch
        training.predictions = training.evaluate()[1]
    if not training.accelerator.is_main_process:
        return
    try:
        training.task.illustrate(training.folder, training.predictions)
    except Exception as error:  # a run is worth more than its pictures
        print(f"the pictures of its predictions were not drawn ({type(error).__name__}: {error})", flush=True)


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
