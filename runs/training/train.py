"""One run in its process, to its record or to what another try needs. torch is imported
where it trains."""

import contextlib
import dataclasses
import errno
import json
import os
import time
import traceback
from typing import TYPE_CHECKING, Any

from runs.command.errors import DeviceError, Stop, StoppedError, is_users
from runs.record.cell import kept_epoch
from runs.record.ledger import finished_record, run_folder, temporary
from runs.record.schema import Record
from runs.record.text import FULL, describe
from runs.run.definition import Run
from runs.run.provenance import made_with
from runs.run.reward_functions import rows_of_step
from runs.tracking.settings import Tracking
from runs.tracking.tracker import Tracker
from runs.training import predictions
from runs.training.files import Attempt

if TYPE_CHECKING:
    from runs.training.loop import Training

Event = dict[str, Any]
#: How a run's process ended, and why there is no finished record.
End = tuple[str, str]
#: DONE: it has a record; FAILED: and has a failed record, but for a mistake of a single
#: run. BUSY: another process has, or had, the lock. STOPPED: it can go on. KILLED, or
#: its device is lost: a new process may succeed. NO_ROOM on the disk: it may after a
#: while. SMALLER: it will, or be smaller still.
DONE, FAILED, BUSY, STOPPED, KILLED, SMALLER = (
    "done",
    "failed",
    "busy",
    "stopped",
    "killed",
    "smaller",
)
NO_ROOM = "no room"
#: On a full disk, or where it does not answer: seconds before each new try. Somebody
#: may make room meanwhile.
ROOM = (30, 120, 300)
DISK = (*FULL, errno.EIO, errno.ESTALE)
#: Seconds between two writings of a run's progress.
EVERY = 1.0


def do(
    run: Run, run_id: str, tries: list[str], stop: Stop, tracking: Tracking, alone: bool
) -> End:
    """Tries to do a run whose lock this process has. tries: those that have failed
    since it has saved more: the error of a full disk, "" of another end. alone: a
    user's mistake leaves no record."""
    from runs.training.loop import Training

    output, report = run.config["output"], Reporter(run, run_id)
    attempt: Attempt | None = None
    if finished_record(output, run_id):
        return BUSY, ""
    try:
        attempt, stop.listens = Attempt(output, run_id, *tries[-1:]), False
        stop.check()
        now = dataclasses.replace(run, config=run.config | attempt.settings)
        train(Training(now, run_id, report, attempt, stop), tracking)
        return DONE, ""
    except BaseException as error:
        stop.listens = True
        if finished_record(output, run_id):  # of another attempt: this one is late
            return DONE, ""
        if not is_users(error) and not isinstance(error, StoppedError):
            traceback.print_exc()
        cause, words = cause_of(error)
    end = {"stopped": STOPPED, "device": KILLED, "disk": no_room(tries)}.get(
        cause, FAILED
    )
    if (
        cause == "memory"
        and attempt
        and less_memory(now.config, report.latest["phase"], attempt)
    ):
        end = SMALLER
    with contextlib.suppress(OSError):  # there may be no room for that
        if attempt and end != FAILED:
            attempt.ended += [words] if words else []
            attempt.save(stopped=True)
        elif attempt and (cause != "mistake" or not alone):
            attempt.fail(run, words)
    return (
        end,
        f"{words} ({attempt.deviations[-1]})" if attempt and end == SMALLER else words,
    )


def no_room(tries: list[str]) -> str:
    """How a process ends on a full disk, after these tries."""
    return NO_ROOM if len(tries) < len(ROOM) else FAILED


class Reporter:
    """Writes a run's events into its progress.json, for whoever looks on. latest: the
    last one."""

    def __init__(self, run: Run, run_id: str) -> None:
        self.path = run_folder(run.config["output"], run_id) / "progress.json"
        self.latest, self.written = Event(phase="loading"), 0.0

    def __call__(self, event: Event) -> None:
        of_now, now = ("done", "of"), time.monotonic()
        self.latest = {
            key: value for key, value in self.latest.items() if key not in of_now
        } | event
        if event["phase"] != "training" or now - self.written > EVERY:
            self.written, process = (
                now,
                {"host": os.uname().nodename, "pid": os.getpid()},
            )
            # A full disk must not stop the run here
            with contextlib.suppress(OSError), temporary(self.path) as partial:
                partial.write_text(json.dumps(self.latest | process))
                os.replace(partial, self.path)


def train(training: "Training", tracking: Tracking | None = None) -> Record:
    """Does one run, writes its record, and moves the attempt's files into the run's
    folder. Where another attempt has finished the run before, its record and files
    stay, and this one's are removed. tracking: whether W&B shows the run. Raises
    StoppedError where `training.stop` asks for it."""
    from runs.training.result import build_record

    accelerator = training.accelerator
    made = made_with(training.code, accelerator.device)
    training.tracker = Tracker(tracking, training.run, training.run_id, made)
    try:
        record = build_record(training, training.go())
        if record["status"] == "done" and accelerator.is_main_process:
            _illustrate(training)
        training.stop.listens = True  # the record is written whole
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
    """Draws the predictions that the run keeps, where its model has a head."""
    if not (training.folder / predictions.NAME).is_file():
        return
    which, epochs = (
        kept_epoch(training.state.keep, training.task.reported),
        training.state.curve["epoch"],
    )
    epoch = epochs[training.best() if which == "best" else -1]
    try:
        predictions.illustrate(
            training.task, training.folder, f"{which} epoch ({epoch:.3g})"
        )
    except Exception as error:  # a run is worth more than its pictures
        print(
            f"the pictures of its predictions were not drawn ({type(error).__name__}: {error})",
            flush=True,
        )


# --- what an error means


def less_memory(config: dict[str, Any], phase: str, attempt: Attempt) -> bool:
    """Halves what an attempt computes at once in a phase, after memory ran out; False
    where that would not help. The effective batch stays: a micro-batch changes
    rounding, and what dropout draws."""
    whole = rows_of_step(config)
    # an epoch's first step tells of itself when it is done
    if phase.startswith(("training", "evaluated", "estimating")):
        key, name, kept = "micro_batch", "micro-batch", "; the effective batch stays"
        before = min(config["micro_batch"] or whole, whole)
    elif phase.startswith(("evaluating", "decoding")):
        key, name, kept, before = (
            "eval_batch",
            "evaluation batch",
            "",
            config["eval_batch"],
        )
    else:  # the model alone is too large
        return False
    if before < 2:
        return False
    attempt.settings[key] = before // 2
    attempt.deviations = [
        words for words in attempt.deviations if not words.startswith(name)
    ]
    attempt.deviations.append(
        f"{name} {before // 2}, since memory ran out at {before}{kept}"
    )
    return True


#: What torch, CUDA's libraries and the driver say where memory ends; cuBLAS cannot
#: start without some.
MEMORY = (
    *(
        "out of memory",
        "can't allocate memory",
        "ALLOC_FAILED",
        "CUBLAS_STATUS_NOT_INITIALIZED",
    ),
    "CUDACachingAllocator",
)
#: What they say of a device that fails, or is lost: a new process may find it again.
DEVICE = (
    "CUDA",
    "CUDNN",
    "cuDNN error",
    "CUBLAS",
    "NCCL",
    "Error 802",
    "unable to find an engine",
)


def cause_of(error: BaseException) -> tuple[str, str]:
    """The cause of an error (stopped, mistake, memory, disk, device or error), and the
    error in one line."""
    words, name = describe(error), type(error).__name__
    # torch's own errors are such, too
    said = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, StoppedError):
        return "stopped", ""
    if isinstance(error, DeviceError):
        return "device", words
    if is_users(error):
        return "mistake", words
    no_memory = (
        isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    )
    if no_memory or name == "OutOfMemoryError" or any(word in said for word in MEMORY):
        return "memory", "out of memory"
    if isinstance(error, OSError):
        return ("disk" if error.errno in DISK else "mistake"), words
    if name == "AcceleratorError" or any(word in said for word in DEVICE):
        return "device", f"{name}: {words}"
    return "error", f"{name}: {words}"
