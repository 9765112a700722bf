"""make sync: uploads what was written offline."""

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

from runs.errors import UserError
from runs.tracking.account import base_url, logged_in, unreachable
from runs.tracking.server import OPEN


def sync(output: str) -> int:
    """Uploads the runs that were written offline, each once. Exit code 1 where some are left; the same
    command goes on."""
    folder = Path(output) / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    waiting = [file for file in files if not _synced(file)]
    on = [file for file in waiting if _is_on(file.parent / OPEN)]
    damaged = [file for file in waiting if file not in on and not _whole(file)]
    waiting = [file for file in waiting if file not in (*on, *damaged)]
    also = f", {len(on)} still on" if on else ""
    also += f", {len(damaged)} cut off by a kill and left out" if damaged else ""
    if not waiting:
        print(
            f"no offline runs to upload in {folder} ({len(files) - len(on) - len(damaged)} uploaded"
            f" before{also})"
        )
        return 0
    if not logged_in():
        raise UserError(
            f"not logged in to {base_url()}. Run `wandb login`, or set WANDB_API_KEY. Nothing was uploaded."
        )
    if why := unreachable():
        raise UserError(f"{base_url()} cannot be reached ({why}). Nothing was uploaded, and nothing is lost")
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    environment = (
        {"WANDB_ERROR_REPORTING": "false", "WANDB__GRAPHQL_RETRY_MAX": "4"}
        | environment
        | {"WANDB_DIR": output}
    )
    # What a command line holds; wandb keeps the order of a run's own folders
    for first in range(0, len(waiting), 200):
        part = waiting[first : first + 200]
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", *map(str, part)],
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    left = [file for file in waiting if not _synced(file)]
    again = "; the same command tries again" if left else ""
    print(f"{len(waiting) - len(left)} uploaded, {len(left)} left{also}{again}")
    return 1 if left else 0


def _synced(file: Path) -> bool:
    return file.with_name(f"{file.name}.synced").exists()


def _whole(file: Path) -> bool:
    """Whether a run's file (LevelDB's log format) ends where a message ends: one that does not stops wandb
    from uploading any that is named beside it."""
    data, place, kind = file.read_bytes(), 7, 0
    while place < len(data):
        room = 32768 - place % 32768  # a header of 7 bytes never crosses a block's end
        if room < 7:
            place += room
            continue
        if place + 7 > len(data):
            return False
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind not in (1, 2, 3, 4):  # a whole message, or its first, middle or last part
            return False
        place += 7 + length
    return data[:4] == b":W&B" and place == len(data) and kind in (1, 4)


def _is_on(path: Path) -> bool:
    """Whether a living process holds the lock of a run."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not there, or no locks on this file system
        return False
    return False
