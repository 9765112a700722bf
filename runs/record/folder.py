"""The records of an output folder, or of a ledger of rows, each read only when it is
asked for.

A command that needs a few runs opens a few files, however many thousand records the
folder holds. `read_ledger` reads them all, for tables."""

import heapq
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from runs.record.ledger import Ledger, read_record, record_path
from runs.record.schema import Record
from runs.record.text import error_line


class RecordFolder:
    """The records of this machine in an output folder.

    problems: a line for each file that could not be read, as far as it was asked for."""

    def __init__(self, output: str | Path) -> None:
        self.output = output
        self.problems: list[str] = []
        self._records: dict[str, Record | None] = {}

    def get(self, run_id: str | None) -> Record | None:
        """The record of a run, finished or failed; None without one that can be
        read."""
        if not run_id:
            return None
        if run_id not in self._records:
            self._records[run_id] = self._read(record_path(self.output, run_id))
        return self._records[run_id]

    @property
    def _folder(self) -> Path:
        """The folder of the records' files, whichever run they are of."""
        return record_path(self.output, "any").parent

    def ids_that_begin_with(self, prefix: str) -> list[str]:
        """The ids with this prefix of all runs with a record. It opens no file."""
        folder = self._folder
        return sorted(path.stem for path in folder.glob(f"{prefix}*.json"))

    def newest(self, count: int) -> list[Record]:
        """The records in the `count` files that were written last, the newest first,
        without those that cannot be read."""
        folder = self._folder
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            files = [entry for entry in entries if _is_record(entry)]
        newest = heapq.nlargest(
            count, files, key=lambda entry: entry.stat().st_mtime_ns
        )
        records = [self.get(entry.name.removesuffix(".json")) for entry in newest]
        return [record for record in records if record is not None]

    def _read(self, path: Path) -> Record | None:
        """The record in a file; None if there is none, or if it cannot be read, which is
        then one of the problems."""
        try:
            return read_record(path)
        except ValueError as error:
            if path.exists():
                self.problems.append(error_line(str(error)))
            return None


class WholeRecords(Mapping[str, Record]):
    """The records of a ledger of rows (`read_ledger` with make_row), by run id. Each is
    read from its file when it is asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __getitem__(self, run: str) -> Record:
        return self.ledger.whole_record(run)

    def __contains__(self, run: object) -> bool:
        return run in self.ledger.records

    def __iter__(self) -> Iterator[str]:
        return iter(self.ledger.records)

    def __len__(self) -> int:
        return len(self.ledger.records)


def _is_record(entry: "os.DirEntry[str]") -> bool:
    """Whether a file of records/ is a record, and not a temporary file."""
    return entry.name.endswith(".json") and entry.name[0] != "."
