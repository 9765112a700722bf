"""What every measure has."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from runs.record.schema import Record


class MeasuredRun(TypedDict):
    """A run that was measured. adapter: which of its adapters, and a hash of it."""

    id: str
    cell: Record
    label: Record
    adapter: dict[str, str | float]


class Measure(TypedDict):
    """What a measure has found.

    of: the runs. values: columns of the same length. summary: what is printed."""

    of: list[MeasuredRun]
    settings: Mapping[str, object]
    seeds: dict[str, int]
    values: Mapping[str, Sequence[object]]
    summary: dict[str, float]


def columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """The columns of rows that have the same keys."""
    return {key: [row[key] for row in rows] for key in rows[0]}
