"""A measure: numbers that figures are drawn from and no table shows; its keys and their check."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from runs.record.schema import CellName, Label, Number, validate

MEASURE_SCHEMA = 1
#: The columns that each kind has.
MEASURES = {
    "magnitude": ("layer", "site", "d", "b"),
    "similarity": ("layer", "site", "lora_vera", "lora_random", "vera_random"),
    "matrix_fit": ("method", "rank", "parameters", "mse", "best"),
}


class Measured(TypedDict):
    """A run whose adapter was measured."""

    id: str
    cell: CellName
    label: Label
    adapter: dict[str, Any]  # its checksum and its epoch


class Measure(TypedDict):
    """Computed from the adapters of finished runs, or by a small fit (runs/measure)."""

    schema: int
    id: str
    kind: Literal["magnitude", "similarity", "matrix_fit"]
    of: list[Measured]
    settings: dict[str, Any]
    seeds: dict[str, Any]
    code: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, Any]]
    device: NotRequired[dict[str, Any]]
    seconds: NotRequired[float]
    values: dict[str, list[Any]]  # columns of equal length
    summary: NotRequired[dict[str, Number]]


def check_measure(measure: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a measure of this schema."""
    validate(Measure, measure)
    if len({len(column) for column in measure["values"].values()}) > 1:
        raise ValueError("values: columns differ in length")
    runs = {"matrix_fit": 0, "magnitude": 1, "similarity": 2}[measure["kind"]]
    if tuple(measure["values"]) != MEASURES[measure["kind"]] or len(measure["of"]) != runs:
        raise ValueError(
            f"kind {measure['kind']!r} with columns {', '.join(measure['values'])}: not known here"
        )
