"""Two records side by side: what differs and by how much, in configuration, versions, curve, result and cost.

    python -m analysis.diff ID          a run of this machine, and the published record of the same id
    python -m analysis.diff ID ID       any two

An id may be cut short. all=true lists what is the same, too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from analysis.command import open_ledger
from analysis.facts import label_of
from analysis.render import Entry, Table, render
from runs.command import OfRecords, entry_point, find_record, read, setting
from runs.errors import UserError
from runs.record import Record, without_paths

#: Where files lie and what a run was called, which are no differences between runs; and curves, which have
#: rows of their own.
IGNORED = (
    *("schema", "id", "label", "tries", "curve", "cell.paper", "overrides"),
    *("config.output", "config.recipe", "config.debug"),
)


@dataclass(frozen=True)
class Settings(OfRecords):
    """What the table shows, and how it is printed."""

    all: bool = setting(False, "what is the same, too")
    format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="ID [ID]")
    ledger, output = open_ledger(line.settings.output), line.settings.output
    first = find_record(ledger, line.names[0], output)
    whose = ledger.origin[first["id"]]
    if len(line.names) > 1:
        second = find_record(ledger, line.names[1], output)
        others = ledger.origin[second["id"]]
    elif first["id"] in ledger.published:
        others, second = ledger.published[first["id"]]
    else:
        where = "has not run here" if whose != "ours" else "is not published"
        raise UserError(f"{first['id']} {where}: name the run that it is compared with, too")
    print(render([compared(first, second, (whose, others), line.settings.all)], line.settings.format))
    return 0


def compared(first: Record, second: Record, origins: tuple[str, str], every: bool = False) -> Table:
    """The table of two records: a row for each difference. origins: where they come from."""
    one, other = without_paths(first), without_paths(second)
    a, b = leaves(one), leaves(other)
    rows: list[list[Entry]] = [
        [key, _word(a.get(key)), _word(b.get(key)), _difference(a.get(key), b.get(key))]
        for key in a | b
        if not f"{key}.".startswith(tuple(f"{of}." for of in IGNORED)) and (every or a.get(key) != b.get(key))
    ]
    whose = ["ours" if of == "ours" else f"published in {of}" for of in origins]
    names = [f"{record['id']} ({of})" for record, of in zip((first, second), whose, strict=True)]
    labels = [f"{label_of(r)} on {r['label']['task']}, seed {r['cell']['seed']}" for r in (first, second)]
    notes = [f"Reported: {_reported(one)}; {_reported(other)}. Differences are the second less the first."]
    header = ["what", *names, "difference"]
    return Table(" beside ".join(dict.fromkeys(labels)), header, [*rows, *_curves(one, other)], notes)


def leaves(of: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a record by dotted keys, those of its lists by their places."""
    found = dict[str, Any]()
    for key, value in of.items():
        if isinstance(value, list):
            value = {str(place): one for place, one in enumerate(value)} or value
        inner = isinstance(value, Mapping) and value
        found |= leaves(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return found


def _curves(one: Record, other: Record) -> list[list[Entry]]:
    """A row for each column of the curves that differs: the largest difference, and where it is."""
    rows = list[list[Entry]]()
    a, b = (of.get("curve") or {} for of in (one, other))
    for name in a | b:
        x, y = (pd.Series(of.get(name) or [], dtype=float) for of in (a, b))
        if len(x) != len(y) or a.get("epoch") != b.get("epoch"):
            rows.append([f"curve.{name}", f"{len(x)} values", f"{len(y)} values", "not the same epochs"])
        elif not x.equals(y):
            apart = (y - x).abs()[~((x == y) | (x.isna() & y.isna()))].fillna(math.inf)
            at = apart.idxmax()
            where = f"largest at epoch {a['epoch'][at]:g}, {len(apart)} of {len(x)} differ"
            rows.append([f"curve.{name}", _word(x[at]), _word(y[at]), f"{apart[at]:.3g} ({where})"])
    return rows


def _reported(record: Record) -> str:
    """The number that a table reports of a record, in words."""
    result = record.get("result")
    if not result:
        return "no result"
    return f"{result['metric']} {_word(result.get(result['reported']))} at the {result['reported']} epoch"


def _difference(a: Any, b: Any) -> str:
    """The second value less the first, and over it; "" where they are no numbers."""
    if a == b:
        return "the same"
    if not all(type(value) in (int, float) and math.isfinite(value) for value in (a, b)):
        return ""
    return f"{b - a:+.4g}" + (f" ({b / a:.2f}x)" if a else "")


def _word(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


if __name__ == "__main__":
    entry_point(main)
