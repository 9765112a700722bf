"""What the page shows, as plain data: its cells with their runs, curves, configuration and provenance."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import verdicts
from analysis.beside import summary
from analysis.cells import Cell, Key, one_each, row_of
from analysis.statistics import FACTS, cell_facts, number
from analysis.verdicts import Finding
from runs.record import FINISHED, Ledger, Record, best_and_last, cell_id, is_trial, protocol
from runs.record.text import megabytes, one_line

#: Parts of a record that a cell's view shows as keys and values.
SHOWN: tuple[str, ...] = (
    *(
        "config",
        "recipe",
        "seeds",
        "start",
        "code",
        "versions",
        "device",
        "determinism",
        "model",
        "data",
        "parameters",
    ),
    *(
        "groups",
        "effective_batch",
        "micro_batch",
        "steps",
        "config_hash",
        "predictions",
        "tries",
        "schema",
        "judged",
    ),
)
#: Where things lay is nobody's business: of a path the last part is shown.
PLACES = {
    "path",
    "data_dir",
    "train_file",
    "dev_file",
    "cache_dir",
    "mt_bench_dir",
    "template",
    "output",
    "init_from",
    "from",
}
COSTS = {"train_seconds": "training, s", "evaluate_seconds": "evaluation, s", "decode_seconds": "decoding, s"}
COSTS |= {"tokens_per_second": "tokens/s", "images_per_second": "images/s"}
COSTS |= {"peak_memory_bytes": "memory", "adapter_bytes": "adapter"}
#: A page stays below 20 MB: of what is in no table the newest runs are shown one by one, and of older ones
#: the cell alone.
RUNS_SHOWN, CELLS_SHOWN = 8_000, 20_000


@dataclass
class Entry:
    """Records of one model, row and task with the same settings. `kind` in words: in the tables, or why not.
    `whole`: whether its runs are shown one by one."""

    key: Key
    records: list[Record]
    kind: str
    whole: bool = True

    def cell(self) -> Cell | None:
        """What of it is a result; of several records of a seed one, as in the tables."""
        done, _ = one_each(record for record in self.records if record["status"] in FINISHED)
        return Cell(done, verdicts.wanted(self.key)) if done else None


def entries(ledger: Ledger) -> list[Entry]:
    """Every record is in one of them."""
    groups: dict[tuple[Key, str, bool], list[Record]] = defaultdict(list)
    for record in ledger:
        cell = record["cell"]
        # A failed run's record has no model, data or recipe: it may have failed before they were known.
        settings = cell_id(record) if record["status"] in FINISHED else ""
        groups[(cell["model"], row_of(record), cell["task"]), settings, is_trial(record["config"])].append(
            record
        )
    in_tables = verdicts.all_cells(ledger)
    chosen = {record["id"] for cell in in_tables.values() for record in cell.records}
    found = []
    for (key, _, trial), records in groups.items():
        records.sort(key=lambda r: (r["cell"]["seed"], r["id"]))
        if any(record["id"] in chosen for record in records):
            kind = ""
        elif trial:
            kind = "A trial (stopped early, or judged on training rows): in no table."
        elif not any(record["status"] in FINISHED for record in records):
            kind = "No run has finished: in no table."
        elif key in in_tables and protocol(records[0]) != protocol(in_tables[key].records[0]):
            kind = f"Protocol {protocol(records[0])}, and the cell of the tables is of a newer one."
        else:
            kind = "Other settings than the cell of the tables."
        found.append(Entry(key, records, kind))
    return sorted(found, key=lambda entry: (entry.key[0], entry.key[2], entry.kind != "", entry.key[1]))


def shown(found: list[Entry], changed: Mapping[str, float]) -> list[Entry]:
    """The entries that the page has, in their order; of a large ledger only those of the tables and the
    newest others, by when their records were written."""
    newest = sorted(
        found,
        key=lambda entry: (entry.kind == "", max(changed.get(r["id"], 0.0) for r in entry.records)),
        reverse=True,
    )
    runs = 0
    for entry in newest:
        runs += len(entry.records)
        entry.whole = entry.kind == "" or runs <= RUNS_SHOWN
    kept = set(map(id, newest[:CELLS_SHOWN]))
    return [entry for entry in found if id(entry) in kept]


# --- the data of the page


def page_data(ledger: Ledger, parts: list[Entry], findings: list[Finding]) -> dict[str, Any]:
    """The cells with their findings and runs, the names of what the filters go by, and the words of verdicts.

    Facts (a key and a value) that many records share stand once, in "pool"; a cell and a run name them by
    number."""
    pool: dict[str, int] = {}
    facts = _Facts()
    place = {record["id"]: i for i, entry in enumerate(parts) for record in entry.records}
    told: dict[int, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.verdict.ids:
            told[place[finding.verdict.ids[0]]].append(finding)
    cells = [_entry(entry, told[i], ledger, pool, facts) for i, entry in enumerate(parts)]
    names: dict[str, dict[str, str]] = {"model": {}, "task": {}, "row": {}}
    for f in findings:
        names["model"][f.model] = verdicts.MODELS[f.model]
        names["task"][f.task] = f.task
        names["row"][f.row] = f.row
    for cell in cells:
        for key, short in (("model", "m"), ("task", "t"), ("row", "r")):
            names[key][cell[short]] = cell[f"l{short}"]
    words = [
        word for word in verdicts.WORDS if any(word in c["words"] for c in cells) or has_word(findings, word)
    ]
    others = sorted({word for c in cells for word in c["words"]} - set(words))
    ordered = {key: dict(sorted(found.items())) for key, found in names.items()}
    return {
        "pool": list(pool),
        "cells": cells,
        "names": ordered,
        "words": [*words, *others],
        "costs": list(COSTS.values()),
    }


def has_word(findings: list[Finding], word: str) -> bool:
    """Whether any of the findings has this verdict."""
    return any(f.verdict.word == word for f in findings)


def _entry(
    entry: Entry, findings: list[Finding], ledger: Ledger, pool: dict[str, int], facts_of: "_Facts"
) -> dict[str, Any]:
    model, row, task = entry.key
    first, cell = entry.records[0], entry.cell()
    label = first.get("label") or {}
    result = first.get("result") or {"metric": "metric", "scale": 100}
    metric, percent = str(result["metric"]), result["scale"] == 100
    words = list(dict.fromkeys(f.verdict.word for f in findings)) or [_other_word(entry)]
    records = entry.records if entry.whole else []
    facts = [facts_of(record) for record in records]
    alike = set.intersection(*map(set, facts)) if facts else set()
    printed = next((f.verdict.printed for f in findings if f.table in ("table2", "table5")), None)
    return {
        "m": model,
        "r": row,
        "t": task,
        "lm": one_line(str(label.get("model", model))),
        "lr": one_line(str(label.get("row", row))),
        "lt": one_line(str(label.get("task", task))),
        "kind": entry.kind,
        "seeds": f"{cell.seeds if cell else 0}/{verdicts.wanted(entry.key)}"
        + (f" {cell.diverged}d" if cell and cell.diverged else ""),
        "params": f"{int((first.get('parameters') or {}).get('adapter') or 0):,}",
        "metric": metric,
        "pct": percent,
        "printed": printed,
        "facts": cell_facts(cell, entry.whole) if cell else dict.fromkeys(FACTS, "-") | {"metric": metric},
        "word": words[0]
        if len(words) == 1
        else summary([f.verdict.word for f in findings]) or ", ".join(words),
        "words": words,
        "found": [finding_texts(f) for f in findings],
        "dev": list(
            dict.fromkeys(one_line(word) for r in entry.records for word in r.get("deviations") or [])
        ),
        "f": [pool.setdefault(fact, len(pool)) for fact in facts[0] if fact in alike] if facts else [],
        "runs": [
            _run(
                record,
                ledger,
                percent,
                [pool.setdefault(fact, len(pool)) for fact in mine if fact not in alike],
            )
            for record, mine in zip(records, facts, strict=True)
        ],
    } | ({} if entry.whole else {"ids": [record["id"] for record in entry.records]})


def _other_word(entry: Entry) -> str:
    """The word for a cell of which the paper prints nothing, or which is in no table."""
    if entry.kind:
        return "in no table"
    return "not in the paper" if entry.key[0] in verdicts.MODELS else "other model"


def finding_texts(f: Finding) -> list[str]:
    """The table, the column, the paper's number, ours, the difference, its interval, the margin, and the
    verdict."""
    said, n = f.verdict, f.decimals
    bounds = said.interval
    between = f"{number(bounds[0], '+', n)} to {number(bounds[1], '+', n)}" if bounds else "-"
    paper = number(said.printed, "", n) + (f" ±{f.spread:.{n}f}" if f.spread is not None else "")
    margin = f"±{said.margin:.1f}"
    return [
        f.table,
        f.column,
        paper,
        number(said.ours, "", n),
        number(said.difference, "+", n),
        between,
        margin,
        said.word,
    ]


def _run(record: Record, ledger: Ledger, percent: bool, own: list[int]) -> dict[str, Any]:
    finished = record["status"] in FINISHED
    paper, fitted = (best_and_last(record, select) if finished else {} for select in ("paper", "crossfit"))
    scale = 100 if percent else 1
    made: dict[str, Any] = {"id": record["id"], "seed": record["cell"]["seed"], "st": str(record["status"])}
    made["o"] = str(ledger.origin.get(record["id"], "-"))
    for short, source, key in (("b", paper, "best"), ("l", paper, "last"), ("u", fitted, "best")):
        value = source.get(key)
        made[short] = None if value is None else round(scale * value, 3)
    made["be"] = paper.get("best_epoch")
    cost = record.get("cost") or {}
    made["cost"] = [_cost(key, cost.get(key)) for key in COSTS]
    made["f"] = own
    if record.get("error"):
        made["err"] = str(record["error"])
    if (record.get("curve") or {}).get("epoch"):
        made["c"] = _curve(record["curve"], percent)
    return made


def _cost(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return megabytes(value) if key.endswith("bytes") else f"{value:,.1f}"


def _curve(curve: Mapping[str, Any], percent: bool) -> dict[str, Any]:
    """Columns of numbers, short: percents as whole hundredths, losses with four digits, epochs left out where
    they count."""
    epochs = curve["epoch"]
    made: dict[str, Any] = {"n": len(epochs)}
    if epochs != [i + 1 for i in range(len(epochs))]:
        made["e"] = epochs
    for short, key in (("m", "metric"), ("tl", "train_loss"), ("dl", "dev_loss")):
        values = curve.get(key)
        if values and any(value is not None for value in values):
            made[short] = [_short(value, percent and key == "metric") for value in values]
    return made


def _short(value: float | None, percent: bool) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    return round(1e4 * value) if percent else float(f"{value:.4g}")


class _Facts:
    """Configuration and provenance of a record as "key<tab>value". Parts that records of a ledger share are
    told once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], list[str]] = {}

    def __call__(self, record: Record) -> list[str]:
        found = []
        for part in SHOWN:
            if part == "config":
                for key, value in record["config"].items():
                    if key != "recipe":  # it is told beside the configuration that came of it
                        found += self._of(f"config.{key}", value)
            elif part in record:
                found += self._of(part, record[part])
        return found

    def _of(self, name: str, value: Any) -> list[str]:
        if not isinstance(value, dict | list):
            return list(_flat(name, value))
        # Of a record of the ledger, which stays while the page is made
        known = self._known.get((name, id(value)))
        if known is None:
            known = self._known[name, id(value)] = list(_flat(name, value))
        return known


def _flat(name: str, value: Any) -> Iterable[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        if name.rpartition(".")[2] in PLACES and isinstance(value, str):
            value = Path(value).name
        yield f"{name}\t{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
