"""Rows that were made of records, kept in the user's cache: a table reads again only
the records that have changed since the last one.

A folder of records, or a study's file, has a folder in the cache. Each of its files has
some rows, and is written whole or not at all. Rows depend on the code that makes them,
so another version of it has folders of its own. A file that is damaged, and a row whose
record has changed, count for nothing.

A file has {"values": [...], "rows": [...]}: each different value once, as a text of
JSON, and rows in which a whole number stands for the value of that place. A fraction
stands for itself."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from runs.record.files import write_atomically
from runs.record.schema import Record

#: Fewer new rows than this are made again sooner than a file of them is read.
FEWEST_ROWS = 100
#: The most rows of a file: so many are in memory twice while it is read.
MOST_ROWS = 2_000
#: A record that was written within so many seconds may change again within one tick of
#: its file system's clock. Its row is made again.
SETTLED_S = 2.0
#: Rows of other code, or of a folder that has gone, are removed after so many seconds.
MONTH_S = 30 * 24 * 3600.0
#: Stands for a tuple in the JSON of a value. No record has a key without a name.
TUPLE = ""


class RecordText(NamedTuple):
    """The text of one record: a file or, where line is not 0, a line of a file that
    starts at this byte."""

    path: str
    line: int = 0
    start: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.path} line {self.line}" if self.line else self.path


class MakesRows(Protocol):
    """Makes a row from a record: a tuple of numbers, texts, and lists and mappings of
    them, which has the run's id as `id`.

    code: the hash of all code that a row depends on."""

    @property
    def code(self) -> str: ...

    def __call__(self, record: Record) -> Any: ...

    def restore(self, values: Iterable[Any]) -> Any:
        """The row with these values."""
        ...


#: When a file was last changed, and its size and place on the disk.
Stamp = tuple[int, int, int]


class KeptRows:
    """The kept rows of a folder of records, or of a study's file."""

    def __init__(self, place: Path, make_row: MakesRows) -> None:
        self.place = place
        self.make_row = make_row
        key = f"{make_row.code} {place.absolute()}"
        self.folder = (
            rows_cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:24]
        )
        self._settled_ns = (time.time() - SETTLED_S) * 1e9
        self._is_study = place.suffix == ".jsonl"
        self._stamp_of_study = _stamp_of(place) if self._is_study else None
        self._used_count = 0
        # rows that are not kept yet, and the stamps of their records
        self._new_rows = list[tuple[RecordText, Any]]()
        self._stamps = dict[RecordText, Stamp | None]()
        self._kept = self._read_files()

    def parts(self) -> dict[RecordText, bytes]:
        """The parts of a study's file, without their lines; empty unless the file is
        unchanged since all its rows were kept, and for a folder."""
        if not self._is_study:
            return {}
        current = self._stamp_of_study
        return {part: b"" for part, stamp in self._kept if stamp == current}

    def get(self, part: RecordText) -> Any:
        """The row of a record; None where its file has changed, or has none yet."""
        stamp = self._stamp_of_study if self._is_study else _stamp_of(part.path)
        if stamp and (part, stamp) in self._kept:
            self._used_count += 1
            return self._kept[part, stamp]
        self._stamps[part] = stamp
        return None

    def add(self, part: RecordText, row: Any) -> None:
        """Keeps a row, whose record was read after `get` was asked for it."""
        self._new_rows.append((part, row))

    def save(self) -> None:
        """Writes the new rows. A cache that cannot be written costs time, no more."""
        lines = list[list[Any]]()
        rows = list[Any]()
        for part, row in self._new_rows:
            stamp = self._stamps[part]
            if stamp and stamp[0] < self._settled_ns:
                name = "" if self._is_study else os.path.basename(part.path)
                lines.append([[name, *part[1:]], stamp])
                rows.append(row)
        if len(rows) < FEWEST_ROWS:
            return
        with contextlib.suppress(OSError):
            # rows of a study's file as it was, or of records that have changed
            if len(self._kept) > 2 * self._used_count:
                shutil.rmtree(self.folder, ignore_errors=True)
            for first in range(0, len(rows), MOST_ROWS):
                chosen = slice(first, first + MOST_ROWS)
                text = encode_rows(lines[chosen], rows[chosen])
                write_atomically(self.folder / f"{_hash_of(text)}.json", text)
            remove_unused(self.folder.parent)

    def _read_files(self) -> dict[tuple[RecordText, Stamp], Any]:
        """The rows by record and stamp: a changed record has an older row, too."""
        values = dict[str, Any]()
        rows = dict[tuple[RecordText, Stamp], Any]()
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                text = path.read_text(encoding="utf-8")
                if path.stem != _hash_of(text):
                    continue
                for (name, *span), (changed_ns, size, inode), row in decode_rows(
                    text, values
                ):
                    place = os.path.join(self.place, name) if name else str(self.place)
                    stamp = changed_ns, size, inode
                    rows[RecordText(place, *span), stamp] = self.make_row.restore(row)
        return rows


def rows_cache_folder() -> Path:
    """The folder of kept rows in the user's cache (`tasks.fetch.cache_folder`, which
    readers of records do not import)."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "vera-bench" / "rows"


def remove_unused(cache: Path) -> None:
    """Removes the folders of a cache to which nothing was added for MONTH_S."""
    for folder in cache.iterdir():
        if time.time() - folder.stat().st_mtime > MONTH_S:
            shutil.rmtree(folder, ignore_errors=True)


def _stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _hash_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


# --- rows as JSON


def encode_rows(lines: list[list[Any]], rows: list[Any]) -> str:
    """The text of a file of rows. A row is a list of numbers: each float stands for
    itself, and any other value for its index in the list of values, which are written
    once. lines: what the file has before each row, its part and stamp."""
    index_by_key = dict[Any, int]()
    values = list[str]()
    encoded = list[list[Any]]()
    for line, row in zip(lines, rows, strict=True):
        numbers = list[Any]()
        for value in row:
            if type(value) is float and value == value:
                numbers.append(value)
                continue
            key = _key_of(value)
            if key not in index_by_key:
                index_by_key[key] = len(values)
                values.append(_as_json(value))
            numbers.append(index_by_key[key])
        encoded.append([*line, numbers])
    return json.dumps({"values": values, "rows": encoded}, separators=(",", ":"))


def _key_of(value: Any) -> Any:
    """A key that is the same for equal values of one type. The maker of rows gives
    equal mappings as one object, so a mapping's address is enough."""
    if isinstance(value, str):
        return value
    return type(value), id(value) if isinstance(value, dict) else repr(value)


def _as_json(value: Any) -> str:
    return json.dumps({TUPLE: value} if isinstance(value, tuple) else value)


def decode_rows(
    text: str, shared_values: dict[str, Any]
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """What `encode_rows` was given: part, stamp and row, one after another.
    shared_values: the values of other files by their texts, so that equal ones are in
    memory once; new values are added."""
    content = json.loads(text)
    values = list[Any]()
    for value_text in content["values"]:
        if value_text not in shared_values:
            shared_values[value_text] = _from_json(value_text)
        values.append(shared_values[value_text])
    for part, stamp, numbers in content["rows"]:
        row = [values[number] if type(number) is int else number for number in numbers]
        yield part, stamp, row


def _from_json(text: str) -> Any:
    value = json.loads(text)
    if isinstance(value, dict) and [*value] == [TUPLE]:
        return tuple(value[TUPLE])
    return value


def parts_of(place: Path) -> dict[RecordText, bytes]:
    """The parts of a folder of records, by name, or of a study's file, with their
    lines."""
    if place.suffix == ".jsonl":
        return _lines_of(place) if place.is_file() else {}
    names = sorted(os.listdir(place)) if place.is_dir() else []
    names = [name for name in names if name.endswith(".json") and name[0] != "."]
    return {RecordText(f"{place}/{name}"): b"" for name in names}


def _lines_of(place: Path) -> dict[RecordText, bytes]:
    lines = place.read_bytes().splitlines(keepends=True)
    starts = itertools.accumulate(map(len, lines), initial=0)
    parts = dict[RecordText, bytes]()
    for number, (start, line) in enumerate(zip(starts, lines, strict=False), 1):
        text = line.rstrip(b"\r\n")
        if text:
            parts[RecordText(str(place), number, start, len(text))] = text
    return parts
