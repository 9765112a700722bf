"""How files are written: whole or not at all, so that no reader sees half of one, even
if this process is killed. And how YAML is read.

vera and tasks have a writer each, because neither may import from runs."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

#: libyaml's loader is eight times as fast. A PyYAML that was built without libyaml has
#: only the other.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
#: The errors of file systems that have no hard links, or no more of them for a file.
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` to write to. At the end of the with block that
    file takes the place of `path`; if the block raises an error, it is removed."""
    with _temporary(path) as partial:
        yield partial
        os.replace(partial, path)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    with replacing(path) as partial:
        _write_safely(partial, text)


def link_or_fail(path: Path, text: str) -> None:
    """Creates a file whole, or raises FileExistsError: of many processes that try at
    once, one succeeds. A hard link does both; a rename would replace the file."""
    with _temporary(path) as partial:
        _write_safely(partial, text)
        try:
            os.link(partial, path)
        except FileExistsError:
            # A network file system may link the file and still answer that it exists
            if not os.path.samefile(partial, path):
                raise
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            # Without hard links "x" also refuses a file that exists, but does not write
            # it whole: a reader may see a part of the text
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)


def _write_safely(path: Path, text: str) -> None:
    """Writes a text and waits until it is on the disk: a machine that loses power might
    otherwise keep the file's name and not its text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` whose name no other process or thread uses. At the end a
    file there is removed, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    )
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
