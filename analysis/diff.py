"""Two records side by side: what differs and by how much, in configuration, versions, curve, result and cost.

    python -m analysis.diff ID          a run of this machine, and the published record of the same id
    python -m analysis.diff ID ID       any two

An id may be cut short. What is the same is counted, not listed (all=true lists it).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from analysis.command import open_ledger
from analysis.facts import label_of
from analysis.render import Entry, Table, render
from runs.command import OfRecords, entry_point, read, setting
from runs.errors import UserError
from runs.record import Ledger, Metric, Record, without_paths

SIZES = ("effective_batch", "micro_batch", "steps")
#: Parts of a record that are compared as keys and values, by their titles.
PARTS: dict[str, tuple[str, ...]] = {
    "configuration": ("cell", "config", "recipe", "groups", "seeds", "start", *SIZES),
    "model and data": ("model", "protocol", "data", "parameters"),
    "code": ("code",),
    "versions": ("versions",),
    "device": ("device", "determinism"),
    "result": ("status", "error", "result", "texts", "judged", "predictions", "deviations"),
    "cost": ("cost",),
}
#: Where files lie and what a run was called, which are no differences between runs.
IGNORED = ("config.output", "config.recipe", "config.debug", "cell.paper")


@dataclass(frozen=True)
class Settings(OfRecords):
    """What the table shows, and how it is printed."""

    all: bool = setting(False, "what is the same, too")
    format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="ID [ID]")
    ledger, output = open_ledger(line.settings.output), line.settings.output
    first, whose = _find(ledger, line.names[0], output)
    if len(line.names) > 1:
        second, others = _find(ledger, line.names[1], output)
    elif first["id"] in ledger.published:
        others, second = ledger.published[first["id"]]
    else:
        where = "has not run here" if whose != "ours" else "is not published"
        raise UserError(f"{first['id']} {where}: name the run that it is compared with, too")
    print(render([compared(first, second, (whose, others), line.settings.all)], line.settings.format))
    return 0


def _find(ledger: Ledger, name: str, output: str) -> tuple[Record, str]:
    """The record whose id begins with the name, and its origin. Raises UserError for none and for several."""
    ids = [i for i in ledger.records if i.startswith(name)]
    if len(ids) != 1:
        several = f"{', '.join(sorted(ids)[:5])}: give more of the id" if ids else "none"
        raise UserError(f"records in {output}/records or published that begin with {name!r}: {several}")
    return ledger.records[ids[0]], ledger.origin[ids[0]]


def compared(first: Record, second: Record, origins: tuple[str, str], every: bool = False) -> Table:
    """The table of two records: a row for each difference. origins: where they come from."""
    one, other = without_paths(first), without_paths(second)
    rows, same = list[list[Entry]](), list[str]()
    for title, keys in PARTS.items():
        a, b, cost = _leaves(one, keys), _leaves(other, keys), title == "cost"
        both = {key: (a.get(key), b.get(key)) for key in a | b}
        rows += _curves(one, other) if cost else []
        for key, (x, y) in both.items():
            if every or x != y:
                rows.append([title, key.removeprefix("config."), _word(x), _word(y), _by(x, y, cost)])
        same.append(f"{title} {sum(x == y for x, y in both.values())} of {len(both)}")
    notes = [_verdict(one, other), f"The same: {', '.join(same)}. Differences are the second less the first."]
    whose = ["ours" if of == "ours" else f"published in {of}" for of in origins]
    names = [f"{record['id']} ({of})" for record, of in zip((first, second), whose, strict=True)]
    labels = [f"{label_of(r)} on {r['label']['task']}, seed {r['cell']['seed']}" for r in (first, second)]
    title = " beside ".join(dict.fromkeys(labels))
    return Table(title, ["part", "what", *names, "difference"], rows, notes)


def _leaves(of: Mapping[str, Any], keys: Iterable[str], above: str = "") -> dict[str, Any]:
    """The values of these keys by dotted keys, those of lists by their places."""
    found = dict[str, Any]()
    for name, value in ((f"{above}{key}", of[key]) for key in keys if key in of):
        if isinstance(value, list):
            value = {str(place): one for place, one in enumerate(value)} or value
        if isinstance(value, Mapping) and value and name not in IGNORED:
            found |= _leaves(value, value, f"{name}.")
        elif name not in IGNORED:
            found[name] = value
    return found


def _curves(one: Record, other: Record) -> list[list[Entry]]:
    """A row for each column of the curves that differs: the largest difference, and where it is."""
    rows = list[list[Entry]]()
    a, b = one.get("curve") or {}, other.get("curve") or {}
    for name in a | b:
        x, y = a.get(name) or [], b.get(name) or []
        apart = [
            (abs(p - q), i) for i, (p, q) in enumerate(zip(x, y, strict=False)) if _numbers(p, q) and p != q
        ]
        if x != y and (len(x) != len(y) or a.get("epoch") != b.get("epoch")):
            rows.append(["curve", name, f"{len(x)} values", f"{len(y)} values", "not the same epochs"])
        elif apart:
            most, at = max(apart)
            where = f"largest at epoch {a['epoch'][at]:g}, {len(apart)} of {len(x)} differ"
            rows.append(["curve", name, _word(x[at]), _word(y[at]), f"{most:.3g} ({where})"])
        elif x != y:
            rows.append(["curve", name, "", "", "differs"])
    return rows


def _verdict(one: Record, other: Record) -> str:
    """Whether the two say the same, in a sentence."""
    a, b = (r.get("result") or {} for r in (one, other))
    if not a or not b:
        return "One of the two has no result."
    hashes = [r.get("predictions") or {} for r in (one, other)]
    alike = "the same" if hashes[0] == hashes[1] else "others"
    metric, key = Metric.of_record(one), a["reported"]
    values: tuple[Any, Any] = a.get(key), b.get(key)
    (x, y), where = values, f"{a['metric']} at the {key} epoch"
    if a["metric"] != b["metric"]:
        words = f"Their metrics differ: {a['metric']} and {b['metric']}"
    elif x == y:
        words = f"Result: the same {where}"
    elif _numbers(x, y):
        words = f"Result: {where} differs by {metric.scale * (y - x):+.{metric.decimals}f}"
    else:
        words = f"Result: {_word(x)} and {_word(y)}"
    return words + f"; the predictions are {alike}" * all(hashes) + "."


def _by(a: Any, b: Any, ratio: bool) -> str:
    """The second value less the first, or over it if `ratio`; "" where they are no numbers."""
    if a == b:
        return "the same"
    if not _numbers(a, b):
        return ""
    return f"{b / a:.2f}x" if ratio and a else f"{b - a:+.4g}"


def _numbers(*values: Any) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _word(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


if __name__ == "__main__":
    entry_point(main)
