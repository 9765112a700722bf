"""Where the project's own files are, and those below an output folder, and how they are read and written:
whole or not at all."""

import contextlib
import errno
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from runs.record.schema import PATHS, Record, check, check_measure
from runs.record.text import printable

#: The folder of the four packages: of a clone, or site-packages.
ROOT = Path(__file__).parents[2]
#: Whether this is an installed wheel. A repository around it is then another project's.
INSTALLED = (ROOT / "runs" / "conf").is_dir()
CONF = ROOT / "runs" / "conf" if INSTALLED else ROOT / "conf"
#: Studies that the project publishes.
PUBLISHED = ROOT / "runs" / "records"


def built_from() -> dict[str, Any]:
    """The commit of an installed wheel's code, and whether files differed from it (dirty); None where it was
    not built from a git checkout."""
    try:
        built: dict[str, Any] = json.loads((ROOT / "runs" / "build.json").read_text(encoding="utf-8"))
    except OSError:
        return {"commit": None, "dirty": None}
    return built


def read_regular(path: str | Path, most: int = 64 * 2**20) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; never blocks. Raises ValueError, naming
    the file, for one that is missing, unreadable or of more than `most` bytes, a folder, a pipe, a device."""
    try:
        if not os.path.isfile(path):  # before it is opened: a pipe would block, a device may do something
            raise ValueError(f"{path}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")
        if os.path.getsize(path) > most:
            raise ValueError(f"{path}: larger than {most:,} bytes")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: no reader sees half of it, whenever this process is killed."""
    with _written(path, text) as partial:
        os.replace(partial, path)


def link_or_fail(path: Path, text: str) -> None:
    """Creates a file whole, or raises FileExistsError where there is one: of many processes that try at once,
    one succeeds."""
    with _written(path, text) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            # A network file system may link the file and still answer that it exists
            if not os.path.samefile(partial, path):
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            with open(path, "x", encoding="utf-8") as file:  # a file system without hard links
                file.write(text)


@contextlib.contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    """A file beside `path` with this text, safely on the disk."""
    with temporary(path) as partial:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a machine that loses power may keep the name and not the text
        yield partial


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A file beside `path`, in its folder, whose name no other process or thread uses. It is removed at the
    end, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def is_dead(name: str) -> bool:
    """Whether HOST.PID.TOKEN names a process of this machine that has ended."""
    host, _, number = name.rpartition(".")[0].rpartition(".")
    try:
        if host == socket.gethostname():
            os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OSError, OverflowError):  # no process has such a number, or it is another user's
        pass
    return False


def sweep_up_dead(folder: Path) -> None:
    """Removes the temporary files in a folder that killed processes of this machine left. Always safe."""
    for partial in folder.glob(".*.*.*.*.*"):
        if is_dead(partial.name.split(".", 3)[3]):  # .NAME.json.HOST.PID.TOKEN
            partial.unlink(missing_ok=True)


def records_folder(output: str | Path) -> Path:
    """Where this machine's own records lie."""
    return Path(output) / "records"


def record_path(output: str | Path, run_id: str) -> Path:
    """The record of a run."""
    return records_folder(output) / f"{run_id}.json"


def run_folder(output: str | Path, run_id: str) -> Path:
    """A run's log, checkpoint, adapter and head."""
    return Path(output) / "runs" / run_id


def record_text(record: Record, check: Callable[[Record], None] = check) -> str:
    """The text of a record's file, hidden characters of labels and errors as `printable` writes them. Raises
    ValueError for a record that could not be read again: of another shape than the schema's, or with NaN or
    infinity, which JSON does not have."""
    text = json.dumps(printable(record), separators=(",", ":"), allow_nan=False) + "\n"
    check(orjson.loads(text))
    return text


def write_record(output: str | Path, record: Record) -> Path:
    """Writes a record to outputs/records, compact and atomically. Raises ValueError as `record_text` does."""
    path = record_path(output, record["id"])
    write_atomically(path, record_text(record))
    return path


def write_measure(folder: str | Path, measure: Record) -> Path:
    """Writes a measure below an output folder or a study. Raises ValueError as `record_text` does."""
    path = Path(folder) / "measures" / f"{measure['id']}.json"
    write_atomically(path, record_text(measure, check_measure))
    return path


def without_paths(record: Record) -> Record:
    """The record with only the last part of each local path: where files lay is private, and proves
    nothing."""
    config = {**record["config"], "output": "outputs"}
    for part in ("model", "task"):
        config[part] = {k: _name(v) if k in PATHS and v else v for k, v in config[part].items()}
    start = record.get("start")
    if start:
        config["init_from"] = Path(config["init_from"] or "").name
        start = {**start, "from": config["init_from"]}
    clean = {"error": hide_paths(record.get("error")), "tries": [*map(hide_paths, record.get("tries", []))]}
    if "overrides" in record:
        clean["overrides"] = [*map(_without_path, record["overrides"])]
    return {**record, "config": config, "start": start, **clean}


def _without_path(override: str) -> str:
    key, _, value = override.partition("=")
    if key.rpartition(".")[2] not in (*PATHS, "init_from"):
        return override
    quote = value[0] if value.startswith(("'", '"')) else ""
    return f"{key}={quote}{_name(value.strip(quote or None))}{quote}"


def _name(where: str) -> str:
    """The last part of a local path; a file on the hub (tasks/forgetting.py) keeps its name."""
    return where if where.startswith("hub:") else Path(where).name


#: A path in an error: an absolute one, or one that begins with . or ~.
_PATH = re.compile(r"(?<![\w/:.~])[.~]*/(?:[^\s/:;,'\"()]+/)*([^\s/:;,'\"()]*)")


def hide_paths(words: str | None) -> str | None:
    """An error with only the last part of each local path."""
    return words and _PATH.sub(r"\1", words)


# --- which runs a sweep has: OUTPUT/sweeps/NAME.json. The folder NAME beside it, of a launcher's logs, can go


def _path(output: str | Path, name: str) -> Path:
    return Path(output) / "sweeps" / f"{name}.json"


def write_sweep(output: str | Path, name: str, ids: Sequence[str]) -> None:
    """Writes the ids of a sweep's runs, in its order."""
    write_atomically(_path(output, name), json.dumps({"name": name, "runs": list(ids)}) + "\n")


def read_sweep(output: str | Path, name: str) -> list[str]:
    """The ids of a sweep's runs. Raises ValueError, naming the file, where it is missing or damaged."""
    path = _path(output, name)
    content = read_regular(path)
    try:
        return [str(one) for one in orjson.loads(content)["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a sweep ({error})") from None


def sweep_names(output: str | Path) -> list[str]:
    """The sweeps of a folder, the newest first."""
    folder = Path(output) / "sweeps"
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    return [path.stem for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns)]
