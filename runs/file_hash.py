"""SHA-256 of files, each read once: what was read is known again by its path, size and time."""

import contextlib
import hashlib
import json
import re
from functools import cache
from pathlib import Path

from runs.record import cache_folder, write_atomically

#: In the place of a hash, for a file that cannot be read.
MISSING = "missing"


def file_hash(path: Path) -> str:
    """A file's SHA-256, or MISSING; from the cache of this machine where the file was read before."""
    return _file_hash(str(path.resolve()), *stamp(path))


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and time of change."""
    try:
        stat = path.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def digest(*paths: Path) -> str:
    """SHA-256, read now; of several files, as if they were one. What a list names and is not there is
    MISSING: the task says whether it can do without. So is a pipe or a device, which would be read for
    ever."""
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
    kept = cache_folder() / "sha256" / name
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", known := kept.read_text()):
            return known
    found = digest(Path(path))
    if found != MISSING:
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, no more
            write_atomically(kept, found)
    return found
