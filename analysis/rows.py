"""A run as a row of `frame.runs`, made from its record: what is kept in memory of tens
of thousands of records."""

import hashlib
import math
import sys
from collections import namedtuple
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from analysis import facts
from analysis.facts import FACTS, FACTS_OF_EVERY_RUN, kind_of, settings_of
from runs.record import schema
from runs.record.schema import Record


class RunRow(namedtuple("RunRow", [*FACTS, "settings"])):  # type: ignore[misc]
    """A run as a row of `runs`: its FACTS, and its settings (`settings_of`)."""

    __slots__ = ()
    # fields that code reads as attributes, for the type checker
    id: str
    model: str
    task: str
    conf_model: str
    conf_row: str


def files_of_code() -> list[Path]:
    """The files that make a row from a record: this one, the facts, and all of
    runs/record. A change in one of them makes all kept rows anew."""
    files_of_records = Path(schema.__file__).parent.glob("*.py")
    return sorted([Path(__file__), Path(facts.__file__), *files_of_records])


@cache
def hash_of_code() -> str:
    """The hash of `files_of_code`."""
    digest = hashlib.sha256()
    for path in files_of_code():
        digest.update(path.read_bytes())
    return digest.hexdigest()


class RowMaker:
    """Makes a run's row from its record (`runs.record.kept_rows.MakesRows`). Rows share
    equal texts, settings, measurements and sources, so that thousands of them need
    little memory.

    settings: by cell. measurements: by way and protocol. sources: by their text."""

    def __init__(self) -> None:
        self.settings = dict[str, dict[str, Any]]()
        self.measurements = dict[tuple[Any, ...], dict[str, str]]()
        self.sources = dict[str, Any]()

    @property
    def code(self) -> str:
        """The hash of the code that rows depend on. Rows that were kept on disk by other
        code are made again."""
        return hash_of_code()

    def restore(self, values: Iterable[Any]) -> RunRow:
        """The row that was kept on disk as these values, in the order of its fields."""
        return RunRow._make(values)

    def __call__(self, record: Record) -> RunRow:
        """The row of a record. A failed run has NaN for what only a finished run has."""
        is_failed = kind_of(record) == "failed"
        columns = FACTS_OF_EVERY_RUN if is_failed else FACTS
        values = {name: fact.read(record) for name, fact in columns.items()}
        if not is_failed:
            self._share(values, record)
        for name, value in values.items():
            if type(value) is str:
                values[name] = sys.intern(value)
        names: tuple[str, ...] = RunRow._fields
        return RunRow._make(values.get(name, math.nan) for name in names)

    def _share(self, values: dict[str, Any], record: Record) -> None:
        """Replaces settings, measurement and sources by equal ones of an earlier
        row, if there is one."""
        cell = values["cell"]
        if cell not in self.settings:
            self.settings[cell] = settings_of(record)
        values["settings"] = self.settings[cell]
        # together they have all phrases of the measurement
        way_and_protocol = (values["way"], values["protocol"])
        values["measurement"] = self.measurements.setdefault(
            way_and_protocol, values["measurement"]
        )
        text_of_sources = str(values["sources"])
        values["sources"] = self.sources.setdefault(text_of_sources, values["sources"])
