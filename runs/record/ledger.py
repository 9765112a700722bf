"""Reading records: one, a study's, or all that a folder and the published studies hold."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from runs.record.cell import cell_id
from runs.record.files import PUBLISHED, read_regular, record_path, records_folder, run_folder
from runs.record.schema import FINISHED, MEASURE_SCHEMA, SCHEMA, Record, check, check_measure, migrate
from runs.record.text import printable, refusal


def read_record(path: str | Path) -> Record:
    """One record, in this schema. Raises ValueError, naming the file, for one that is damaged or of an
    unknown schema."""
    return _read(path, "record", SCHEMA, lambda record: check(migrate(record)))


def read_measure(path: str | Path) -> Record:
    """One measure. Raises ValueError, naming the file, for one that is damaged or of an unknown schema."""
    return _read(path, "measure", MEASURE_SCHEMA, check_measure)


def _read(path: str | Path, what: str, schema: int, check: Callable[[Record], None]) -> Record:
    content = read_regular(path)
    try:
        record: Record = orjson.loads(content)
        has_id = isinstance(record, dict) and isinstance(record.get("id"), str)
        if not has_id or type(record.get("schema")) is not int:
            raise ValueError("it has no id and no schema")
        if not 1 <= record["schema"] <= schema:
            raise ValueError(f"schema {record['schema']} is not known here; a newer version may read it")
        # Printable ASCII without escapes, as most records are, hides nothing: a search of it takes no time
        plain = content.isascii() and b"\\" not in content and b"\x7f" not in content
        for key, value in record.items() if not plain else ():
            if printable([key, value]) != [key, value]:
                raise ValueError(f"{printable(key)}: holds a control character")
        check(record)
    except (ValueError, RecursionError) as error:
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

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())


def read_ledger(output: str | Path = "outputs", published: bool = True) -> Ledger:
    """All records of this machine and, unless switched off, the published ones. This machine's own come
    first.

    A second record of a run with the same result is the same run, published. Where it has another result
    (another machine, other versions), the first one counts, and how many there are of each study is a
    problem. A copy of a published record is of that study, not of this machine.
    """
    ledger = Ledger()
    _read_folder(ledger, "ours", records_folder(output), Path(output) / "measures", output)
    for folder in study_folders() if published else []:
        _read_folder(ledger, folder.name, folder, folder / "measures", output)
    return ledger


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
    _read_folder(ledger, folder.name, folder, folder / "measures", "")
    return ledger


def study_folders() -> list[Path]:
    """The published studies."""
    return sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []


def _read_folder(ledger: Ledger, origin: str, records: Path, measures: Path, output: str | Path) -> None:
    """Adds the records and measures of two folders to the ledger."""
    conflicts = []
    for record in _read_all(ledger, records, read_record):
        record.pop("cell_id", None)  # another version may define a result by other settings
        if record["status"] in FINISHED:
            record["cell_id"] = cell_id(record)
        if not _add(ledger, origin, record, output):
            conflicts.append(record["id"])
    if conflicts:
        which = f"run {conflicts[0]} has" if len(conflicts) == 1 else f"{len(conflicts)} runs have"
        whose = ", ".join(sorted({ledger.origin[name] for name in conflicts}))
        ledger.problems.append(f"{records}: {which} another result here than in {whose}, which counts")
    for measure in _read_all(ledger, measures, read_measure):
        if ledger.measures.setdefault(measure["id"], measure) is measure:
            ledger.measured[measure["id"]] = origin


def _read_all(ledger: Ledger, folder: Path, read: Callable[[str], Record]) -> Iterator[Record]:
    """What the JSON files of a folder hold, in the order of their names. Those that cannot be read are
    problems of the ledger."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if not name.endswith(".json") or name.startswith("."):
            continue
        try:
            found = read(f"{folder}/{name}")
            # A copy by hand has another name; which of two counts must not depend on their names
            if read is read_record and name != f"{found['id']}.json":
                belongs = f"which belongs in {found['id']}.json"
                raise ValueError(f"{folder}/{name}: the record of run {found['id']}, {belongs}")
        except ValueError as error:
            ledger.problems.append(refusal(str(error)))
            continue
        yield found


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
