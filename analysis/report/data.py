"""What the page shows, as plain data: its cells with their runs, curves, configuration and provenance."""

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import verdicts
from analysis.beside import summary
from analysis.cells import Cell, Key, label_of, row_of
from analysis.report.html import MARKS
from analysis.statistics import FACTS, cell_facts, number
from analysis.verdicts import Finding
from analysis.wanted import all_cells, wanted
from runs.record import FINISHED, Ledger, Record, best_and_last, cell_id, is_trial, one_each, protocol
from runs.record.schema import LocalPaths
from runs.record.text import megabytes, one_line

#: Parts of a record that the view of a cell shows as keys and values, beside its configuration.
SHOWN = (
    *("recipe", "seeds", "start", "code", "versions", "device", "determinism", "model", "data"),
    *("parameters", "groups", "effective_batch", "micro_batch", "steps", "config_hash", "predictions"),
    *("tries", "schema", "judged"),
)
#: Keys that hold a local path; only its last part is shown.
PATHS = {*LocalPaths.__annotations__, "output", "init_from", "from"}
COSTS = {"train_seconds": "training, s", "evaluate_seconds": "evaluation, s", "decode_seconds": "decoding, s"}
COSTS |= {"tokens_per_second": "tokens/s", "images_per_second": "images/s"}
COSTS |= {"peak_memory_bytes": "memory", "adapter_bytes": "adapter"}
#: A page stays below 20 MB: outside the tables only the newest runs are shown one by one, and older cells
#: without their runs.
RUNS_SHOWN, CELLS_SHOWN = 8_000, 20_000


@dataclass
class Entry:
    """Records of one model, row and task with the same settings.

    kind: "" for a cell of the tables, or why it is in none. whole: whether its runs are shown one by one."""

    key: Key
    records: list[Record]
    kind: str
    whole: bool = True

    def cell(self) -> Cell | None:
        """Its finished runs, one of each seed, as in the tables; None where there is none."""
        done, _ = one_each(record for record in self.records if record["status"] in FINISHED)
        return Cell(done, wanted(self.key, done)) if done else None


def entries(ledger: Ledger, in_table: Collection[str]) -> list[Entry]:
    """The entries of a ledger; every record is in one of them. in_table: the runs behind the page's
    tables."""
    groups: dict[tuple[Key, str, bool], list[Record]] = defaultdict(list)
    for record in ledger:
        key = (record["cell"]["model"], row_of(record), record["cell"]["task"])
        # A run can fail before its model, data and recipe are known.
        settings = cell_id(record) if record["status"] in FINISHED else ""
        groups[key, settings, is_trial(record["config"])].append(record)
    in_tables = all_cells(ledger)
    chosen = {record["id"] for cell in in_tables.values() for record in cell.records} | {*in_table}
    result = []
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
        result.append(Entry(key, records, kind))
    return sorted(result, key=lambda entry: (entry.key[0], entry.key[2], entry.kind != "", entry.key[1]))


def limit(everything: list[Entry], changed: Mapping[str, float]) -> list[Entry]:
    """The entries that the page has, in their order; of a large ledger those of the tables and the newest
    others. changed: when each record was written (seconds), by id. Sets `whole` of each entry."""
    newest = sorted(
        everything,
        key=lambda entry: (entry.kind == "", max(changed.get(r["id"], 0.0) for r in entry.records)),
        reverse=True,
    )
    runs = 0
    for entry in newest:
        runs += len(entry.records)
        entry.whole = entry.kind == "" or runs <= RUNS_SHOWN
    kept = set(map(id, newest[:CELLS_SHOWN]))
    return [entry for entry in everything if id(entry) in kept]


# --- the data of the page


def page_data(ledger: Ledger, shown: list[Entry], findings: list[Finding]) -> dict[str, Any]:
    """The cells with their findings and runs, the names of what the filters go by, and the words of verdicts.

    Facts (a key and a value) that many records share stand once, in "pool"; a cell and a run refer to them by
    number."""
    pool: dict[str, int] = {}
    facts = _Facts()
    position = {record["id"]: i for i, entry in enumerate(shown) for record in entry.records}
    of_entry: dict[int, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.verdict.ids:
            of_entry[position[finding.verdict.ids[0]]].append(finding)
    cells = [_entry(entry, of_entry[i], ledger, pool, facts) for i, entry in enumerate(shown)]
    names: dict[str, dict[str, str]] = {
        "model": {f.model: verdicts.MODELS[f.model] for f in findings},
        "task": {f.task: f.task for f in findings},
        "row": {f.row: f.row for f in findings},
    }
    for key, short in (("model", "m"), ("task", "t"), ("row", "r")):
        names[key] |= {cell[short]: cell[f"l{short}"] for cell in cells}
    of_cells = {word for cell in cells for word in cell["words"]}
    words = [word for word in verdicts.WORDS if word in of_cells | words_of(findings)]
    return {
        "pool": list(pool),
        "cells": cells,
        "names": {key: dict(sorted(labels.items())) for key, labels in names.items()},
        "words": [*words, *sorted(of_cells - set(words))],
        "costs": list(COSTS.values()),
        "marks": MARKS,
    }


def words_of(findings: Iterable[Finding]) -> set[str]:
    """The verdicts of these findings."""
    return {finding.verdict.word for finding in findings}


def _entry(
    entry: Entry, findings: list[Finding], ledger: Ledger, pool: dict[str, int], facts_of: "_Facts"
) -> dict[str, Any]:
    model, row, task = entry.key
    first, cell = entry.records[0], entry.cell()
    labels = {"m": first["label"]["model"], "r": label_of(first), "t": first["label"]["task"]}
    result = first.get("result") or {"metric": "metric", "scale": 100}
    metric, percent = str(result["metric"]), result["scale"] == 100
    words = list(dict.fromkeys(f.verdict.word for f in findings)) or [_other_word(entry)]
    several = summary([f.verdict.word for f in findings]) or ", ".join(words)
    records = entry.records if entry.whole else []
    facts = [facts_of(record) for record in records]
    alike = set.intersection(*map(set, facts)) if facts else set()

    def numbers(of: list[str], shared: bool) -> list[int]:
        return [pool.setdefault(fact, len(pool)) for fact in of if (fact in alike) is shared]

    data: dict[str, Any] = {
        "m": model,
        "r": row,
        "t": task,
        **{f"l{key}": one_line(label) for key, label in labels.items()},
        "kind": entry.kind,
        "here": any(ledger.origin.get(record["id"]) == "ours" for record in entry.records),
        "seeds": f"{cell.seeds if cell else 0}/{wanted(entry.key, entry.records)}"
        + (f" {cell.diverged}d" if cell and cell.diverged else ""),
        "params": f"{int((first.get('parameters') or {}).get('adapter') or 0):,}",
        "metric": metric,
        "pct": percent,
        "printed": next((f.verdict.printed for f in findings if f.table in ("table2", "table5")), None),
        "facts": cell_facts(cell, entry.whole) if cell else dict.fromkeys(FACTS, "-") | {"metric": metric},
        "word": words[0] if len(words) == 1 else several,
        "words": words,
        "found": [finding_texts(f) for f in findings],
        "dev": list(
            dict.fromkeys(one_line(word) for r in entry.records for word in r.get("deviations") or [])
        ),
        "f": numbers(facts[0], True) if facts else [],
        "runs": [
            _run(record, ledger, percent, numbers(of_run, False))
            for record, of_run in zip(records, facts, strict=True)
        ],
    }
    return data if entry.whole else data | {"ids": [record["id"] for record in entry.records]}


def _other_word(entry: Entry) -> str:
    """The word for a cell of which the paper prints nothing, or which is in no table."""
    if entry.kind:
        return "in no table"
    return "not in the paper" if entry.key[0] in verdicts.MODELS else "other model"


def finding_texts(finding: Finding) -> list[str]:
    """The table, the column, the paper's number, ours, the difference, its interval, the margin, and the
    verdict."""
    verdict, n = finding.verdict, finding.decimals
    paper = number(verdict.printed, "", n)
    if finding.spread is not None:
        paper += f" ±{finding.spread:.{n}f}"
    interval = " to ".join(number(bound, "+", n) for bound in verdict.interval) if verdict.interval else "-"
    return [
        *(finding.table, finding.column, paper, number(verdict.ours, "", n)),
        *(number(verdict.difference, "+", n), interval, f"±{verdict.margin:.1f}", verdict.word),
    ]


def _run(record: Record, ledger: Ledger, percent: bool, own: list[int]) -> dict[str, Any]:
    finished = record["status"] in FINISHED
    paper, fitted = (best_and_last(record, select) if finished else {} for select in ("paper", "crossfit"))
    cost, scale = record.get("cost") or {}, 100 if percent else 1
    data: dict[str, Any] = {"id": record["id"], "seed": record["cell"]["seed"], "st": str(record["status"])}
    data["o"] = str(ledger.origin.get(record["id"], "-"))
    for short, source, key in (("b", paper, "best"), ("l", paper, "last"), ("u", fitted, "best")):
        value = source.get(key)
        data[short] = None if value is None else round(scale * value, 3)
    data["be"] = paper.get("best_epoch")
    data["cost"] = [_cost(key, cost.get(key)) for key in COSTS]
    data["f"] = own
    if record.get("error"):
        data["err"] = str(record["error"])
    if (record.get("curve") or {}).get("epoch"):
        data["c"] = _curve(record["curve"], percent)
    return data


def _cost(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return megabytes(value) if key.endswith("bytes") else f"{value:,.1f}"


def _curve(curve: Mapping[str, Any], percent: bool) -> dict[str, Any]:
    """Short columns of numbers: percents as whole hundredths, losses with four digits; without epochs where
    these are 1, 2, 3, ..."""
    epochs = curve["epoch"]
    data: dict[str, Any] = {"n": len(epochs)}
    if epochs != [i + 1 for i in range(len(epochs))]:
        data["e"] = epochs
    for short, key in (("m", "metric"), ("tl", "train_loss"), ("dl", "dev_loss")):
        values = curve.get(key)
        if values and any(value is not None for value in values):
            data[short] = [_short(value, percent and key == "metric") for value in values]
    return data


def _short(value: float | None, percent: bool) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    return round(1e4 * value) if percent else float(f"{value:.4g}")


class _Facts:
    """Configuration and provenance of a record as "key<tab>value". Parts that records of a ledger share are
    flattened once."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, int], list[str]] = {}

    def __call__(self, record: Record) -> list[str]:
        # The recipe stands beside the configuration that it led to.
        parts = [(f"config.{key}", value) for key, value in record["config"].items() if key != "recipe"]
        parts += [(part, record[part]) for part in SHOWN if part in record]
        return [fact for name, value in parts for fact in self._of(name, value)]

    def _of(self, name: str, value: Any) -> list[str]:
        if not isinstance(value, dict | list):
            return list(_flat(name, value))
        key = (name, id(value))  # the record, and so the id, lives as long as the ledger
        if key not in self._flat:
            self._flat[key] = list(_flat(name, value))
        return self._flat[key]


def _flat(name: str, value: Any) -> Iterable[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        if name.rpartition(".")[2] in PATHS and isinstance(value, str):
            value = Path(value).name
        yield f"{name}\t{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
