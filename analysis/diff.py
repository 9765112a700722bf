"""Two records side by side: what differs and by how much, in configuration, versions,
curve, result and cost.

    python -m analysis.diff ID a run of this machine, and the published record of the
    same id python -m analysis.diff ID ID any two

An id may be cut short.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.command import open_ledger
from analysis.facts import label_of
from analysis.render import Entry, Table, markdown
from runs.command import OfRecords, entry_point, find_record, read
from runs.errors import UserError
from runs.record import Record, without_paths

#: Where files lie and what a run was called, which are no differences between runs.
IGNORED: tuple[str, ...] = (
    "schema.",
    "id.",
    "label.",
    "tries.",
    "cell.paper.",
    "overrides.",
)
IGNORED += ("config.output.", "config.recipe.", "config.debug.")


def main(arguments: list[str]) -> int:
    line = read(arguments, OfRecords, names="ID [ID]", module=__name__)
    ledger, output = open_ledger(line.settings.output), line.settings.output
    first, *rest = (find_record(ledger, name, output) for name in line.names)
    whose = ledger.origin[first["id"]]
    if not rest and first["id"] not in ledger.published:
        where = "has not run here" if whose != "ours" else "is not published"
        raise UserError(
            f"{first['id']} {where}: name the run that it is compared with, too"
        )
    others, second = (
        (ledger.origin[rest[0]["id"]], rest[0])
        if rest
        else ledger.published[first["id"]]
    )
    print(markdown(compared(first, second, (whose, others))))
    return 0


def compared(first: Record, second: Record, origins: tuple[str, str]) -> Table:
    """The table of two records: a row for each difference. origins: where they come
    from."""
    both = first, second
    a, b = (leaves(without_paths(of)) for of in both)
    rows: list[list[Entry]] = [
        [key, _word(a.get(key)), _word(b.get(key)), _difference(a.get(key), b.get(key))]
        for key in a | b
        if not f"{key}.".startswith(IGNORED) and a.get(key) != b.get(key)
    ]
    whose = ["ours" if of == "ours" else f"published in {of}" for of in origins]
    names = [f"{record['id']} ({of})" for record, of in zip(both, whose, strict=True)]
    labels = [
        f"{label_of(of)} on {of['label']['task']}, seed {of['cell']['seed']}"
        for of in both
    ]
    notes = [
        f"Reported: {_reported(a)}; {_reported(b)}. Differences are the second less the first."
    ]
    return Table(
        " beside ".join(dict.fromkeys(labels)),
        ["what", *names, "difference"],
        rows,
        notes,
    )


def leaves(of: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a record by dotted keys; a list of plain values, such as a curve,
    is one of them."""
    found = dict[str, Any]()
    for key, value in of.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        inner = isinstance(value, Mapping) and value
        found |= leaves(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return found


def _reported(of: Mapping[str, Any]) -> str:
    """The number that a table reports of a record, in words. of: its leaves."""
    if "result.metric" not in of:
        return "no result"
    epoch = of["result.reported"]
    return (
        f"{of['result.metric']} {_word(of.get(f'result.{epoch}'))} at the {epoch} epoch"
    )


def _difference(a: Any, b: Any) -> str:
    """The second value less the first, and over it, or the largest difference of two
    lists, infinite where one of them lacks a number; "" where they are no numbers."""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{len(a)} and {len(b)} values"
        with contextlib.suppress(TypeError, ValueError):
            x, y = (np.array(of, dtype=float) for of in (a, b))
            differ = (x != y) & ~(np.isnan(x) & np.isnan(y))
            apart = np.abs(y[differ] - x[differ])
            largest = np.where(np.isnan(apart), math.inf, apart).max(initial=0)
            return f"at most {largest:.3g}, {differ.sum()} of {len(a)} differ"
    if not all(
        type(value) in (int, float) and math.isfinite(value) for value in (a, b)
    ):
        return ""
    return f"{b - a:+.4g}" + (f" ({b / a:.2f}x)" if a else "")


def _word(value: Any) -> str:
    text = (
        f"{value:.6g}"
        if isinstance(value, float)
        else "null"
        if value is None
        else str(value)
    )
    return text if len(text) <= 40 else f"{text[:37]}..."


if __name__ == "__main__":
    entry_point(main)
