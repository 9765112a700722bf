"""make sync: `wandb sync` for the runs that were written offline."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from runs.errors import UserError
from runs.tracking.account import check_account
from runs.tracking.server import OPEN

#: What a command line holds.
FILES = 200


def sync(output: str) -> int:
    """Uploads the runs that were written offline, each once. Exit code 1 where some are left; the same
    command tries these again. Raises UserError where W&B cannot be asked."""
    folder = Path(output) / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    waiting = _waiting(files)
    on = [file for file in waiting if _is_on(file.parent / OPEN)]
    waiting = [file for file in waiting if file not in on]
    also = f", {len(on)} still on" if on else ""
    if not waiting:
        uploaded = len(files) - len(on)
        print(f"no offline runs to upload in {folder} ({uploaded} uploaded before{also})")
        return 0
    try:
        check_account()
    except ValueError as error:
        raise UserError(f"{error}. Nothing was uploaded, and nothing is lost") from None
    # wandb keeps the order of a run's own folders.
    for first in range(0, len(waiting), FILES):
        _upload(waiting[first : first + FILES], output)
    # A file that wandb cannot read, as a kill may leave it, stops all that are named beside it.
    alone = _waiting(waiting) if len(waiting) > 1 else []
    for file in alone:
        _upload([file], output)
    left = _waiting(waiting)
    print(f"{len(waiting) - len(left)} uploaded, {len(left)} left{also}")
    if left:
        names = ", ".join(str(file.parent) for file in left[:3]) + (", ..." if len(left) > 3 else "")
        print(
            f"left: {names}. The same command tries again. Where wandb says that a file cannot be read to its"
            " end, a kill has cut it off: what is in it was sent, and its folder can go",
            file=sys.stderr,
        )
    return 1 if left else 0


def _upload(files: list[Path], output: str) -> None:
    retries = {"WANDB__GRAPHQL_RETRY_MAX": "4"}
    # check_account has made this process's environment quiet; here the progress is worth its lines.
    environment = retries | {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, files)]
    subprocess.run(command, env=environment | {"WANDB_DIR": output}, stdin=subprocess.DEVNULL, check=False)


def _waiting(files: list[Path]) -> list[Path]:
    """Those of a run's files that are not uploaded, nor any later one of the same run: that one has all of
    it."""
    uploaded = {file.name: file for file in files if file.with_name(f"{file.name}.synced").exists()}
    return [file for file in files if not (file.name in uploaded and file <= uploaded[file.name])]


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
