"""The files of records: where they are; how they are written, whole or not at all; and
how they are read: one, those of a study, or all of a folder and the published
studies."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson

from runs.record.agreement import conflict_note, difference_of_results
from runs.record.cell import cell_id, hash_of
from runs.record.files import read_yaml, write_atomically
from runs.record.kept_rows import KeptRows, MakesRows, RecordText, parts_of
from runs.record.lm_eval import lm_eval_results, with_lm_eval
from runs.record.schema import (
    FINISHED,
    MEASURE_SCHEMA,
    SCHEMA,
    Code,
    FailedRecord,
    LmEvalResult,
    Measure,
    MeasuredRun,
    Record,
)
from runs.record.text import error_line, printable
from runs.record.validation import check_measure, check_record, migrate

#: The folder of the four packages: of a clone, or site-packages.
ROOT = Path(__file__).parents[2]
#: Whether this is an installed wheel. A repository around it is then another project's.
INSTALLED = (ROOT / "runs" / "conf").is_dir()
CONF = ROOT / "runs" / "conf" if INSTALLED else ROOT / "conf"
#: Studies that the project publishes.
PUBLISHED = ROOT / "runs" / "records"


class FileKind(NamedTuple):
    """What a file or a line may hold. check: raises ValueError for a value that is not of
    the newest schema. Older ones are brought into it when they are read."""

    oldest_schema: int
    newest_schema: int
    check: Callable[[dict[str, Any]], None]


FILE_KINDS = {
    "record": FileKind(2, SCHEMA, check_record),
    "measure": FileKind(MEASURE_SCHEMA, MEASURE_SCHEMA, check_measure),
}


@cache
def in_conf(name: str) -> Any:
    """The content of a file of conf/, such as cards.yaml. It is cached: do not change
    it."""
    return read_yaml(CONF / name)


def built_from() -> Code:
    """The commit that an installed wheel was built from, and whether files differed from
    it then (dirty). Both are None if the wheel does not say so."""
    with contextlib.suppress(OSError):
        text = (ROOT / "runs" / "build.json").read_text(encoding="utf-8")
        return cast(Code, json.loads(text))
    return {"commit": None, "dirty": None}


def read_regular(path: str | Path, max_bytes: int = 64 * 2**20) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; never blocks. Raises
    ValueError, naming the file, for one that is missing, unreadable or of more than
    `max_bytes`, a folder, a pipe, a device."""
    try:
        # Before it is opened, since a pipe would block and a device might act
        if not os.path.isfile(path):
            if os.path.lexists(path):
                raise ValueError(f"{path}: not a regular file")
            raise ValueError(f"{path}: no such file")
        if os.path.getsize(path) > max_bytes:
            raise ValueError(f"{path}: larger than {max_bytes:,} bytes")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def record_path(output: str | Path, run_id: str) -> Path:
    """Where the record of a run of this machine is."""
    return Path(output, "records", f"{run_id}.json")


def run_folder(output: str | Path, run_id: str) -> Path:
    """The folder of a run's log, checkpoint, adapter and head."""
    return Path(output) / "runs" / run_id


def record_text(record: FailedRecord | Measure, kind: str = "record") -> str:
    """The text of a record's file, one line, with hidden characters as `printable` writes
    them. kind: one of FILE_KINDS. Raises ValueError for a record that could not be read
    again: of another shape, or with NaN or infinity."""
    text = json.dumps(printable(record), separators=(",", ":"), allow_nan=False) + "\n"
    FILE_KINDS[kind].check(orjson.loads(text))
    return text


def write_record(
    output: str | Path, record: FailedRecord | Measure, kind: str = "record"
) -> Path:
    """Writes a record, or a measure, atomically into its file in an output folder, and
    returns the file's path. Raises ValueError as `record_text` does."""
    path = Path(output, f"{kind}s", f"{record['id']}.json")
    write_atomically(path, record_text(record, kind))
    return path


def write_study(
    folder: Path, records: Sequence[Record], measures: Sequence[Measure] = ()
) -> None:
    """Adds records and measures to a study's files, a line for each, sorted by id. A line
    with the same id is replaced; the other lines stay as they are. Raises ValueError as
    `record_text` does."""
    by_kind: dict[str, Sequence[Record | Measure]] = {
        "record": records,
        "measure": measures,
    }
    for kind, added in by_kind.items():
        path = folder / f"{kind}s.jsonl"
        lines = dict[str, str]()
        for line in parts_of(path).values():
            lines[orjson.loads(line)["id"]] = f"{line.decode()}\n"
        for record in added:
            lines[record["id"]] = record_text(record, kind)
        if added:
            write_atomically(path, "".join(lines[key] for key in sorted(lines)))


# --- reading records


def read_record(path: str | Path, line: bytes = b"") -> Record:
    """Reads a record and brings it into today's schema. Raises ValueError, naming `path`,
    for one that is damaged or of an unknown schema.

    line: the record's text, where it is one line of a file; `path` then only says where
    it stands. b"": the record is the whole file `path`."""
    return cast(Record, _read_checked(path, "record", line))


def read_measure(path: str | Path, line: bytes = b"") -> Measure:
    """One measure, as `read_record` reads a record."""
    return cast(Measure, _read_checked(path, "measure", line))


def _read_checked(path: str | Path, kind: str, line: bytes) -> dict[str, Any]:
    """The record or measure that a file holds; see `read_record`.

    kind: one of FILE_KINDS. line: the text of one line of `path`, where the caller has
    read it; b"": the whole file is read."""
    content = line or read_regular(path)
    oldest_schema, newest_schema, check = FILE_KINDS[kind]
    try:
        record: dict[str, Any] = orjson.loads(content)
        has_id = isinstance(record, dict) and isinstance(record.get("id"), str)
        if not has_id or type(record.get("schema")) is not int:
            raise ValueError("it has no id and no schema")
        if not oldest_schema <= record["schema"] <= newest_schema:
            raise ValueError(
                f"schema {record['schema']} is not known here; a newer version may "
                "read it"
            )
        # A terminal would obey control characters. Most records are ASCII without
        # escapes and so have none: looking at the bytes saves looking at each value
        is_plain = content.isascii() and b"\\" not in content and b"\x7f" not in content
        if not is_plain:
            for key, value in record.items():
                if printable([key, value]) != [key, value]:
                    raise ValueError(f"{printable(key)}: holds a control character")
        if kind == "record":  # measures have had one schema so far
            migrate(record)
        check(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a {kind} ({error})") from None
    return record


def read_part(part: RecordText, text: bytes = b"") -> Record:
    """The record at a place; a finished one has its cell_id. Raises ValueError as
    `read_record` does.

    text: the line at `part`, if the caller has read it already."""
    if part.line and not text:
        with open(part.path, "rb") as file:
            file.seek(part.start)
            text = file.read(part.size)
    record = read_record(str(part), text)
    _recompute_cell_id(record)
    return record


@dataclass
class Ledger:
    """Records by run id, and measures (which figures are drawn from) by their own ids.

    In a ledger of rows, the values of `records` are not records but the rows that the
    `make_row` of `read_ledger` made of them; `whole_record` gives the record."""

    records: dict[str, Record] = field(default_factory=dict)
    # where each record comes from: "ours", or the study's name
    origin: dict[str, str] = field(default_factory=dict)
    # files that could not be read, a line each
    problems: list[str] = field(default_factory=list)
    measures: dict[str, Measure] = field(default_factory=dict)
    # where each measure comes from, as `origin` says it of records
    measure_origin: dict[str, str] = field(default_factory=dict)
    # for each run that was done here and is published too: the study, and its record
    # (in a ledger of rows, its row)
    published: dict[str, tuple[str, Record]] = field(default_factory=dict)
    # in a ledger of rows: where each run's record stands
    places: dict[str, RecordText] = field(default_factory=dict)
    # in a ledger of rows: the records to which a result of lm-eval was added
    amended: dict[str, Record] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def whole_record(self, run: str) -> Record:
        """The record of a run, read again where the ledger has a row of it."""
        if run in self.amended:
            return self.amended[run]
        if run in self.places:
            return read_part(self.places[run])
        return self.records[run]


def read_ledger(
    output: str | Path = "outputs",
    published: bool = True,
    make_row: MakesRows | None = None,
) -> Ledger:
    """All records of this machine's output folder and, unless `published` is False, the
    published ones. This machine's own come first.

    A run may have two records, such as this machine's and the published one. The first
    one counts. If their results differ (another machine, other versions), the ledger's
    problems say for how many runs of each study. A copy of a published record belongs
    to that study, not to this machine.

    make_row: makes the row that the ledger has in the place of each record, so that
    thousands of records need not be in memory at once. Rows come from the user's cache
    where it has them."""
    reading = _Reading(output, make_row)
    reading.add_folder("ours", Path(output), ending="")
    for folder in study_folders() if published else []:
        reading.add_folder(folder.name, folder, ending=".jsonl")
    reading.add_lm_eval()
    return reading.ledger


def write_lm_eval_measure(
    output: str | Path, record: Record, result: LmEvalResult
) -> None:
    """Writes a result of lm-eval as a measure: for a run that only a study has, whose
    record must not change."""
    run: MeasuredRun = {
        "id": record["id"],
        "cell": record["cell"],
        "label": record["label"],
        "adapter": {},
    }
    measure: Measure = {
        "schema": MEASURE_SCHEMA,
        "id": hash_of(["lm_eval", run["id"], result["task"], result["asked"]])[:12],
        "kind": "lm_eval",
        # the result has its settings, and draws no random numbers of ours
        "settings": {},
        "seeds": {},
        "of": [run],
        "values": {"result": [result]},
    }
    write_record(output, measure, "measure")


def finished_record(output: str | Path, run_id: str | None) -> Record | None:
    """The record of a run that is done or has diverged; None without one that can be
    read."""
    try:
        record = read_record(record_path(output, run_id)) if run_id else None
    except ValueError:
        return None
    return record if record and record["status"] in FINISHED else None


def read_study(folder: Path) -> Ledger:
    """The records and measures of one published study alone."""
    reading = _Reading()
    reading.add_folder(folder.name, folder, ending=".jsonl")
    return reading.ledger


def study_folders() -> list[Path]:
    """The published studies."""
    return sorted(folder for folder in PUBLISHED.glob("*") if folder.is_dir())


@dataclass
class _RecordEntry:
    """A record that is being read into a ledger. row: its row, in a ledger of rows.
    record: None as long as only the row has been read, from the cache."""

    part: RecordText
    row: Any = None
    record: Record | None = None

    @property
    def id(self) -> str:
        return str(self.row.id if self.record is None else self.record["id"])

    def whole_record(self) -> Record:
        """The record, read now if only its row was."""
        if self.record is None:
            self.record = read_part(self.part)
        return self.record


@dataclass
class _Reading:
    """A ledger that is being read. output: this machine's output folder; "" for a study
    alone. make_row: makes the row that the ledger has in place of a record; None for a
    ledger of records."""

    output: str | Path = ""
    make_row: MakesRows | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def add_folder(self, origin: str, folder: Path, ending: str) -> None:
        """Adds the records and measures of an output folder or of a study. origin: "ours",
        or the study's name. ending: ".jsonl" for a study's files, "" for folders."""
        ledger = self.ledger
        records = folder / f"records{ending}"
        conflicts = dict[str, float]()
        for entry in self._entries(records):
            difference = self._add(origin, entry)
            if difference is not None:
                conflicts[entry.id] = difference
        if conflicts:
            origins = [ledger.origin[run_id] for run_id in conflicts]
            note = conflict_note(conflicts, origins)
            ledger.problems.append(f"{records}: {note}")
        measures = folder / f"measures{ending}"
        for part, text in parts_of(measures).items():
            try:
                measure = read_measure(str(part), text)
            except ValueError as error:
                ledger.problems.append(error_line(str(error)))
                continue
            # of two measures with one id the first one counts
            if measure["id"] not in ledger.measures:
                ledger.measures[measure["id"]] = measure
                ledger.measure_origin[measure["id"]] = origin

    def _entries(self, records: Path) -> Iterator[_RecordEntry]:
        """The records of a folder, or of a study's file. Those that cannot be read are
        problems of the ledger."""
        if not self.make_row:
            for part, text in parts_of(records).items():
                record = self._read(part, text)
                if record is not None:
                    yield _RecordEntry(part, record=record)
            return
        kept_rows = KeptRows(records, self.make_row)
        problems_before = len(self.ledger.problems)
        # a study's file whose rows are all kept is not read
        for part, text in (kept_rows.parts_of_study() or parts_of(records)).items():
            row = kept_rows.get(part)
            record = None
            if row is None:
                record = self._read(part, text)
                if record is None:
                    continue
                row = self.make_row(record)
                kept_rows.add(part, row)
            yield _RecordEntry(part, row, record)
        # A study's file with unreadable lines is read again each time, to report them
        has_new_problems = len(self.ledger.problems) > problems_before
        if records.suffix != ".jsonl" or not has_new_problems:
            kept_rows.save()

    def _read(self, part: RecordText, text: bytes) -> Record | None:
        """The record that `text`, a file or one line of it, holds; None if it cannot be
        read, which is then a problem of the ledger. part: where the text is from."""
        try:
            record = read_part(part, text)
            # Somebody may have copied a record to another name. Only the file that is
            # named after the record's id counts
            file_name = f"{record['id']}.json"
            if not part.line and not part.path.endswith(f"/{file_name}"):
                raise ValueError(f"{part}: a record that belongs in {file_name}")
        except ValueError as error:
            self.ledger.problems.append(error_line(str(error)))
            return None
        return record

    def add_lm_eval(self) -> None:
        """Adds lm-eval's results, which the ledger's measures have, to the records of the
        runs that were measured."""
        for measure in self.ledger.measures.values():
            if measure["kind"] != "lm_eval":
                continue
            run = measure["of"][0]["id"]
            if run not in self.ledger.records:
                continue
            record = self.ledger.whole_record(run)
            measured = measure["values"]["result"]
            if self.ledger.origin[run] == "ours":
                # A run gets a measure only as long as it has no record here. So this
                # record is newer, and its results count
                record["result"] = with_lm_eval(
                    record, measured, lm_eval_results(record)
                )
            else:
                # The measure was made after the study's record
                record["result"] = with_lm_eval(
                    record, lm_eval_results(record), measured
                )
            self._amend(record)

    def _add(self, origin: str, entry: _RecordEntry) -> float | None:
        """Adds a record, unless the ledger has one of that run: the first one counts, and
        gets the second one's results of lm-eval if both have the same scores. Returns
        how much the two results differ; None if they agree, or if there is only one."""
        ledger = self.ledger
        run = entry.id
        content = entry.whole_record() if self.make_row is None else entry.row
        if run not in ledger.records:
            ledger.records[run] = content
            ledger.origin[run] = origin
            if self.make_row:
                ledger.places[run] = entry.part
            return None
        first = ledger.whole_record(run)
        second = entry.whole_record()
        difference = difference_of_results(first, second)
        if difference is None:
            if self._belongs_to(origin, first, second):
                ledger.origin[run] = origin
            results = lm_eval_results(second)
            if results:
                first["result"] = with_lm_eval(first, results, lm_eval_results(first))
                self._amend(first)
        # a run of this machine is added first, so the second record is a study's
        if ledger.origin[run] == "ours":
            ledger.published.setdefault(run, (origin, content))
        return difference

    def _belongs_to(self, study: str, first: Record, published: Record) -> bool:
        """Whether a run belongs to `study`, and not to where its record was read first.
        first: that record, which the ledger has. published: the study's, which has the
        same result."""
        run = first["id"]
        if self.ledger.origin[run] == "ours":
            # Publishing takes paths out, and a run of this machine leaves a folder. So
            # an equal record without a folder is a copy of the published one
            return first == published and not run_folder(self.output, run).exists()
        # two studies have it: it belongs to that of the preset that it was started by
        return study == published["cell"]["paper"]

    def _amend(self, record: Record) -> None:
        """Stores a changed record, and a new row of it, in a ledger of rows. A ledger of
        records needs neither: `record` is the very object that it holds."""
        if self.make_row:
            self.ledger.amended[record["id"]] = record
            self.ledger.records[record["id"]] = self.make_row(record)


def _recompute_cell_id(record: Record) -> None:
    """Computes the cell_id of a finished record anew, in place: another version of the
    code may have computed it from other settings."""
    record.pop("cell_id", None)
    if record["status"] in FINISHED:
        record["cell_id"] = cell_id(record)
