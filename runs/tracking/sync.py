"""make sync: `wandb sync` for the runs that were written offline."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from runs.errors import UserError
from runs.tracking.account import check_account
from runs.tracking.server import OPEN

#: The most files of one `wandb sync`, so that its command line is not too long.
FILES = 200


def sync(output: str) -> int:
    """Uploads the runs that were written offline, each once. Returns exit code 1 where some are left, which
    the same command tries again. Raises UserError where W&B does not answer."""
    folder = Path(output) / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    waiting = _waiting(files)
    running = [file for file in waiting if _is_locked(file.parent / OPEN)]
    waiting = [file for file in waiting if file not in running]
    also = f", {len(running)} still on" if running else ""
    if not waiting:
        uploaded = len(files) - len(running)
        print(f"no offline runs to upload in {folder} ({uploaded} uploaded before{also})")
        return 0
    try:
        check_account()
    except ValueError as error:
        raise UserError(f"{error}. Nothing was uploaded, and nothing is lost") from None
    # wandb uploads the folders of one run in order
    for first in range(0, len(waiting), FILES):
        _upload(waiting[first : first + FILES], output)
    # A file that a kill cut off stops wandb before the files after it: the others are tried one by one
    for file in _waiting(waiting) if len(waiting) > 1 else []:
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
    # check_account set wandb quiet, but here its progress is of interest
    environment = retries | {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, files)]
    subprocess.run(command, env=environment | {"WANDB_DIR": output}, stdin=subprocess.DEVNULL, check=False)


def _waiting(files: list[Path]) -> list[Path]:
    """The files that are not uploaded, and of whose runs no later file is: a later one has all of a run."""
    uploaded = {file.name: file for file in files if file.with_name(f"{file.name}.synced").exists()}
    return [file for file in files if not (file.name in uploaded and file <= uploaded[file.name])]


def _is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of a run."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not there, or no locks on this file system
        return False
    return False
