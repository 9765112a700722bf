"""What language models forget: the cross-entropy on a fixed text after training less that of the base model,
as a column of tables 3, 4 and 13."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from analysis.cells import Cell
from analysis.table import Table, TableCell
from runs.record import Record, sample_deviation


def measured(record: Record) -> dict[str, Any] | None:
    """A record's forgetting; None where it lacks one, or has no finite number."""
    forgetting = (record.get("result") or {}).get("forgetting")
    whole = forgetting and forgetting["before"] is not None and forgetting["after"] is not None
    return forgetting if whole else None


def change(record: Record) -> float | None:
    """Nats a token that a run has lost on its text (above 0), or gained."""
    forgetting = measured(record)
    return float(forgetting["after"] - forgetting["before"]) if forgetting else None


def texts_of(records: Iterable[Record]) -> list[str]:
    """The hashes of the texts that records measured their forgetting on, the most frequent first."""
    counts = Counter(of["sha256"] for record in records if (of := measured(record)))
    return [sha256 for sha256, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def with_forgetting(table: Table, cells: Iterable[Cell]) -> Table:
    """The table with a column before its last one: by how much the runs of each row of ours forget. Without
    records that measured it, the table as it is. Another text than that of most runs is not compared."""
    records = {record["id"]: record for cell in cells for record in cell.records}
    if not (texts := texts_of(records.values())):
        return table
    rows, others = [], list[str]()
    for row in table.rows:
        ids = tuple(dict.fromkeys(run for cell in row for run in cell.ids))
        first = row[1].text == "ours" and row[0].text
        number = _number([records[i] for i in ids if i in records], texts[0]) if first else ""
        if number.endswith("another text"):
            others.append(row[0].text)
            number = "-"
        rows.append([*row[:-1], TableCell(number, ids if number not in ("", "-") else ()), row[-1]])
    alike = [of for r in records.values() if (of := measured(r)) and of["sha256"] == texts[0]]
    before = sorted({f"{of['before']:.3f}" for of in alike})
    between = before[0] if len(before) == 1 else f"{before[0]} to {before[-1]}"
    notes = [
        f"forgetting: cross-entropy on a text that is not trained on ({alike[0]['text']},"
        f" {alike[0]['tokens']} tokens), after the last epoch less that of the base model ({between}); nats a"
        " token, less is better."
    ]
    if others:
        notes.append(f"forgetting on another text, not shown: {', '.join(dict.fromkeys(others))}.")
    header = [*table.header[:-1], "forgetting", table.header[-1]]
    return replace(table, header=header, rows=rows, notes=[*table.notes, *notes])


def _number(records: Sequence[Record], sha256: str) -> str:
    """The median over these runs and its spread, with how many have it where some lack it; "-" where all
    do."""
    every = [of for r in records if (of := measured(r))]
    values = [of["after"] - of["before"] for of in every if of["sha256"] == sha256]
    if not values:
        return "another text" if every else "-"
    deviation = sample_deviation(values)
    spread = f" +-{deviation:.3f}" if deviation is not None else ""
    missing = f" ({len(values)}/{len(records)})" if len(values) < len(records) else ""
    return f"{statistics.median(values):+.3f}{spread}{missing}"
