"""Reading records: one, a study's, or all that a folder and the published studies hold."""

import contextlib
import gc
import heapq
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from runs.record.cell import cell_id, protocol
from runs.record.files import read_regular, records_folder, run_folder
from runs.record.measure import MEASURE_SCHEMA, check_measure
from runs.record.schema import FINISHED, MIGRATIONS, SCHEMA, Record, check

#: Studies that the project publishes.
PUBLISHED = Path(__file__).parent.parent / "records"


def read_record(path: str | Path) -> Record:
    """One record, in this schema. Raises ValueError, naming the file, for one that is damaged or of a schema
    not known here."""
    record = _read(path, "record")
    while record["schema"] in MIGRATIONS:
        record = MIGRATIONS[record["schema"]](record)
    if record["schema"] != SCHEMA:
        newer = "made by a newer version; update this one" if record["schema"] > SCHEMA else "not known"
        raise ValueError(f"{path}: a record of schema {record['schema']}, {newer} (here: {SCHEMA})")
    try:
        check(record)
    except ValueError as error:
        raise ValueError(f"{path}: not a record ({error})") from None
    return record


def read_measure(path: str | Path) -> Record:
    """One measure. Raises ValueError, naming the file, for one that is damaged or of a schema not known
    here."""
    measure = _read(path, "measure")
    if measure["schema"] != MEASURE_SCHEMA:
        raise ValueError(
            f"{path}: a measure of schema {measure['schema']}, not known (here: {MEASURE_SCHEMA})"
        )
    try:
        check_measure(measure)
    except ValueError as error:
        raise ValueError(f"{path}: not a measure ({error})") from None
    return measure


def _read(path: str | Path, what: str) -> Record:
    content = read_regular(path)
    try:
        found = orjson.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a {what} ({error})") from None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("id"), str)
        or type(found.get("schema")) is not int
    ):
        raise ValueError(f"{path}: not a {what}")
    return found


@dataclass
class Ledger:
    """Records by run id, where each comes from ("ours" or the study's name), and files that could not be
    read.

    measures: by their own ids; what figures are drawn from that is no run, and in measured where they come
    from. published: of runs that were done here, too, the published records, by study and id.
    """

    records: dict[str, Record] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    measures: dict[str, Record] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    published: dict[str, tuple[str, Record]] = field(default_factory=dict)
    _known: "_Parts" = field(default_factory=lambda: _Parts(), repr=False, compare=False)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())


class _Parts:
    """Parts that many records have alike, kept once: of 100,000 records they are two thirds of the memory."""

    OF_RECORD = (
        *("label", "recipe", "seeds", "code", "versions", "device", "determinism", "data", "parameters"),
        *("groups", "deviations", "tries"),
    )
    OF_CONFIG = ("model", "task", "method", "train", "recipe")
    OF_CURVE = ("epoch", "step", "lr")

    def __init__(self) -> None:
        self._parts: dict[bytes, Any] = {}
        self._cells: dict[tuple[Any, ...], str] = {}

    def share(self, record: Record) -> None:
        """Puts the parts of an earlier record in the place of those of this one that are equal to them, to
        the bit."""
        parts, config, curve = self._parts, record["config"], record.get("curve", {})
        for holder, keys in ((record, self.OF_RECORD), (config, self.OF_CONFIG), (curve, self.OF_CURVE)):
            for key in keys:
                if key in holder:
                    holder[key] = parts.setdefault(orjson.dumps(holder[key]), holder[key])
        for words, names in (
            (record, ("status", "model")),
            (record["cell"], ("paper", "row", "model", "task")),
            (config, ("select", "keep", "adapter_precision", "device", "output")),
            (record.get("result", {}), ("metric", "reported", "select")),
        ):
            for name in names:
                if type(words.get(name)) is str:
                    words[name] = sys.intern(words[name])

    def cell_id(self, record: Record) -> str:
        """`cell_id` of a finished record whose parts are shared, made once for the same parts."""
        config, start = record["config"], record.get("start") or {}
        parts = (
            record["data"],
            record["recipe"],
            *(config[key] for key in ("model", "task", "method", "train")),
        )
        key = (*map(id, parts), record["model"], start.get("id"), protocol(record))
        if key not in self._cells:
            self._cells[key] = sys.intern(cell_id(record))
        return self._cells[key]


#: How many of a folder's newest records say what runs cost, where not all are wanted.
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
    ledger = Ledger()
    folders = [("ours", records_folder(output), Path(output) / "measures")]
    if published:
        folders += [(folder.name, folder, folder / "measures") for folder in study_folders()]
    for origin, folder, measures in folders:
        ours = _json_files(folder) if wanted is None or origin != "ours" else _some_files(folder, wanted)
        _read_into(ledger, origin, folder, ours, measures, output)
    return ledger


def read_study(folder: Path) -> Ledger:
    """The records and measures of one published study alone."""
    ledger = Ledger()
    _read_into(ledger, folder.name, folder, _json_files(folder), folder / "measures", "")
    return ledger


def study_folders() -> list[Path]:
    """The published studies."""
    return sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []


def _is_better(known: str, origin: str, first: Record, again: Record, output: str | Path) -> bool:
    """Whether a second record of a run says better where it comes from: the first was copied from it
    (publishing takes paths out, and a run of this machine leaves a folder), or the study is that of its
    preset."""
    if known == "ours":
        return first == again and not run_folder(output, first["id"]).exists()
    return origin == again["cell"]["paper"]


def _printable(error: ValueError) -> str:
    """A file's name may be no text that can be written."""
    return str(error).encode("utf-8", "backslashreplace").decode()


def _read_into(
    ledger: Ledger, origin: str, folder: Path, files: Sequence[str], measures: Path, output: str | Path
) -> None:
    others, known = [], ledger._known
    with _no_garbage():
        for path in files:
            try:
                record = read_record(path)
            except ValueError as error:
                ledger.problems.append(_printable(error))
                continue
            # A copy by hand has another name; which of two would count must not hang on their names.
            if os.path.basename(path) != f"{record['id']}.json":
                ledger.problems.append(
                    f"{path}: the record of run {record['id']}, which belongs in {record['id']}.json"
                )
                continue
            known.share(record)
            record.pop("cell_id", None)  # what another version said defines a result
            if record["status"] in FINISHED:
                record["cell_id"] = known.cell_id(record)
            first = ledger.records.setdefault(record["id"], record)
            if first is not record and first.get("result") != record.get("result"):
                others.append(record["id"])
            elif first is record or _is_better(ledger.origin[record["id"]], origin, first, record, output):
                ledger.origin[record["id"]] = origin
            if first is not record and ledger.origin[record["id"]] == "ours":
                ledger.published.setdefault(record["id"], (origin, record))
        for path in _json_files(measures):
            try:
                measure = read_measure(path)
            except ValueError as error:
                ledger.problems.append(_printable(error))
                continue
            if ledger.measures.setdefault(measure["id"], measure) is measure:
                ledger.measured[measure["id"]] = origin
    if others:
        which = f"run {others[0]} has" if len(others) == 1 else f"{len(others)} runs have"
        whose = ", ".join(sorted({ledger.origin[name] for name in others}))
        ledger.problems.append(f"{folder}: {which} another result here than in {whose}, which counts")


def _json_files(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [f"{folder}/{name}" for name in names if name.endswith(".json") and not name.startswith(".")]


def _some_files(folder: Path, wanted: Collection[str]) -> list[str]:
    """The records of these runs, and new ones of the others: of tens of thousands, the newest of a share.
    Names are hashes, so that a share is like the whole; to ask 97,000 files for their time takes a
    quarter of a second."""
    paths = _json_files(folder)
    chosen = {f"{folder}/{run_id}.json" for run_id in wanted}.intersection(paths)
    others = [path for path in paths if path not in chosen]
    others = others[:: 1 + len(others) // (10 * SAMPLE)]
    if len(others) > SAMPLE:
        others = heapq.nlargest(
            SAMPLE, others, key=lambda path: os.stat(path, follow_symlinks=False).st_mtime_ns
        )
    return sorted([*chosen, *others])


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Without the search for cycles, which JSON has none of: over thousands of records it takes longer than
    reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
