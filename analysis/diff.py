"""Shows two records side by side: what differs and by how much, in configuration,
versions, curve, result and cost.

vera-bench diff ID     a run of this machine, and the published record
vera-bench diff ID ID  any two

The beginning of an id is enough.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.command import open_ledger
from analysis.facts import label_of
from analysis.render import Entry, Table, markdown
from runs.command.errors import UserError
from runs.command.parser import RecordSettings, entry_point, read_command_line
from runs.command.records import find_record
from runs.record.redaction import without_paths
from runs.record.schema import Record

#: Beginnings of the keys that say where files lie and what a run was called, which are
#: no differences between runs. A key is compared with a dot at its end, so that "id."
#: stands for the key id and those below it, and for no key such as idle.
IGNORED_KEYS: tuple[str, ...] = (
    "schema.",
    "id.",
    "label.",
    "tries.",
    "cell.paper.",
    "overrides.",
    "config.output.",
    "config.recipe.",
    "config.debug.",
)
#: How many characters of a value a table shows.
MAX_CHARACTERS = 40


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments, RecordSettings, positional="ID [ID]", module=__name__
    )
    output = line.settings.output
    ledger = open_ledger(output)
    first, *rest = (find_record(ledger, name, output) for name in line.positional)
    first_origin = ledger.origin[first["id"]]
    if rest:
        second = rest[0]
        second_origin = ledger.origin[second["id"]]
    elif first["id"] in ledger.published:
        # the ledger's own record is this machine's
        second_origin, second = ledger.published[first["id"]]
    else:
        reason = "is not published" if first_origin == "ours" else "has not run here"
        hint = "name the run that it is compared with, too"
        raise UserError(f"{first['id']} {reason}: {hint}")
    origins = (first_origin, second_origin)
    print(markdown(difference_table(first, second, origins)))
    return 0


def difference_table(first: Record, second: Record, origins: tuple[str, str]) -> Table:
    """The table of two records: a row for each key whose values differ. origins: where
    the records come from ("ours", or the name of a study)."""
    records = (first, second)
    # the values of each record by dotted key
    left, right = (leaves(without_paths(record)) for record in records)
    rows = list[list[Entry]]()
    for key in left | right:
        values = (left.get(key), right.get(key))
        if not f"{key}.".startswith(IGNORED_KEYS) and values[0] != values[1]:
            rows.append([key, *map(_value_text, values), _difference_text(*values)])
    header = ["key"]
    labels = dict[str, None]()  # as keys, so that equal ones stand in the title once
    for record, origin in zip(records, origins, strict=True):
        source = "ours" if origin == "ours" else f"published in {origin}"
        header.append(f"{record['id']} ({source})")
        seed = record["cell"]["seed"]
        task = record["label"]["task"]
        labels[f"{label_of(record)} on {task}, seed {seed}"] = None
    reported = f"Reported: {_reported_text(left)}; {_reported_text(right)}."
    notes = [f"{reported} Differences are the second minus the first."]
    return Table(" beside ".join(labels), [*header, "difference"], rows, notes)


def leaves(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a record by dotted keys, such as config.train.lr. An entry of a list of
    mappings has its position as a key; a list of plain values, such as a curve, is one
    value, and so is an empty mapping. prefix: what all keys begin with."""
    value_by_key = dict[str, Any]()
    for key, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if isinstance(value, Mapping) and value:
            value_by_key |= leaves(value, f"{prefix}{key}.")
        else:
            value_by_key[f"{prefix}{key}"] = value
    return value_by_key


def _reported_text(values: Mapping[str, Any]) -> str:
    """The dev metric of a record at the epoch that its task's table reports, in words:
    "accuracy 0.88 at the best epoch". values: the record's `leaves`."""
    if "result.metric" not in values:
        return "no result"
    epoch = values["result.reported"]
    number = _value_text(values.get(f"result.{epoch}"))
    return f"{values['result.metric']} {number} at the {epoch} epoch"


def _difference_text(left: Any, right: Any) -> str:
    """How two values differ, as text: "+0.5 (1.20x)" for the right one minus and divided
    by the left one; for lists of numbers the largest difference; "" for values that are
    not both finite numbers."""
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return f"{len(left)} and {len(right)} values"
        # lists of other values have no largest difference
        with contextlib.suppress(TypeError, ValueError):
            return _largest_difference_text(left, right)
    if not (_is_finite(left) and _is_finite(right)):
        return ""
    difference = f"{right - left:+.4g}"
    return f"{difference} ({right / left:.2f}x)" if left else difference


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _largest_difference_text(left: list[Any], right: list[Any]) -> str:
    """How large the largest difference of two lists of numbers is, and how many numbers
    differ. The difference is infinite where only one list has a number. Raises TypeError
    or ValueError for lists of other values."""
    # null becomes NaN, and two NaN are equal here
    x, y = np.array(left, dtype=float), np.array(right, dtype=float)
    differ = (x != y) & ~(np.isnan(x) & np.isnan(y))
    sizes = np.abs(y[differ] - x[differ])
    largest = np.where(np.isnan(sizes), math.inf, sizes).max(initial=0)
    return f"at most {largest:.3g}, {differ.sum()} of {len(left)} differ"


def _value_text(value: object) -> str:
    """A value as text of at most MAX_CHARACTERS."""
    if value is None:
        return "null"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[: MAX_CHARACTERS - 3]}..."


if __name__ == "__main__":
    entry_point(main)
