"""Runs a command, and writes its CPU seconds and its peak memory as JSON to a file.

python -m benchmarks.child FILE COMMAND ...

Why a process of its own: Linux counts the memory that a parent has when it starts a command
towards the command's peak. This parent is small, since it imports nothing of the project."""

import json
import os
import subprocess
import sys
from pathlib import Path


def main(file: str, command: list[str]) -> int:
    """Runs the command and returns its exit code. file: gets the CPU "seconds" of the
    command and its children, and the peak of its memory in "bytes"."""
    # os.wait4 is used, and not process.wait(), because it returns the resource usage
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    # macOS counts in bytes, Linux in KiB
    unit = 1 if sys.platform == "darwin" else 1024
    measured = {
        "seconds": usage.ru_utime + usage.ru_stime,
        "bytes": usage.ru_maxrss * unit,
    }
    Path(file).write_text(json.dumps(measured))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
