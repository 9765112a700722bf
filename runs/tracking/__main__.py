"""Uploads what was written offline to Weights & Biases (make sync).

python -m runs.tracking sync
"""

import json
from dataclasses import dataclass

from runs.command import OfRecords, entry_point, one_of, read
from runs.tracking.server import serve
from runs.tracking.settings import Tracking
from runs.tracking.sync import sync


@dataclass(frozen=True)
class Settings(OfRecords):
    """Where the runs lie."""


def main(arguments: list[str]) -> int:
    if len(arguments) == 4 and arguments[0] == "serve":  # a command's tracker
        return serve(Tracking(**json.loads(arguments[1])), arguments[2], float(arguments[3]))
    line = read(arguments, Settings, "sync")
    one_of("command", line.names[0], ["sync"])
    return sync(line.settings.output)


if __name__ == "__main__":
    entry_point(main)
