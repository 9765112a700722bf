"""Weights & Biases.

python -m runs.tracking sync [output=outputs]      uploads what was written offline (make sync)
"""

import json

from runs.command import entry_point
from runs.tracking.server import serve
from runs.tracking.settings import Tracking
from runs.tracking.sync import sync


def main(arguments: list[str]) -> int:
    if len(arguments) == 4 and arguments[0] == "serve":  # a command's tracker
        return serve(Tracking(**json.loads(arguments[1])), arguments[2], float(arguments[3]))
    words = [word for word in arguments[1:] if not word.startswith("output=")]
    if not arguments or arguments[0] != "sync" or words or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    return sync(next((word.partition("=")[2] for word in arguments if word.startswith("output=")), "outputs"))


if __name__ == "__main__":
    entry_point(main)
