"""Rows that were made of records, kept in the user's cache: a table reads again only
the records that have changed since the last one.

A folder of records, or a study's file, has a folder in the cache. Each of its files has
some rows, and is written whole or not at all. Rows depend on the code that makes them,
so another version of it has folders of its own. A file that is damaged, and a row whose
record has changed, are ignored.

A file has {"values": [...], "rows": [...]}: each different value once, as a text of
JSON, and rows in which a whole number stands for the value at that index. A float
stands for itself."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from runs.record.files import write_atomically
from runs.record.schema import Record

#: Fewer new rows than this are not kept: making them again is faster than reading them.
FEWEST_ROWS = 100
#: The most rows of a file. While a file is read, its rows are in memory twice.
MOST_ROWS = 2_000
#: The row of a record that is younger than so many seconds is not kept. The record might
#: change again within one tick of its file system's clock, and then have the same stamp.
SETTLED_S = 2.0
#: Rows of other code, or of a folder that has gone, are removed after so many seconds.
MONTH_S = 30 * 24 * 3600.0
#: The key of {TUPLE: [...]}, which stands for a tuple in the JSON of a value. No mapping
#: in a record has the empty text as a key.
TUPLE = ""


class RecordText(NamedTuple):
    """Where the text of one record is: a whole file, or one line of it.

    line: its number, from 1 on; 0 for a whole file. start, size: of the line, in bytes."""

    path: str
    line: int = 0
    start: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.path} line {self.line}" if self.line else self.path


class MakesRows(Protocol):
    """Makes a row from a record: a tuple of numbers, texts, and lists and mappings of
    them. Its attribute `id` is the run's id.

    code: the hash of all code that a row depends on."""

    @property
    def code(self) -> str: ...

    def __call__(self, record: Record) -> Any: ...

    def restore(self, values: Iterable[Any]) -> Any:
        """The row with these values, which were read from the cache."""
        ...


class Stamp(NamedTuple):
    """What tells whether a file has changed: when it was last written, in nanoseconds,
    its size in bytes, and its inode."""

    changed_ns: int
    size: int
    inode: int


class KeptRows:
    """The kept rows of a folder of records, or of a study's file (`place`).

    Ask for each row with `get`. Where it returns None, make the row and hand it to `add`;
    after the last row, `save`."""

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
        self._used_count = 0  # rows that `get` has returned
        # Rows to be saved, and the stamps that their files had before they were read
        self._new_rows = list[tuple[RecordText, Any]]()
        self._stamps = dict[RecordText, Stamp | None]()
        self._kept = self._read_files()

    def parts_of_study(self) -> dict[RecordText, bytes]:
        """The records of a study's file, as `parts_of` returns them, but each with an
        empty text: the file need not be read, since all its rows are kept. An empty
        mapping if some are not kept, if the file has changed, or for a folder."""
        current = self._stamp_of_study
        if current is None:
            return {}
        parts = [part for part, stamp in self._kept if stamp == current]
        parts.sort(key=lambda part: part.start)
        # Some rows are missing if one of their files is damaged, or was not written
        return dict.fromkeys(parts, b"") if _cover_file(parts, current.size) else {}

    def get(self, part: RecordText) -> Any:
        """The kept row of a record; None where its file has changed, or no row is kept
        yet. Remembers the file's stamp then, for `add`."""
        stamp = self._stamp_of_study if self._is_study else _stamp_of(part.path)
        if stamp and (part, stamp) in self._kept:
            self._used_count += 1
            return self._kept[part, stamp]
        self._stamps[part] = stamp
        return None

    def add(self, part: RecordText, row: Any) -> None:
        """Keeps a new row. Call `get` before you read its record: if the file changes in
        between, its stamp is another one, and the row is made again."""
        self._new_rows.append((part, row))

    def save(self) -> None:
        """Writes the new rows. A cache that cannot be written costs time, no more."""
        sources = list[list[Any]]()
        rows = list[Any]()
        for part, row in self._new_rows:
            stamp = self._stamps[part]
            # a file that has just been written may change without another stamp
            if stamp and stamp.changed_ns < self._settled_ns:
                # "" stands for the study's file itself
                name = "" if self._is_study else os.path.basename(part.path)
                named_part = [name, part.line, part.start, part.size]
                sources.append([named_part, stamp])
                rows.append(row)
        if len(rows) < FEWEST_ROWS:
            return
        with contextlib.suppress(OSError):
            # More than half of the rows that were there went unused, since their records
            # have changed or gone: all are removed, and made again when they are needed
            if len(self._kept) > 2 * self._used_count:
                shutil.rmtree(self.folder, ignore_errors=True)
            for first in range(0, len(rows), MOST_ROWS):
                chosen = slice(first, first + MOST_ROWS)
                text = encode_rows(sources[chosen], rows[chosen])
                write_atomically(self.folder / f"{_hash_of(text)}.json", text)
            remove_unused(self.folder.parent)

    def _read_files(self) -> dict[tuple[RecordText, Stamp], Any]:
        """The kept rows, by record and stamp. A record that has changed since may have
        several rows, of which one has its present stamp."""
        values = dict[str, Any]()
        rows = dict[tuple[RecordText, Stamp], Any]()
        for path in sorted(self.folder.glob("*.json")):
            # A file that is damaged, or of another form, is ignored from there on
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                text = path.read_text(encoding="utf-8")
                if path.stem != _hash_of(text):
                    continue
                for named_part, stamp, row in decode_rows(text, values):
                    name, line, start, size = named_part
                    place = os.path.join(self.place, name) if name else str(self.place)
                    part = RecordText(place, line, start, size)
                    rows[part, Stamp(*stamp)] = self.make_row.restore(row)
        return rows


def rows_cache_folder() -> Path:
    """The folder of kept rows in the user's cache. It is in `tasks.fetch.cache_folder`,
    whose rule stands here again because runs/record may not import tasks."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "vera-bench" / "rows"


def remove_unused(cache: Path) -> None:
    """Removes the folders of a cache to which nothing was added for MONTH_S: their code
    or their records have probably gone."""
    for folder in cache.iterdir():
        if time.time() - folder.stat().st_mtime > MONTH_S:
            shutil.rmtree(folder, ignore_errors=True)


def _stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of a file; None if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_mtime_ns, status.st_size, status.st_ino)


def _cover_file(lines: Iterable[RecordText], file_size: int) -> bool:
    """Whether these lines, in their order, are all of a file, apart from line breaks."""
    line_break = 2  # bytes at most
    end = 0
    for line in lines:
        if line.start - end > line_break:
            return False
        end = line.start + line.size
    return file_size - end <= line_break


def _hash_of(text: str) -> str:
    """The name of a file of rows, which shows whether the file is whole."""
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


# --- rows as JSON


def encode_rows(sources: list[list[Any]], rows: list[Any]) -> str:
    """The text of a file of rows: JSON with each different value once, and with rows in
    which a whole number stands for the value at that index, a float for itself.

    sources: for each row, what identifies its record: a part, [file name, line, start,
    size], and the stamp of the file. The name is "" for the study's own file."""
    index_by_key = dict[Any, int]()
    values = list[str]()
    encoded = list[list[Any]]()
    for source, row in zip(sources, rows, strict=True):
        numbers = list[Any]()
        for value in row:
            # NaN, which stands for a missing value in many rows, is written once
            if type(value) is float and not math.isnan(value):
                numbers.append(value)
                continue
            key = _key_of(value)
            if key not in index_by_key:
                index_by_key[key] = len(values)
                values.append(_as_json(value))
            numbers.append(index_by_key[key])
        encoded.append([*source, numbers])
    return json.dumps({"values": values, "rows": encoded}, separators=(",", ":"))


def _key_of(value: Any) -> Any:
    """A key that is the same for equal values of one type, by which `encode_rows` writes
    each value once."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        # MakesRows has one object for equal mappings, so that its address is enough
        return dict, id(value)
    return type(value), repr(value)


def _as_json(value: Any) -> str:
    """A value as JSON, a tuple as {TUPLE: [...]}."""
    return json.dumps({TUPLE: value} if isinstance(value, tuple) else value)


def decode_rows(
    text: str, shared_values: dict[str, Any]
) -> Iterator[tuple[Any, Any, list[Any]]]:
    """The part, the stamp and the row of each row that `encode_rows` was given, one
    after another. shared_values: the values that other files have had, by their JSON, so
    that equal ones are in memory once. It gets the new values, too."""
    content = json.loads(text)
    values = list[Any]()
    for value_text in content["values"]:
        if value_text not in shared_values:
            shared_values[value_text] = _from_json(value_text)
        values.append(shared_values[value_text])
    for part, stamp, numbers in content["rows"]:
        # a whole number is the index of a value, and a float stands for itself
        row = [values[number] if type(number) is int else number for number in numbers]
        yield part, stamp, row


def _from_json(text: str) -> Any:
    """The value of a text of `_as_json`."""
    value = json.loads(text)
    if isinstance(value, dict) and [*value] == [TUPLE]:
        return tuple(value[TUPLE])
    return value


def parts_of(place: Path) -> dict[RecordText, bytes]:
    """The records of a folder, sorted by file name, each with an empty text; or those of
    a study's file, in its order, each with its line. Empty if there is no such place."""
    if place.suffix == ".jsonl":
        return _lines_of(place) if place.is_file() else {}
    names = sorted(os.listdir(place)) if place.is_dir() else []
    names = [name for name in names if name.endswith(".json") and name[0] != "."]
    return {RecordText(f"{place}/{name}"): b"" for name in names}


def _lines_of(place: Path) -> dict[RecordText, bytes]:
    """The lines of a file that are not empty, each with where it stands."""
    lines = place.read_bytes().splitlines(keepends=True)
    starts = itertools.accumulate(map(len, lines), initial=0)
    parts = dict[RecordText, bytes]()
    # not strict: the last of `starts` is the end of the file, where no line begins
    for number, (start, line) in enumerate(zip(starts, lines, strict=False), 1):
        text = line.rstrip(b"\r\n")
        if text:
            parts[RecordText(str(place), number, start, len(text))] = text
    return parts
