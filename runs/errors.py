"""A user's mistake, in one line; and how every command of this room ends on one."""

import gc
import sys
from collections.abc import Callable

from runs.record.text import describe
from tasks import DataError


class UserError(Exception):
    """The message says what is wrong, where, and how to mend it."""


def entry_point(main: Callable[[list[str]], int]) -> None:
    """Runs a command: exit 2 and one line for a user's mistake or a full disk, 130 for Ctrl-C.

    With debug=true among the arguments, errors keep their traceback.
    """
    gc.freeze()  # what was imported stays: to look for garbage in it takes longer than to compose a run
    arguments = sys.argv[1:]
    if "debug=true" in arguments:
        sys.exit(main(arguments))
    try:
        sys.exit(main(arguments))
    except KeyboardInterrupt:
        print(f"\n{interrupted_words()}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if not is_users(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def interrupted_words() -> str:
    """What becomes of what a command has done so far. redo=true would do that again, too."""
    without = " without redo=true" if "redo=true" in sys.argv[1:] else ""
    return f"interrupted. Finished runs are kept; the same command{without} goes on where it was."


def is_users(error: BaseException) -> bool:
    """Whether an error is a user's mistake. AdapterError is known by its name: to import it would be to
    import torch."""
    return isinstance(error, UserError | DataError) or type(error).__name__ == "AdapterError"
