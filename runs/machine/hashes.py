"""SHA-256 of files, each read once, and what else is kept in the user's cache."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.record.cell import hash_of
from runs.record.files import write_atomically
from runs.record.schema import Record
from tasks.fetch import cache_folder
from tasks.files import stamp

#: Stands for the hash of a file that cannot be read.
MISSING = "missing"
#: What the cache keeps, and how the JSON of a sound value looks.
KEPT = {
    "sha256": r'"[0-9a-f]{64}"',
    "flops": r"null|\[[\d.e+]+, [\d.e+]+\]",
    "weights": r"\d+",
    "refusals": r'null|".*"',
    "commands": r'\{"launch": .*, "runs": \[.*\]\}',
}
#: Seconds after which a composed command is removed from the cache.
MONTH = 30 * 24 * 3600.0
#: What this process has found or made, by the cache's files: it may be unable to write
#: them.
FOUND: dict[Path, Any] = {}


def kept_in_cache(kind: str, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` gives, a value of JSON; from the user's cache where it was made
    before. One that is not of its kind, such as MISSING, is not kept. A cache that
    cannot be written costs time, no more."""
    path = cache_folder() / kind / f"{hash_of(key)[:24]}.json"
    if path in FOUND:
        return FOUND[path]
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text()
        if re.fullmatch(KEPT[kind], text):
            return FOUND.setdefault(path, json.loads(text))
    value = make()
    text = json.dumps(value)
    if not re.fullmatch(KEPT[kind], text):
        return value
    with contextlib.suppress(OSError):
        write_atomically(path, text)
        _remove_unused(path.parent)
    return FOUND.setdefault(path, json.loads(text))


def _remove_unused(folder: Path) -> None:
    """Removes the composed commands that are older than MONTH: each change of conf/
    leaves them without a reader."""
    if folder.name == "commands":
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > MONTH:
                path.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """A file's SHA-256, or MISSING; from the cache, which knows files by path, size and
    time of change."""
    key = [str(path.resolve()), *stamp(path)]
    return str(kept_in_cache("sha256", key, lambda: files_sha256(path)))


def check_kept(record: Record, path: Path) -> None:
    """Raises UserError where a run's file is not the one that its record names. Older
    records name none."""
    recorded_hash = record.get("files", {}).get(path.name)
    if recorded_hash and files_sha256(path) != recorded_hash:
        raise UserError(
            f"{path} is not the file that the record of run {record['id']} names: "
            "something has changed it. redo=true makes the run again"
        )


def files_sha256(*paths: Path) -> str:
    """SHA-256 of the current content; of several files, as if they were one. MISSING
    where one of them is not there or is no regular file: whether it is needed is for
    the task to say."""
    content = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            return MISSING
        try:
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: content)
        except OSError:
            return MISSING
    return content.hexdigest()
