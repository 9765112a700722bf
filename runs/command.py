"""What commands that read records have in common, in runs/ and in analysis/."""

import gc
import sys
from collections.abc import Collection
from pathlib import Path

from runs.record import Ledger, read_ledger


def open_ledger(output: str | Path, published: bool = True, wanted: Collection[str] | None = None) -> Ledger:
    """`read_ledger`; each file that is no record is named on stderr."""
    ledger = read_ledger(output, published, wanted)
    gc.freeze()  # records stay until a command's end: no use to look for garbage in them
    for problem in ledger.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return ledger
