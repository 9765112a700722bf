"""SHA-256 of files. Each is read once; the cache knows a file by its path, size and time of change."""

import contextlib
import hashlib
import json
import re
from functools import cache
from pathlib import Path

from runs.errors import UserError
from runs.record import Record, write_atomically
from tasks.fetch import cache_folder
from tasks.files import stamp

#: Stands for the hash of a file that cannot be read.
MISSING = "missing"


def file_hash(path: Path) -> str:
    """A file's SHA-256, or MISSING; from the user's cache where the file was read before."""
    return _file_hash(str(path.resolve()), *stamp(path))


def check_kept(record: Record, path: Path) -> None:
    """Raises UserError where a file of a run is not the one that its record names. Older records name
    none."""
    wanted = record.get("files", {}).get(path.name)
    if wanted and digest(path) != wanted:
        raise UserError(
            f"{path} is not the file that the record of run {record['id']} names: something has changed it."
            " redo=true makes the run again"
        )


def digest(*paths: Path) -> str:
    """SHA-256 of the current content; of several files, as if they were one. MISSING where one of them is not
    there or is no regular file: whether it is needed is for the task to say."""
    whole = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            return MISSING
        try:
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: whole)
        except OSError:
            return MISSING
    return whole.hexdigest()


@cache
def _file_hash(path: str, size: int, modified: int) -> str:
    name = hashlib.sha256(json.dumps([path, size, modified]).encode()).hexdigest()[:24]
    cached = cache_folder() / "sha256" / name
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", text := cached.read_text()):
            return text
    content = digest(Path(path))
    if content != MISSING:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
            write_atomically(cached, content)
    return content
