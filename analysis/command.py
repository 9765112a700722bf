"""What the commands of this folder have in common."""

import argparse
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """python -m analysis.COMMAND with --output, which may be written output= as for python -m runs."""

    def __init__(self, command: str, description: str | None, output: str = "the folder that holds records/") -> None:
        shape = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"python -m analysis.{command}", description=description, formatter_class=shape)
        self.add_argument("--output", default="outputs", help=output)

    def read(self, arguments: Sequence[str]) -> Any:
        """parse_args, after output= has become --output=."""
        return self.parse_args([f"--{word}" if word.startswith("output=") else word for word in arguments])
