"""One run in its process: it ends with a record, or with what another attempt needs.
torch is imported where it trains."""

import contextlib
import dataclasses
import errno
import json
import os
import time
import traceback
from typing import TYPE_CHECKING, Any, cast

from runs.command.errors import DeviceError, Stop, StoppedError, is_user_error
from runs.record.cell import kept_epoch
from runs.record.configuration import Configuration
from runs.record.files import replacing
from runs.record.ledger import finished_record, run_folder
from runs.record.schema import Record
from runs.record.text import FULL_DISK_ERRORS, describe
from runs.run.definition import Run
from runs.run.provenance import make_provenance
from runs.run.reward_functions import rows_of_step
from runs.tracking.tracker import Tracker, Tracking
from runs.training import predictions
from runs.training.files import Attempt

if TYPE_CHECKING:
    from runs.training.loop import Training

Event = dict[str, Any]
#: How a run's process ended, one of the following, and in words why there is no finished
#: record.
End = tuple[str, str]
#: It has a record.
DONE = "done"
#: It has a failed record, unless it is its command's only run and the error is a
#: user's mistake.
FAILED = "failed"
#: Another process has, or had, the lock.
BUSY = "busy"
#: It was asked to stop, and can be resumed.
STOPPED = "stopped"
#: It was killed, or its device was lost: a new process may succeed.
KILLED = "killed"
#: Memory ran out: the next attempt halves its micro-batch or its evaluation batch.
BATCH_HALVED = "batch halved"
#: The disk is full: the next attempt may succeed after a while.
DISK_FULL = "disk full"
#: Seconds before each new attempt where a disk is full or does not answer. Somebody may
#: free space meanwhile.
DISK_PAUSES_S = (30, 120, 300)
#: The operating system's errors for such a disk.
DISK_ERRORS = (*FULL_DISK_ERRORS, errno.EIO, errno.ESTALE)
#: Seconds between two writings of a run's progress.
PROGRESS_INTERVAL_S = 1.0


def attempt_run(
    run: Run,
    run_id: str,
    failures: list[str],
    stop: Stop,
    tracking: Tracking,
    is_only_run: bool,
) -> End:
    """Attempts a run whose lock this process has.

    Args:
        failures: an entry for each failed attempt: the message of a full disk, or ""
            for a process that was killed or lost its device. An attempt that has saved
            more than those before it starts a new list.
        stop: the request to stop this run.
        is_only_run: whether its command has no other run. A user's mistake then leaves
            no record.

    Returns:
        How the attempt ended, with the message of an error, which is not raised.
    """
    from runs.training.loop import Training

    output = run.config["output"]
    report = Reporter(run, run_id)
    attempt: Attempt | None = None
    if finished_record(output, run_id):  # another process did it before this one began
        return BUSY, ""
    try:
        last_failure = failures[-1] if failures else ""
        attempt = Attempt(output, run_id, last_failure)
        # While the run loads, a request to stop ends it at once; one may have come before.
        stop.is_deferred = False
        stop.check()
        config = cast(Configuration, {**run.config, **attempt.settings})
        attempted_run = dataclasses.replace(run, config=config)
        training = Training(attempted_run, run_id, report, attempt, stop)
        train(training, tracking)
        return DONE, ""
    except BaseException as error:
        stop.is_deferred = True
        # another attempt has finished: this one is late
        if finished_record(output, run_id):
            return DONE, ""
        if not is_user_error(error) and not isinstance(error, StoppedError):
            traceback.print_exc()
        cause, message = cause_of(error)
    ends = {"stopped": STOPPED, "device": KILLED, "disk": end_on_full_disk(failures)}
    end = ends.get(cause, FAILED)
    if attempt is None:  # it could not begin, such as on a full disk
        return end, message
    phase = report.latest["phase"]
    if cause == "memory" and halve_batch(attempted_run.config, phase, attempt):
        end = BATCH_HALVED
    with contextlib.suppress(OSError):  # the disk may be too full for these files
        if end != FAILED:  # a later attempt continues from what this one saved
            if message:
                attempt.ended.append(message)
            attempt.save(stopped=True)
        elif cause != "mistake" or not is_only_run:
            attempt.fail(run, message)
    if end == BATCH_HALVED:
        message += f" ({attempt.deviations[-1]})"
    return end, message


def end_on_full_disk(failures: list[str]) -> str:
    """How a process ends on a full disk: DISK_FULL, after which the run is attempted
    again, or FAILED after as many failures as there are DISK_PAUSES_S."""
    return DISK_FULL if len(failures) < len(DISK_PAUSES_S) else FAILED


class Reporter:
    """Writes a run's events into its progress.json, for whoever watches it.

    Attributes:
        latest: the last value of each key that an event has had.
        written_at: when the file was written last, by time.monotonic.
    """

    def __init__(self, run: Run, run_id: str) -> None:
        self.path = run_folder(run.config["output"], run_id) / "progress.json"
        self.latest = Event(phase="loading")
        self.written_at = 0.0

    def __call__(self, event: Event) -> None:
        # An event has only what has changed. These two belong to the phase that has ended.
        for key in ("done", "of"):
            self.latest.pop(key, None)
        self.latest = self.latest | event
        time_s = time.monotonic()
        is_due = time_s - self.written_at > PROGRESS_INTERVAL_S
        if event["phase"] == "training" and not is_due:
            return
        self.written_at = time_s
        process = {"host": os.uname().nodename, "pid": os.getpid()}
        # a full disk must not end the run for a progress file
        with contextlib.suppress(OSError), replacing(self.path) as partial:
            partial.write_text(json.dumps(self.latest | process))


def train(training: "Training", tracking: Tracking | None = None) -> Record:
    """Does one run, writes its record, and moves the attempt's files into the run's
    folder. If another attempt has finished the run already, its record and files stay,
    and this attempt's are removed.

    tracking: how W&B shows the run; None for not at all. Returns the record of this
    attempt. Raises StoppedError if `training.stop` asks for it."""
    from runs.training.result import build_record

    accelerator = training.accelerator
    provenance = make_provenance(training.code, accelerator.device)
    training.tracker = Tracker(tracking, training.run, training.run_id, provenance)
    try:
        record = build_record(training, training.train_and_decode())
        if record["status"] == "done" and accelerator.is_main_process:
            _illustrate(training)
        training.stop.is_deferred = True  # no stop between the record and its files
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
    if not (training.folder / predictions.FILE_NAME).is_file():
        return
    epoch_name = kept_epoch(training.state.keep, training.task.reported)
    index = training.best_evaluation() if epoch_name == "best" else -1
    epoch = training.state.curve["epoch"][index]
    title = f"{epoch_name} epoch ({epoch:.3g})"
    try:
        predictions.illustrate(training.task, training.folder, title)
    except Exception as error:  # a finished run must not fail for its pictures
        print(
            "the pictures of its predictions were not drawn "
            f"({type(error).__name__}: {error})",
            flush=True,
        )


# --- what an error means


def halve_batch(config: Configuration, phase: str, attempt: Attempt) -> bool:
    """After memory ran out in a phase, halves the micro-batch or the evaluation batch
    for the next attempt. Returns False where that would not help. The effective batch
    stays; another micro-batch changes only rounding, and what dropout draws.

    config: the run's, with the settings that earlier attempts halved. attempt: gets the
    halved setting and a sentence on it."""
    rows = rows_of_step(config)
    # Progress is reported after a step, so the first step of an epoch runs out in the
    # phase "evaluated".
    if phase.startswith(("training", "evaluated", "estimating")):
        key, name = "micro_batch", "micro-batch"
        size = min(config["micro_batch"] or rows, rows)
    elif phase.startswith(("evaluating", "decoding")):
        key, name = "eval_batch", "evaluation batch"
        size = config["eval_batch"]
    else:  # the model alone is too large
        return False
    if size < 2:
        return False
    attempt.settings[key] = size // 2
    # replaces the sentence on an earlier halving
    attempt.deviations = [
        sentence for sentence in attempt.deviations if not sentence.startswith(name)
    ]
    sentence = f"{name} {size // 2}, since memory ran out at {size}"
    if key == "micro_batch":
        sentence += "; the effective batch stays"
    attempt.deviations.append(sentence)
    return True


#: What torch, CUDA's libraries and the driver say when memory runs out. cuBLAS needs
#: some to start.
MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDACachingAllocator",
)
#: What they say when a device fails or is lost: a new process may find it again.
DEVICE_MESSAGES = (
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
    if isinstance(error, StoppedError):
        return "stopped", ""
    message = describe(error)
    if isinstance(error, DeviceError):
        return "device", message
    if is_user_error(error):
        return "mistake", message
    name = type(error).__name__
    if _is_out_of_memory(error) or name == "OutOfMemoryError":
        return "memory", "out of memory"
    if isinstance(error, OSError):
        is_of_disk = error.errno in DISK_ERRORS
        # any other is a file that the user has to see to, such as one without permission
        return "disk" if is_of_disk else "mistake", message
    if name == "AcceleratorError" or _has_message(error, DEVICE_MESSAGES):
        return "device", f"{name}: {message}"
    return "error", f"{name}: {message}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, the operating system or torch has run out of memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return _has_message(error, MEMORY_MESSAGES)


def _has_message(error: BaseException, messages: tuple[str, ...]) -> bool:
    """Whether an error of torch contains one of these messages. torch's own errors are
    RuntimeErrors; errors of other kinds may quote anything."""
    if not isinstance(error, RuntimeError):
        return False
    return any(message in str(error) for message in messages)
