"""Errors that are a user's mistake, whose message is shown in one line; and the request
to stop."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path


class UserError(Exception):
    """A user's mistake. The message says what is wrong, where, and what to do."""


# like KeyboardInterrupt: no handler of errors swallows it
class StoppedError(BaseException):
    """A run was asked to stop, and has saved what it needs to continue."""


@dataclass(slots=True)
class Stop:
    """Whether a run should stop, because of SIGTERM before a time limit, for example.

    is_deferred: a request waits until the run calls `check`, which it does where its
    state is complete: between steps and in evaluations. Where this is false, as while
    the run loads or decodes, a request raises StoppedError at once, since all that can
    be saved is on disk."""

    is_requested: bool = False
    is_deferred: bool = True

    def request(self, *_: object) -> None:
        """Asks the run to stop; a handler of signals."""
        self.is_requested = True
        if not self.is_deferred:
            raise StoppedError

    def check(self) -> None:
        """Raises StoppedError where a stop has been requested."""
        if self.is_requested:
            raise StoppedError


class DeviceError(UserError):
    """A GPU that torch cannot use, or can no longer use. Another process or machine may
    have taken it."""


#: The errors that are a user's mistake, by room and name: importing the classes of tasks
#: and vera would import torch.
_USER_ERRORS = {("runs", "UserError"), ("tasks", "DataError"), ("vera", "AdapterError")}


def is_user_error(error: BaseException) -> bool:
    """Whether an error is a user's mistake: of a class in _USER_ERRORS, or derived from
    one."""
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if (package, kind.__name__) in _USER_ERRORS:
            return True
    return False


def interruption_message() -> str:
    """The line that is shown after Ctrl-C: what is kept, and how to continue."""
    command = "the same command"
    # redo=true would repeat the runs that have finished
    if "redo=true" in sys.argv[1:]:
        command += " without redo=true"
    return f"interrupted. Finished runs are kept; {command} resumes."


def process_rank() -> int:
    """This process's number among those of torchrun; 0 without torchrun. Rank 0 prints
    for all."""
    # Some clusters set RANK without LOCAL_RANK, for other purposes
    if "LOCAL_RANK" not in os.environ:
        return 0
    return int(os.environ.get("RANK") or 0)


def check_new_file(path: Path) -> None:
    """Raises UserError where the file that out= names exists, or has no folder."""
    if os.path.lexists(path):
        raise UserError(
            f"{path} is there already. Name another file, out=, or remove it"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder (out=)")
