"""Compares a record or a measure with the types of runs/record/schema.py when it is
read, and brings an older record into the present schema."""

from functools import cache
from typing import Any, NotRequired, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

# before Python 3.12, pydantic does not accept typing's own
from typing_extensions import TypedDict

from runs.record.schema import FINISHED, FailedRecord, Measure, Record


def migrate(record: dict[str, Any]) -> dict[str, Any]:
    """Brings a record of schema 2 into schema 3, in place, and returns it. It lacks the
    direction and scale of the metric, and which epoch tables report: all follow from its
    metric and task. A record of schema 3 stays as it is."""
    if record["schema"] != 2:
        return record
    record["schema"] = 3
    result = record.get("result")
    config = record.get("config")
    task = config.get("task") if isinstance(config, dict) else None
    if isinstance(result, dict) and isinstance(task, dict):
        is_fraction = result.get("metric") != "perplexity"
        reports_last = task.get("family") in ("images", "instruct", "e2e")
        result["higher_is_better"] = is_fraction
        result["scale"] = 100.0 if is_fraction else 1.0
        result["reported"] = "last" if reports_last else "best"
    return record


@cache
def _unfinished_record() -> type:
    """The type of a failed run's record. All keys of a finished record are allowed in it,
    with the same types, and only those of FailedRecord are required."""
    keys = get_type_hints(FailedRecord, include_extras=True)
    for key, kind in get_type_hints(Record, include_extras=True).items():
        if key not in keys:
            is_optional = get_origin(kind) is NotRequired
            keys[key] = kind if is_optional else NotRequired[kind]
    return TypedDict("UnfinishedRecord", keys)  # type: ignore[operator]


# Cached and built when it is first needed, since building that of Record takes 0.1 s
_adapter: Any = cache(TypeAdapter)


def check_record(record: dict[str, Any]) -> None:
    """Raises ValueError, in one line, for a value that is not a record of this schema: a
    key is missing, a value has another type, the curve has columns of several lengths
    or, in a run that is done, no entries, or the rank of VeRA or LoRA is no whole number
    (its type allows other values, since peft's methods may have several ranks)."""
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
    """Raises ValueError if a value is not of a TypedDict (`kind`). The message names the
    first key that is missing or has another type, and counts the others."""
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
