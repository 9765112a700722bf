"""Compares a record or a measure with the types of runs/record/schema.py when it is
read, and brings an older record into today's form."""

from functools import cache
from typing import Any, NotRequired, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

# before Python 3.12, pydantic does not accept typing's own
from typing_extensions import TypedDict

from runs.record.schema import FINISHED, FailedRecord, Measure, Record


def migrate(record: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 2 in this one: it lacks the direction and scale of the metric,
    and the epoch that tables report."""
    if record["schema"] == 2:
        record["schema"] = 3
        result = record.get("result")
        config = record.get("config")
        task = config.get("task") if isinstance(config, dict) else None
        if isinstance(result, dict) and isinstance(task, dict):
            fraction = result.get("metric") != "perplexity"
            last = task.get("family") in ("images", "instruct", "e2e")
            result |= {
                "higher_is_better": fraction,
                "scale": 100.0 if fraction else 1.0,
            }
            result["reported"] = "last" if last else "best"
    return record


@cache
def _unfinished_record() -> type:
    """What the record of a failed run is checked against: it may have the other keys of
    a record too, and then they have the same types."""
    keys = get_type_hints(FailedRecord, include_extras=True)
    for key, kind in get_type_hints(Record, include_extras=True).items():
        if key not in keys:
            is_optional = get_origin(kind) is NotRequired
            keys[key] = kind if is_optional else NotRequired[kind]
    return TypedDict("UnfinishedRecord", keys)  # type: ignore[operator]


# as it is asked for: the one of a record takes 0.1 s
_adapter: Any = cache(TypeAdapter)


def check_record(record: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a record of this schema:
    a key is missing, a value has another type, or the curve's columns differ in
    length."""
    if record.get("status") not in FINISHED:
        validate(_unfinished_record(), record)
        return
    validate(Record, record)
    lengths = {
        len(column) for column in record["curve"].values() if isinstance(column, list)
    }
    if len(lengths) > 1:
        raise ValueError("curve: columns differ in length")
    if record["status"] == "done" and lengths == {0}:
        raise ValueError("curve: done, and without an epoch")
    method = record["config"]["method"]
    if method["kind"] in ("vera", "lora") and type(method.get("rank")) is not int:
        raise ValueError(
            f"config.method.rank: a rank of {method['kind']} is a whole number"
        )


def validate(kind: type, value: object) -> None:
    """Raises ValueError for a value's first key that is missing or of another type than
    the TypedDict `kind` says."""
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first, *rest = error.errors(
            include_url=False, include_context=False, include_input=False
        )
        place = ".".join(map(str, first["loc"])) or "it"
        message = first["msg"]
        text = f"{place}: {message[:1].lower()}{message[1:]}"
        if rest:
            text += f", and {len(rest)} more"
        raise ValueError(text) from None


def check_measure(measure: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a measure of this
    schema."""
    validate(Measure, measure)
    if len({len(column) for column in measure["values"].values()}) > 1:
        raise ValueError("values: columns differ in length")
