"""What commands that read records have in common, in runs/ and in analysis/."""

import sys
from pathlib import Path

from runs.record import Ledger, read_ledger


def open_ledger(output: str | Path, published: bool = True) -> Ledger:
    """The records of a folder and, unless switched off, the published ones; each file that is no record is named on stderr."""
    ledger = read_ledger(output, published)
    for problem in ledger.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return ledger
