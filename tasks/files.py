"""Files that are written whole or not at all."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


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
