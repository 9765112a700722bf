"""What the commands of this folder have in common: --output, the records, and errors in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from runs import command
from runs.record import Ledger
from runs.record.text import describe


class Parser(argparse.ArgumentParser):
    """python -m analysis.COMMAND with --output, which may be written output= as for python -m runs."""

    def __init__(
        self, command: str, description: str | None, output: str = "the folder that holds records/"
    ) -> None:
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m analysis.{command}", description=description, formatter_class=shape)
        self.add_argument("--output", default="outputs", help=output)

    def read(self, arguments: Sequence[str]) -> Any:
        """parse_args, after output= has become --output=."""
        return self.parse_args([f"--{word}" if word.startswith("output=") else word for word in arguments])

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def open_ledger(output: str) -> Ledger:
    """The records of a folder, and the published ones. What is odd in them goes to stderr, and that the
    folder has none."""
    ledger = command.open_ledger(output)
    if "ours" not in ledger.origin.values():
        others = ": only what the project has published is shown" if ledger.records else ""
        print(f"note: no records of your own in {output}/records yet{others}", file=sys.stderr)
    return ledger


def entry_point(main: Callable[[list[str]], int]) -> None:
    """Runs a command: exit 2 and one line where a file cannot be read or written."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough: head
        # Or Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        code = 2
    sys.exit(code)
