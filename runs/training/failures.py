"""What an error of a run means, and what another try does otherwise."""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runs.errors import DeviceError, StoppedError, is_users
from runs.record.text import FULL, describe
from runs.training.files import HALVED, Attempt

#: On a full disk, or where it does not answer: seconds before each new try. Somebody may make room meanwhile.
ROOM = (30, 60, 120, 240)
DISK = (*FULL, errno.EIO, errno.ESTALE)


@dataclass
class Stop:
    """A request to stop, such as SIGTERM before a time limit.

    listens: the run checks for it between steps and during evaluation. At other times its process may end at
    once: there is nothing to save yet, or decoded texts are on disk.
    """

    wanted: bool = False
    listens: bool = False

    def check(self) -> None:
        """Raises StoppedError where a stop is wanted."""
        if self.wanted:
            raise StoppedError


def with_less_memory(config: dict[str, Any], phase: str) -> tuple[str, int, int] | None:
    """The setting to halve after memory ran out, with its value before and after; None where that would not
    help.

    The effective batch stays: a micro-batch changes the gradient by rounding, and what dropout draws.
    """
    if phase.startswith(("training", "evaluated")):  # an epoch's first step tells of itself when it is done
        whole = config["train"]["effective_batch"]
        key, before = "micro_batch", min(config["micro_batch"] or whole, whole)
    elif phase.startswith(("evaluating", "decoding")):
        key, before = "eval_batch", config["eval_batch"]
    else:
        return None
    return (key, before, before // 2) if before > 1 else None


def less_memory(config: dict[str, Any], phase: str, attempt: Attempt) -> bool:
    """Halves what an attempt computes at once, after memory ran out; False where that would not help."""
    if (smaller := with_less_memory(config, phase)) is None:
        return False
    key, before, after = smaller
    name, kept = HALVED[key], "; the effective batch stays" if key == "micro_batch" else ""
    attempt.settings[key] = after
    attempt.deviations = [words for words in attempt.deviations if not words.startswith(name)]
    attempt.deviations.append(f"{name} {after}, since memory ran out at {before}{kept}")
    return True


def with_room(write: Callable[[], Any], stop: Stop) -> Any:
    """Writes something; on a full disk it tries again after pauses."""
    for pause in ROOM:
        try:
            return write()
        except OSError as error:
            if error.errno not in DISK or stop.wanted:
                raise
            wait_for_room(pause, stop)
    return write()


def wait_for_room(seconds: float, stop: Stop) -> None:
    """Waits, unless a stop is wanted."""
    end = time.monotonic() + seconds
    while not stop.wanted and time.monotonic() < end:
        time.sleep(0.1)


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
        return ("disk" if error.errno in DISK else "mistake"), words
    if name == "AcceleratorError" or (from_torch and any(word in str(error) for word in DEVICE)):
        return "device", f"{name}: {words}"
    return "error", f"{name}: {words}"
