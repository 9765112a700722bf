"""The files of records: where they are; how they are written, whole or not at all; and
how they are read: one, a study's, or all that a folder and the published studies
hold."""

import contextlib
import errno
import json
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml

from runs.record.agreement import difference_of_results
from runs.record.cell import cell_id, hash_of
from runs.record.schema import (
    FINISHED,
    MEASURE_SCHEMA,
    SCHEMA,
    Record,
    check,
    check_measure,
    migrate,
)
from runs.record.text import error_line, printable

#: The folder of the four packages: of a clone, or site-packages.
ROOT = Path(__file__).parents[2]
#: Whether this is an installed wheel. A repository around it is then another project's.
INSTALLED = (ROOT / "runs" / "conf").is_dir()
CONF = ROOT / "runs" / "conf" if INSTALLED else ROOT / "conf"
#: Studies that the project publishes.
PUBLISHED = ROOT / "runs" / "records"
#: What a file or a line holds: its oldest and newest schema, and what checks it.
KINDS = {
    "record": (2, SCHEMA, check),
    "measure": (MEASURE_SCHEMA, MEASURE_SCHEMA, check_measure),
}


@cache
def in_conf(name: str) -> Any:
    """What a file of conf/ says, such as cards.yaml; for reading alone."""
    return yaml.safe_load((CONF / name).read_text(encoding="utf-8"))


def built_from() -> dict[str, Any]:
    """The commit of an installed wheel's code, and whether files differed (dirty); None
    outside of git."""
    with contextlib.suppress(OSError):
        return dict(
            json.loads((ROOT / "runs" / "build.json").read_text(encoding="utf-8"))
        )
    return {"commit": None, "dirty": None}


def read_regular(path: str | Path, max_bytes: int = 64 * 2**20) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; never blocks. Raises
    ValueError, naming the file, for one that is missing, unreadable or of more than
    `max_bytes`, a folder, a pipe, a device."""
    try:
        # before it is opened: a pipe would block, a device may do something
        if not os.path.isfile(path):
            if os.path.lexists(path):
                raise ValueError(f"{path}: not a regular file")
            raise ValueError(f"{path}: no such file")
        if os.path.getsize(path) > max_bytes:
            raise ValueError(f"{path}: larger than {max_bytes:,} bytes")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: no reader sees half of it, whenever this
    process is killed."""
    with _written(path, text) as partial:
        os.replace(partial, path)


def link_or_fail(path: Path, text: str) -> None:
    """Creates a file whole, or raises FileExistsError: of many processes that try at
    once, one succeeds."""
    with _written(path, text) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            # A network file system may link the file and still answer that it exists
            if not os.path.samefile(partial, path):
                raise
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            # a file system without hard links
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)


#: What file systems without hard links say, and those that have no more for a file.
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@contextlib.contextmanager
def _written(path: Path, text: str) -> Iterator[Path]:
    """A file beside `path` with this text, safely on the disk."""
    with temporary(path) as partial:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # or a machine that loses power may keep the name and not the text
            os.fsync(file.fileno())
        yield partial


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A file beside `path` whose name no other process or thread uses; removed at the
    end, unless renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    )
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def is_dead(name: str) -> bool:
    """Whether HOST.PID.TOKEN names a process of this machine that has ended."""
    host, _, number = name.rpartition(".")[0].rpartition(".")
    try:
        if host == socket.gethostname() and number.isdecimal() and len(number) < 10:
            os.kill(int(number), 0)
    except OSError as error:  # or it is another user's, whom /proc may hide
        return isinstance(error, ProcessLookupError)
    return False


def sweep_up_dead(folder: Path) -> None:
    """Removes the temporary files in a folder that killed processes of this machine
    left. Always safe."""
    for partial in folder.glob(".*.*.*.*.*"):
        if is_dead(partial.name.split(".", 3)[3]):  # .NAME.json.HOST.PID.TOKEN
            partial.unlink(missing_ok=True)


def record_path(output: str | Path, run_id: str) -> Path:
    """The record of a run of this machine."""
    return Path(output, "records", f"{run_id}.json")


def run_folder(output: str | Path, run_id: str) -> Path:
    """A run's log, checkpoint, adapter and head."""
    return Path(output) / "runs" / run_id


def record_text(record: Record, kind: str = "record") -> str:
    """The text of a record's file, hidden characters of labels and errors as
    `printable` writes them. Raises ValueError for one that could not be read again: of
    another shape, or with NaN or infinity."""
    text = json.dumps(printable(record), separators=(",", ":"), allow_nan=False) + "\n"
    KINDS[kind][2](orjson.loads(text))
    return text


def write_record(output: str | Path, record: Record, kind: str = "record") -> Path:
    """Writes a record, or a measure, below outputs, atomically. Raises ValueError as
    `record_text` does."""
    path = Path(output, f"{kind}s", f"{record['id']}.json")
    write_atomically(path, record_text(record, kind))
    return path


def write_study(
    folder: Path, records: Sequence[Record], measures: Sequence[Record] = ()
) -> None:
    """Adds records and measures to a study's files, a line each, sorted by id, in the
    place of one of its id; other lines stay as they are. Raises ValueError as
    `record_text` does."""
    for kind, added in ("record", records), ("measure", measures):
        path = folder / f"{kind}s.jsonl"
        lines = dict[str, str]()
        for _, line in _parts(path):
            lines[orjson.loads(line)["id"]] = f"{line.decode()}\n"
        for record in added:
            lines[record["id"]] = record_text(record, kind)
        if added:
            write_atomically(path, "".join(lines[key] for key in sorted(lines)))


# --- which runs a sweep has: OUTPUT/sweeps/NAME.json. The folder NAME beside it, of a launcher's logs, can go


def write_sweep(output: str | Path, name: str, ids: Sequence[str]) -> None:
    """Writes the ids of a sweep's runs, in its order."""
    text = json.dumps({"name": name, "runs": list(ids)}) + "\n"
    write_atomically(Path(output, "sweeps", f"{name}.json"), text)


def read_sweep(output: str | Path, name: str) -> list[str]:
    """The ids of a sweep's runs."""
    content = Path(output, "sweeps", f"{name}.json").read_bytes()
    return list(orjson.loads(content)["runs"])


def sweep_names(output: str | Path) -> list[str]:
    """The sweeps of a folder, the newest first."""
    folder = Path(output) / "sweeps"
    files = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    return [
        path.stem for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns)
    ]


# --- reading records


def read_record(path: str | Path, kind: str = "record", line: bytes = b"") -> Record:
    """One record, or measure, in this schema: of a file, or a line, whose place `path`
    is then. Raises ValueError, naming the place, for one that is damaged or of an
    unknown schema."""
    content = line or read_regular(path)
    oldest, newest, check = KINDS[kind]
    try:
        record: Record = orjson.loads(content)
        has_id = isinstance(record, dict) and isinstance(record.get("id"), str)
        if not has_id or type(record.get("schema")) is not int:
            raise ValueError("it has no id and no schema")
        if not oldest <= record["schema"] <= newest:
            raise ValueError(
                f"schema {record['schema']} is not known here; a newer version may "
                "read it"
            )
        # Printable ASCII without escapes, as most records are, hides nothing: a search
        # of it takes no time
        plain = content.isascii() and b"\\" not in content and b"\x7f" not in content
        for key, value in record.items() if not plain else ():
            if printable([key, value]) != [key, value]:
                raise ValueError(f"{printable(key)}: holds a control character")
        check(migrate(record) if kind == "record" else record)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a {kind} ({error})") from None
    return record


#: A result of lm-eval, as LM_EVAL in schema.py says.
LmEvalResult = dict[str, Any]


@dataclass
class Ledger:
    """Records by run id (or what `keep` of `read_ledger` made of each), and measures
    (which figures are drawn from) by their own ids."""

    records: dict[str, Record] = field(default_factory=dict)
    # of each record: "ours", or the study's name
    origin: dict[str, str] = field(default_factory=dict)
    # files that could not be read, a line each
    problems: list[str] = field(default_factory=list)
    measures: dict[str, Record] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)  # the origin of each measure
    #: Of runs that were done here and are published too: the study, and its record.
    published: dict[str, tuple[str, Record]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())


def read_ledger(
    output: str | Path = "outputs",
    published: bool = True,
    keep: Callable[[Record], Any] | None = None,
) -> Ledger:
    """All records of this machine and, unless switched off, the published ones. This
    machine's own come first.

    A second record of a run with the same result is the same run, published. Where it
    has another result (another machine, other versions), the first one counts, and how
    many there are of each study is a problem. A copy of a published record is of that
    study, not of this machine.

    keep: makes what the ledger keeps in the place of each record, so that thousands of
    them need not be in memory at once."""
    reading = _Reading(output, keep)
    reading.add_folder("ours", Path(output), "")
    for folder in study_folders() if published else []:
        reading.add_folder(folder.name, folder, ".jsonl")
    reading.add_lm_eval()
    return reading.ledger


def evaluated(record: Record) -> list[LmEvalResult]:
    """What lm-eval has measured of a run."""
    return (record.get("result") or {}).get("lm_eval") or []


def adding(record: Record, *results: list[LmEvalResult]) -> Record:
    """A record's result with those of lm-eval: one of each way of asking a task, the
    last."""
    latest = dict[tuple[str, str], LmEvalResult]()
    for entries in results:
        for entry in entries:
            latest[entry["task"], entry["asked"]] = entry
    return {**record["result"], "lm_eval": [*latest.values()]}


def write_beside(output: str | Path, record: Record, result: LmEvalResult) -> None:
    """Writes a result of lm-eval of a run that only a study has, as a measure."""
    run = {key: record[key] for key in ("id", "cell", "label")} | {"adapter": {}}
    name = hash_of(["lm_eval", record["id"], result["task"], result["asked"]])[:12]
    about = {
        "schema": MEASURE_SCHEMA,
        "id": name,
        "kind": "lm_eval",
        "settings": {},
        "seeds": {},
        "of": [run],
    }
    write_record(output, {**about, "values": {"result": [result]}}, "measure")


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
    reading.add_folder(folder.name, folder, ".jsonl")
    return reading.ledger


def study_folders() -> list[Path]:
    """The published studies."""
    return sorted(folder for folder in PUBLISHED.glob("*") if folder.is_dir())


@dataclass
class _Reading:
    """A ledger that is being read. keep: what it keeps of a record, by default the
    record. places: where each record stands, to read it again when a second one of its
    run follows; amended: records that have changed since."""

    output: str | Path = ""
    keep: Callable[[Record], Any] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    places: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    amended: dict[str, Record] = field(default_factory=dict)

    def add_folder(self, origin: str, folder: Path, ending: str) -> None:
        """Adds the records and measures of an output folder or of a study's files."""
        ledger = self.ledger
        records, conflicts = folder / f"records{ending}", dict[str, float]()
        for place, record in _read_all(ledger, records, "record"):
            difference = self._add(origin, record, place)
            if difference is not None:
                conflicts[record["id"]] = difference
        if conflicts:
            ledger.problems.append(f"{records}: {_in_words(ledger, conflicts)}")
        for _, measure in _read_all(ledger, folder / f"measures{ending}", "measure"):
            if ledger.measures.setdefault(measure["id"], measure) is measure:
                ledger.measured[measure["id"]] = origin

    def add_lm_eval(self) -> None:
        """Adds what lm-eval has measured of runs to their records."""
        for measure in self.ledger.measures.values():
            if measure["kind"] != "lm_eval":
                continue
            run = measure["of"][0]["id"]
            if run not in self.ledger.records:
                continue
            record = self._record(run)
            measured = measure["values"]["result"]
            if self.ledger.origin[run] == "ours":
                # beside a record of this machine, the measure is from before it
                record["result"] = adding(record, measured, evaluated(record))
            else:
                # a study's record is not changed
                record["result"] = adding(record, evaluated(record), measured)
            self._amend(record)

    def _add(
        self, origin: str, record: Record, place: tuple[str, bytes]
    ) -> float | None:
        """Adds a record. Where the ledger has that run with another result, that one
        counts, and this returns by how much the results differ."""
        ledger, name = self.ledger, record["id"]
        _name_cell(record)
        if name not in ledger.records:
            ledger.records[name] = self._kept(record)
            ledger.origin[name] = origin
            self.places[name] = (place[0], "record", place[1])
            return None
        first = self._record(name)
        difference = difference_of_results(first, record)
        is_same = difference is None
        if ledger.origin[name] == "ours":
            # Publishing takes paths out, and a run of this machine leaves a folder: the
            # first one is a copy
            better = first == record and not run_folder(self.output, name).exists()
        else:
            # the study of the preset that the run was started by
            better = origin == record["cell"]["paper"]
        if is_same and better:
            ledger.origin[name] = origin
        if is_same and evaluated(record):
            first["result"] = adding(first, evaluated(record), evaluated(first))
            self._amend(first)
        if ledger.origin[name] == "ours":
            ledger.published.setdefault(name, (origin, self._kept(record)))
        return difference

    def _kept(self, record: Record) -> Any:
        return self.keep(record) if self.keep else record

    def _record(self, name: str) -> Record:
        """A record that the ledger has, read again where it keeps something else."""
        if not self.keep:
            return self.ledger.records[name]
        if name in self.amended:
            return self.amended[name]
        record = read_record(*self.places[name])
        _name_cell(record)
        return record

    def _amend(self, record: Record) -> None:
        """Keeps what has been added to a record of the ledger."""
        if self.keep:
            self.amended[record["id"]] = record
            self.ledger.records[record["id"]] = self.keep(record)


def _name_cell(record: Record) -> None:
    """Names the cell of a finished record by its settings: another version may define
    a result by other ones."""
    record.pop("cell_id", None)
    if record["status"] in FINISHED:
        record["cell_id"] = cell_id(record)


def _in_words(ledger: Ledger, conflicts: Mapping[str, float]) -> str:
    """That runs have another result in the ledger, and by how much."""
    origins = sorted({ledger.origin[run_id] for run_id in conflicts})
    runs_have = f"{len(conflicts)} runs have"
    if len(conflicts) == 1:
        runs_have = f"run {min(conflicts)} has"
    largest = max(conflicts.values())
    by_how_much = ""
    if math.isfinite(largest):
        by_how_much = f" (the largest difference is {largest:.2g})"
    return (
        f"{runs_have} another result here than in {', '.join(origins)}, which "
        f"counts{by_how_much}"
    )


def _parts(place: Path) -> list[tuple[str, bytes]]:
    """The JSON files of a folder, by name, or the lines of a study's file, with their
    texts."""
    if place.suffix == ".jsonl":
        lines = place.read_bytes().splitlines() if place.is_file() else []
        numbered = enumerate(lines, 1)
        return [(f"{place} line {number}", line) for number, line in numbered if line]
    names = sorted(os.listdir(place)) if place.is_dir() else []
    names = [name for name in names if name.endswith(".json") and name[0] != "."]
    return [(f"{place}/{name}", b"") for name in names]


def _read_all(
    ledger: Ledger, folder: Path, kind: str
) -> Iterator[tuple[tuple[str, bytes], Record]]:
    """What the parts of a folder hold, with the place and line of each. Those that
    cannot be read are problems of the ledger."""
    for part, line in _parts(folder):
        try:
            record = read_record(part, kind, line)
            # A copy by hand has another name; which of two counts must not depend on
            # their names
            file_name = f"{record['id']}.json"
            is_file = kind == "record" and not line
            if is_file and not part.endswith(f"/{file_name}"):
                raise ValueError(f"{part}: a record that belongs in {file_name}")
        except ValueError as error:
            ledger.problems.append(error_line(str(error)))
            continue
        yield (part, line), record
