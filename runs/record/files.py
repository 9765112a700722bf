"""Where files lie below an output folder, and how they are written: whole or not at all."""

import errno
import json
import os
import socket
import stat
import threading
from pathlib import Path

import orjson

from runs.record.measure import check_measure
from runs.record.schema import Record, check


def cache_folder() -> Path:
    """What can be made anew and is worth keeping between calls, for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vera-bench"


#: A larger file is no record, lease or list of attempts: it is not read.
LARGEST = 64 * 2**20


def read_regular(path: str | Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; never blocks.

    Raises ValueError, naming the file, for a folder, a pipe, a device and the like, for more than `most`
    bytes, and where there is no file or none that may be read."""
    try:
        # Asked before it is opened, since opening a device may do something; and after, since it may have
        # been replaced.
        check_regular(os.stat(path), path)
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            check_regular(found, path)
            if found.st_size > most:
                raise ValueError(f"{path}: larger than {most:,} bytes")
            return os.read(file, found.st_size)
        finally:
            os.close(file)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def check_regular(found: os.stat_result, path: str | Path) -> None:
    """Raises ValueError, naming the file, for what is a folder, a pipe, a device or the like."""
    if not stat.S_ISREG(found.st_mode):
        kinds = {
            stat.S_IFDIR: "a folder",
            stat.S_IFIFO: "a named pipe",
            stat.S_IFCHR: "a device",
            stat.S_IFBLK: "a device",
        }
        raise ValueError(f"{path}: {kinds.get(stat.S_IFMT(found.st_mode), 'a socket')}, and no file")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader, or a kill in between, never meets half of it."""
    partial = _partial(path, text)
    try:
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path, text: str) -> Path:
    """The text on disk, beside the file that it is for, under a name that no other process takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def sweep_up_dead(folder: Path) -> None:
    """Removes the half-written files below a folder whose processes were killed on this machine. Anybody may,
    at any time."""
    for partial in folder.rglob(f".*.{socket.gethostname()}.*"):
        try:
            os.kill(int(partial.name.split(".")[-2]), 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except (ValueError, OSError, OverflowError):  # of a number that no process has
            continue


def link_or_fail(path: Path, text: str) -> None:
    """Creates a file whole, or raises FileExistsError where one of that name is: of many that try at once,
    one succeeds."""
    partial = _partial(path, text)
    try:
        try:
            os.link(partial, path)
        except FileExistsError:
            # A network file system may do it, and answer that it is done already
            if not os.path.samefile(partial, path):
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            with open(path, "x", encoding="utf-8") as file:  # a file system without hard links
                file.write(text)
    finally:
        partial.unlink(missing_ok=True)


def records_folder(output: str | Path) -> Path:
    """Where this machine's own records lie."""
    return Path(output) / "records"


def record_path(output: str | Path, run_id: str) -> Path:
    """The record of a run."""
    return records_folder(output) / f"{run_id}.json"


def measure_path(output: str | Path, measure_id: str) -> Path:
    """The file of a measure."""
    return Path(output) / "measures" / f"{measure_id}.json"


def run_folder(output: str | Path, run_id: str) -> Path:
    """A run's log, checkpoint, adapter and head."""
    return Path(output) / "runs" / run_id


def write_record(output: str | Path, record: Record) -> Path:
    """Writes a record to outputs/records, compact and atomically. Raises ValueError as `record_text` does."""
    path = record_path(output, record["id"])
    write_atomically(path, record_text(record))
    return path


def record_text(record: Record) -> str:
    """A record as it stands in its file. Raises ValueError for one that could not be read again: of another
    shape than the schema's, or with NaN or infinity, which have no place in JSON."""
    text = _compact(record)
    check(orjson.loads(text))
    return text


def measure_text(measure: Record) -> str:
    """A measure as it stands in its file. Raises ValueError as `record_text` does."""
    text = _compact(measure)
    check_measure(orjson.loads(text))
    return text


def _compact(value: Record) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"
