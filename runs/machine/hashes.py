"""SHA-256 of files, and the cache of the user in which these and other values are
kept, so that a file is read once."""

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
#: The kinds of values in the cache, each in a folder of this name, and a pattern that the
#: JSON of a sound one matches.
VALUE_PATTERNS = {
    # of a file, or of many together
    "sha256": r'"[0-9a-f]{64}"',
    # of a forward and of a training pass (runs.run.methods.count_flops)
    "flops": r"null|\[[\d.e+]+, [\d.e+]+\]",
    # how many a model has
    "weights": r"\d+",
    # why a method does not fit a model (runs.run.methods.method_problem)
    "refusals": r'null|".*"',
    # the runs that a command line composes (runs.config.expand)
    "commands": r'\{"launch": .*, "runs": \[.*\]\}',
}
#: Seconds after which a composed command is removed from the cache.
COMMAND_LIFETIME_S = 30 * 24 * 3600.0
#: The values that this process has read or computed, by their files in the cache. It may
#: be unable to write those.
PROCESS_CACHE: dict[Path, Any] = {}


def cached_value(kind: str, key: Any, compute: Callable[[], Any]) -> Any:
    """The value that `compute` returns, as JSON has it; from the user's cache where it
    was computed before. A value that does not match its kind's pattern, such as
    MISSING, is not kept. Without a cache that can be written it only takes longer.

    kind: a key of VALUE_PATTERNS. key: what the value depends on, as JSON has it."""
    path = cache_folder() / kind / f"{hash_of(key)[:24]}.json"
    if path in PROCESS_CACHE:
        return PROCESS_CACHE[path]
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text()
        if re.fullmatch(VALUE_PATTERNS[kind], text):
            return PROCESS_CACHE.setdefault(path, json.loads(text))
    value = compute()
    text = json.dumps(value)
    if not re.fullmatch(VALUE_PATTERNS[kind], text):
        return value
    with contextlib.suppress(OSError):
        write_atomically(path, text)
        _remove_old_commands(path.parent)
    return PROCESS_CACHE.setdefault(path, json.loads(text))


def _remove_old_commands(folder: Path) -> None:
    """If this is the cache's folder of composed commands, removes those that are older
    than COMMAND_LIFETIME_S: nothing reads them after a change of conf/."""
    if folder.name == "commands":
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > COMMAND_LIFETIME_S:
                path.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """A file's SHA-256, or MISSING. It is cached under the file's path, size and time of
    change."""
    key = [str(path.resolve()), *stamp(path)]
    return str(cached_value("sha256", key, lambda: files_sha256(path)))


def check_unchanged(record: Record, path: Path) -> None:
    """Raises UserError where a run's file has another hash than in its record. Older
    records have no hashes."""
    recorded_hash = record.get("files", {}).get(path.name)
    if recorded_hash and files_sha256(path) != recorded_hash:
        raise UserError(
            f"{path} is not the file that the record of run {record['id']} names: "
            "something has changed it. redo=true makes the run again"
        )


def files_sha256(*paths: Path) -> str:
    """One SHA-256 of the current content of a file, or of several one after another.
    MISSING where one of them is not there or is no regular file: the task decides
    whether it needs it."""
    content = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            return MISSING
        try:
            with open(path, "rb") as file:
                hashlib.file_digest(file, lambda: content)  # adds the file to it
        except OSError:
            return MISSING
    return content.hexdigest()
