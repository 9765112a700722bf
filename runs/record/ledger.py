"""Reading records: one, a study's, or all that a folder and the published studies hold."""

import gc
import heapq
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from runs.record.cell import cell_id, other_data_seed, protocol
from runs.record.files import read_regular, record_path, records_folder, run_folder
from runs.record.measure import MEASURE_SCHEMA, check_measure
from runs.record.place import PUBLISHED
from runs.record.schema import FINISHED, MIGRATIONS, SCHEMA, Record, check
from runs.record.text import hidden, refusal


def read_record(path: str | Path) -> Record:
    """One record, in this schema. Raises ValueError, naming the file, for one that is damaged or of an
    unknown schema."""
    return _read(path, "record", SCHEMA, check, MIGRATIONS)


def read_measure(path: str | Path) -> Record:
    """One measure. Raises ValueError, naming the file, for one that is damaged or of an unknown schema."""
    return _read(path, "measure", MEASURE_SCHEMA, check_measure, {})


def _read(
    path: str | Path,
    what: str,
    schema: int,
    check: Callable[[Record], None],
    migrations: dict[int, Callable[[Record], Record]],
) -> Record:
    content = read_regular(path)
    try:
        record = orjson.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a {what} ({error})") from None
    has_id = isinstance(record, dict) and isinstance(record.get("id"), str)
    if not has_id or type(record.get("schema")) is not int:
        raise ValueError(f"{path}: not a {what}")
    while record["schema"] in migrations:
        record = migrations[record["schema"]](record)
    if record["schema"] != schema:
        why = "made by a newer version; update this one" if record["schema"] > schema else "not known"
        raise ValueError(f"{path}: a {what} of schema {record['schema']}, {why} (here: {schema})")
    try:
        # Printable ASCII without escapes, as most records are, hides nothing: a search of it takes no time
        plain = content.isascii() and b"\\" not in content and b"\x7f" not in content
        for key, value in record.items() if not plain else ():
            if character := hidden([key, value]):
                raise ValueError(f"{key}: holds the control character {character}")
        check(record)
    except ValueError as error:
        raise ValueError(f"{path}: not a {what} ({error})") from None
    return record


@dataclass
class Ledger:
    """Records by run id, and measures (which figures are drawn from) by their own ids."""

    records: dict[str, Record] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # of each record: "ours", or the study's name
    problems: list[str] = field(default_factory=list)  # files that could not be read, a line each
    measures: dict[str, Record] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)  # the origin of each measure
    #: Of runs that were done here and are published too: the study, and its record.
    published: dict[str, tuple[str, Record]] = field(default_factory=dict)
    #: What `make bench-serving` has measured on this machine.
    serving: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())


class _SharedParts:
    """Equal parts of many records, kept once: of 100,000 records they are two thirds of the memory."""

    OF_RECORD = (
        *("label", "recipe", "seeds", "code", "versions", "device", "determinism", "data", "parameters"),
        *("groups", "deviations", "tries", "overrides"),
    )
    OF_CONFIG = ("model", "task", "method", "train", "recipe")
    OF_CURVE = ("epoch", "step", "lr")

    def __init__(self) -> None:
        self._parts: dict[bytes, Any] = {}
        self._cells: dict[tuple[Any, ...], str] = {}

    def share(self, record: Record) -> None:
        """Replaces the record's parts by equal ones of earlier records, which are the same to the bit."""
        config, curve = record["config"], record.get("curve", {})
        for holder, keys in ((record, self.OF_RECORD), (config, self.OF_CONFIG), (curve, self.OF_CURVE)):
            for key in keys:
                if key in holder:
                    holder[key] = self._parts.setdefault(orjson.dumps(holder[key]), holder[key])
        for holder in (record, record["cell"], config, record.get("result", {})):
            holder |= {key: sys.intern(text) for key, text in holder.items() if type(text) is str}

    def cell_id(self, record: Record) -> str:
        """`cell_id` of a finished record whose parts are shared; computed once for the same parts."""
        config, start = record["config"], record.get("start") or {}
        parts = (
            record["data"],
            record["recipe"],
            *(config[key] for key in ("model", "task", "method", "train")),
        )
        seed = other_data_seed(record)
        key = (*map(id, parts), record["model"], start.get("id"), protocol(record), seed)
        if key not in self._cells:
            self._cells[key] = sys.intern(cell_id(record))
        return self._cells[key]


#: How many of a folder's newest records are read for what runs cost, where not all are wanted.
SAMPLE = 1000


def read_ledger(
    output: str | Path = "outputs", published: bool = True, wanted: Collection[str] | None = None
) -> Ledger:
    """All records of this machine and, unless switched off, the published ones. This machine's own come
    first.

    wanted: of this machine's only those of these runs, and the newest `SAMPLE` of the others.

    A second record of a run with the same result is the same run, published. Where it has another result
    (another machine, other versions), the first one counts, and how many there are of each study is a
    problem. A copy of a published record is of that study, not of this machine.
    """
    ledger, shared = Ledger(), _SharedParts()
    ours = records_folder(output)
    files = _json_files(ours) if wanted is None else _some_files(ours, wanted)
    _read_records(ledger, shared, "ours", files, output)
    _read_measures(ledger, "ours", Path(output) / "measures")
    try:
        ledger.serving = read_serving(output)
    except ValueError as error:
        ledger.problems.append(refusal(str(error)))
    for folder in study_folders() if published else []:
        _read_records(ledger, shared, folder.name, _json_files(folder), output)
        _read_measures(ledger, folder.name, folder / "measures")
    return ledger


def read_serving(output: str | Path) -> dict[str, Any] | None:
    """What `make bench-serving` wrote to an output folder; None where it has not run. Raises ValueError,
    naming the file, for a damaged one."""
    path = Path(output) / "bench" / "serving.json"
    if not path.exists():
        return None
    try:
        bench: dict[str, Any] = orjson.loads(read_regular(path))
        if all(row["part"] and row["variant"] for row in bench["rows"]) and bench["machine"]["name"]:
            return bench
    except (TypeError, KeyError, orjson.JSONDecodeError):
        pass
    raise ValueError(f"{path}: not a benchmark of serving")


def finished_record(output: str | Path, run_id: str | None) -> Record | None:
    """The record of a run that is done or has diverged; None where there is none, or one that cannot be
    read."""
    try:
        record = read_record(record_path(output, run_id)) if run_id else None
    except ValueError:
        return None
    return record if record and record["status"] in FINISHED else None


def read_study(folder: Path) -> Ledger:
    """The records and measures of one published study alone."""
    ledger = Ledger()
    _read_records(ledger, _SharedParts(), folder.name, _json_files(folder), "")
    _read_measures(ledger, folder.name, folder / "measures")
    return ledger


def study_folders() -> list[Path]:
    """The published studies."""
    return sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []


def _read_records(
    ledger: Ledger, shared: _SharedParts, origin: str, files: list[str], output: str | Path
) -> None:
    """Adds the records of a folder to the ledger."""
    conflicts = []
    gc.disable()  # JSON has no cycles, and the search for them takes longer than reading
    try:
        for path in files:
            try:
                record = read_record(path)
                # A copy by hand has another name; which of two counts must not depend on their names
                if os.path.basename(path) != f"{record['id']}.json":
                    belongs = f"which belongs in {record['id']}.json"
                    raise ValueError(f"{path}: the record of run {record['id']}, {belongs}")
            except ValueError as error:
                ledger.problems.append(refusal(str(error)))
                continue
            shared.share(record)
            record.pop("cell_id", None)  # another version may define a result by other settings
            if record["status"] in FINISHED:
                record["cell_id"] = shared.cell_id(record)
            if not _add(ledger, origin, record, output):
                conflicts.append(record["id"])
    finally:
        gc.enable()
    if conflicts:
        which = f"run {conflicts[0]} has" if len(conflicts) == 1 else f"{len(conflicts)} runs have"
        whose = ", ".join(sorted({ledger.origin[name] for name in conflicts}))
        folder = os.path.dirname(files[0])
        ledger.problems.append(f"{folder}: {which} another result here than in {whose}, which counts")


def _add(ledger: Ledger, origin: str, record: Record, output: str | Path) -> bool:
    """Adds a record. Returns False where the ledger has that run with another result, which then counts."""
    name = record["id"]
    first = ledger.records.setdefault(name, record)
    if first is record:
        ledger.origin[name] = origin
        return True
    same = first.get("result") == record.get("result")
    if ledger.origin[name] == "ours":
        # Publishing takes paths out, and a run of this machine leaves a folder: the first one is a copy
        better = first == record and not run_folder(output, name).exists()
    else:
        better = origin == record["cell"]["paper"]  # the study of the preset that the run was started by
    if same and better:
        ledger.origin[name] = origin
    if ledger.origin[name] == "ours":
        ledger.published.setdefault(name, (origin, record))
    return bool(same)


def _read_measures(ledger: Ledger, origin: str, folder: Path) -> None:
    for path in _json_files(folder):
        try:
            measure = read_measure(path)
        except ValueError as error:
            ledger.problems.append(refusal(str(error)))
            continue
        if ledger.measures.setdefault(measure["id"], measure) is measure:
            ledger.measured[measure["id"]] = origin


def _json_files(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [f"{folder}/{name}" for name in names if name.endswith(".json") and not name.startswith(".")]


def _some_files(folder: Path, wanted: Collection[str]) -> list[str]:
    """The records of these runs, and new ones of the others: of tens of thousands, the newest of a share.
    Names are hashes, so that a share is like the whole; to ask 97,000 files for their time takes a quarter of
    a second."""
    paths = _json_files(folder)
    chosen = {f"{folder}/{run_id}.json" for run_id in wanted}.intersection(paths)
    others = [path for path in paths if path not in chosen]
    others = others[:: 1 + len(others) // (10 * SAMPLE)]
    if len(others) > SAMPLE:
        others = heapq.nlargest(SAMPLE, others, key=lambda path: os.lstat(path).st_mtime_ns)
    return sorted([*chosen, *others])
