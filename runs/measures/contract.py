"""What every measure has."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from runs.record.schema import MeasuredRun


class MeasuredValues(TypedDict):
    """What a measure has found.

    of: the runs. values: columns of the same length. summary: what is printed."""

    of: list[MeasuredRun]
    settings: dict[str, object]
    seeds: dict[str, int]
    values: Mapping[str, list[Any]]
    summary: dict[str, float]


def columns(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """The columns of rows that have the same keys."""
    return {key: [row[key] for row in rows] for key in rows[0]}
