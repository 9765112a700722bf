"""What every measure returns."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from runs.record.schema import MeasuredRun


class MeasuredValues(TypedDict):
    """The result of a measure.

    Attributes:
        of: the runs that it measures.
        settings: what else the values depend on.
        seeds: by what each of them draws.
        values: columns of the same length, by name.
        summary: the numbers that are printed, by what they are called.
    """

    of: list[MeasuredRun]
    settings: dict[str, object]
    seeds: dict[str, int]
    values: Mapping[str, list[Any]]
    summary: dict[str, float]


def columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """The columns of rows that have the same keys, by these keys. There is at least one
    row."""
    return {key: [row[key] for row in rows] for key in rows[0]}
