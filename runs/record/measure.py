"""A measure: numbers that figures are drawn from and no table shows; its keys and their check."""

from typing import Any, Literal

from runs.record.schema import CELL, LABEL, Number, type_of, validate

MEASURE_SCHEMA = 1
#: The columns that each kind has.
MEASURES = {
    "magnitude": ("layer", "site", "d", "b"),
    "similarity": ("layer", "site", "lora_vera", "lora_random", "vera_random"),
    "matrix_fit": ("method", "rank", "parameters", "mse", "best"),
}
#: Computed from the adapters of finished runs, or by a small fit (runs/measure).
MEASURE = type_of(
    {
        "schema": int,
        "id": str,
        "kind": Literal["magnitude", "similarity", "matrix_fit"],
        # The runs whose adapters were measured; adapter: its checksum and its epoch
        "of": [{"id": str, "cell": CELL, "label": LABEL, "adapter": dict[str, Any]}],
        "settings": dict[str, Any],
        "seeds": dict[str, Any],
        "code?": dict[str, Any],
        "versions?": dict[str, Any],
        "device?": dict[str, Any],
        "seconds?": float,
        "values": dict[str, list[Any]],  # columns of equal length
        "summary?": dict[str, Number],
    }
)


def check_measure(measure: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a measure of this schema."""
    validate(MEASURE, measure)
    if len({len(column) for column in measure["values"].values()}) > 1:
        raise ValueError("values: columns differ in length")
    runs = {"matrix_fit": 0, "magnitude": 1, "similarity": 2}[measure["kind"]]
    if tuple(measure["values"]) != MEASURES[measure["kind"]] or len(measure["of"]) != runs:
        raise ValueError(
            f"kind {measure['kind']!r} with columns {', '.join(measure['values'])}: not known here"
        )
