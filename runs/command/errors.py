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
    """A request to stop, such as SIGTERM before a time limit.

    listens: the run checks for it where its state is complete, between steps and in
    evaluations. Elsewhere, as while it loads or decodes, the request is raised at once:
    what there is to save is on disk."""

    is_wanted: bool = False
    listens: bool = True

    def ask(self, *_: object) -> None:
        """The handler of a signal."""
        self.is_wanted = True
        if not self.listens:
            raise StoppedError

    def check(self) -> None:
        """Raises StoppedError where a stop is wanted."""
        if self.is_wanted:
            raise StoppedError


class DeviceError(UserError):
    """A GPU is here that torch cannot use, or is no longer: another process, or
    machine, may have it."""


#: The errors of users by room and name, since importing tasks and vera would import
#: torch.
_USERS = {("runs", "UserError"), ("tasks", "DataError"), ("vera", "AdapterError")}


def is_users(error: BaseException) -> bool:
    """Whether an error is a user's mistake."""
    for kind in type(error).__mro__:
        room = kind.__module__.partition(".")[0]
        if (room, kind.__name__) in _USERS:
            return True
    return False


def interrupted_words() -> str:
    """The line after Ctrl-C: what is kept, and how to continue. redo=true would repeat
    the finished runs."""
    command = "the same command"
    if "redo=true" in sys.argv[1:]:
        command += " without redo=true"
    return f"interrupted. Finished runs are kept; {command} goes on where it was."


def process_rank() -> int:
    """This process's number among torchrun's; 0 for the first, which prints for all,
    and without torchrun."""
    # Some clusters set RANK alone, for other purposes
    return int(os.environ.get("RANK") or 0) if "LOCAL_RANK" in os.environ else 0


def check_new_file(path: Path) -> None:
    """Raises UserError where a file of out= is there already, or cannot be written."""
    if os.path.lexists(path):
        raise UserError(
            f"{path} is there already. Name another file, out=, or remove it"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder (out=)")
