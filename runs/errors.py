"""A user's mistake, in one line."""

import os
import sys


class UserError(Exception):
    """The message says what is wrong, where, and how to mend it."""


class DeviceError(UserError):
    """A GPU is here that torch cannot use, or is no longer: another process, or machine, may have it."""


#: What is a user's mistake, by room and name: to import tasks and vera would be to import torch.
_USERS = {("runs", "UserError"), ("tasks", "DataError"), ("vera", "AdapterError")}


def is_users(error: BaseException) -> bool:
    """Whether an error is a user's mistake."""
    return any((kind.__module__.partition(".")[0], kind.__name__) in _USERS for kind in type(error).__mro__)


def interrupted_words() -> str:
    """What becomes of what a command has done so far. redo=true would do that again, too."""
    without = " without redo=true" if "redo=true" in sys.argv[1:] else ""
    return f"interrupted. Finished runs are kept; the same command{without} goes on where it was."


def rank() -> int:
    """Of torchrun's processes, which one this is; 0, the first one, speaks for all."""
    return int(os.environ.get("RANK") or 0)
