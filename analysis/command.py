"""The records as the commands of this room open them."""

import sys

from runs import command
from runs.record import Ledger


def open_ledger(output: str) -> Ledger:
    """The records of a folder, and the published ones. What is odd in them goes to stderr, and that the
    folder has none."""
    ledger = command.open_ledger(output)
    if "ours" not in ledger.origin.values():
        others = ": only what the project has published is shown" if ledger.records else ""
        print(f"note: no records of your own in {output}/records yet{others}", file=sys.stderr)
    return ledger
