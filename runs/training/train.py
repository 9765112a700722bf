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
from runs.record import FULL, Record, describe, duration, finished_record, run_folder, temporary
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
    report = Reporter(run, run_id)
    while not finished_record(output, run_id):
        cause, words = _try(run, run_id, attempts, stop, report, tracking)
        gc.collect()
        if cause == "done" or finished_record(output, run_id):  # of another attempt: this one is late
            return DONE, ""
        if cause == "stopped":
            leave(*attempts)
        if (now := saved(output, run_id)) != before:
            pauses, before = [*ROOM], now
        smaller = cause == "memory" and less_memory(
            run.config | attempts[0].settings, report.latest["phase"], attempts[0]
        )
        again = smaller or cause == "device" or (cause == "disk" and pauses)
        with contextlib.suppress(OSError):  # there may be no room for that
            for attempt in attempts:
                if again:
                    attempt.ended.append(words)
                    attempt.save(stopped=cause == "device")
                elif cause != "mistake" or not alone:
                    attempt.fail(run, words)
        if cause == "device" or not again:
            return KILLED if again else FAILED, words
        how = f"with {attempts[0].deviations[-1]}" if smaller else f"in {duration(pauses[0])}"
        print(f"{words}: tried again {how}", flush=True)
        stop.listens = False  # SIGTERM ends the process at once
        if stop.wanted:
            leave(*attempts)
        time.sleep(0.0 if smaller else pauses.pop(0))
    return BUSY, ""


def leave(*attempts: Attempt) -> None:
    """Ends the process of a run that can go on. Under MPS, work that is left on a GPU may hang the others."""
    torch = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        for attempt in attempts:
            attempt.save(stopped=True)
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    os._exit(CAN_GO_ON)


class Reporter:
    """Writes a run's events into its progress.json, for whoever looks on. latest: the last one. show: called
    with each."""

    def __init__(self, run: Run, run_id: str, show: Callable[[Event], None] | None = None) -> None:
        self.path = run_folder(run.config["output"], run_id) / "progress.json"
        self.show, self.latest, self.written = show, Event(phase="loading"), 0.0

    def __call__(self, event: Event) -> None:
        if self.show:
            self.show(event)
        of_now, now = ("done", "of"), time.monotonic()
        self.latest = {key: value for key, value in self.latest.items() if key not in of_now} | event
        if event["phase"] != "training" or now - self.written > EVERY:
            self.written, process = now, {"host": os.uname().nodename, "pid": os.getpid()}
            # A full disk must not stop the run here
            with contextlib.suppress(OSError), temporary(self.path) as partial:
                partial.write_text(json.dumps(self.latest | process))
                os.replace(partial, self.path)


# --- one try


def _try(
    run: Run, run_id: str, attempts: list[Attempt], stop: Stop, report: Reporter, tracking: Tracking
) -> tuple[str, str]:
    """Trains once; returns "done", or the cause and the words of an error. With this function's end the error
    is gone, and with it the tensors that its traceback holds. attempts: the one, from the first try on."""
    from runs.training.loop import Training

    stop.listens = False
    try:
        stop.check()
        if not attempts:
            attempts.append(Attempt(run.config["output"], run_id))
        now = dataclasses.replace(run, config=run.config | attempts[0].settings)
        train(Training(now, run_id, report, attempts[0], stop), tracking)
        return "done", ""
    except StoppedError:
        return "stopped", ""
    except BaseException as error:
        if not is_users(error) and not finished_record(run.config["output"], run_id):
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
