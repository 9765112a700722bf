"""Files that are written whole or not at all, and the one file of a folder."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from tasks.base import DataError, listed


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write a file's content to, which becomes `path` at the end, or nothing where that fails: no
    reader sees half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other process or thread uses
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def only_file(folder: Path, *patterns: str, without: str = "") -> Path | None:
    """The file of the first pattern that has one; None without any. Raises DataError where it has several.

    without: the name of a file that does not count."""
    for pattern in patterns:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file() and path.name != without)
        if len(paths) > 1:
            names = listed(path.relative_to(folder) for path in paths)
            raise DataError(f"{folder}: {len(paths)} files where one is expected: {names}")
        if paths:
            return paths[0]
    return None
