"""Table 3's rows: the scores of a cell's texts."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis import beside
from analysis.paper import SCORES
from analysis.render import NONE, Cell, Entry, Number, count
from analysis.tables.view import View, gap


def scored(
    view: View, columns: Iterable[str], own: dict[str, Cell], those: pd.DataFrame | None = None
) -> list[list[Entry]]:
    """Our row, the difference, and the numbers by another length penalty and of the best epoch."""
    cell = own["bleu"]
    runs = view.runs[view.runs.id.isin(cell.ids)]
    entries = [(run, entry) for run in runs.itertuples() for entry in (run.texts or [])]
    usual, *others = dict.fromkeys(entry["variant"] for _, entry in entries) or [None]
    complete = cell.runs >= cell.wanted
    whose = view.whose
    status, lines = (
        whose if complete else f"{whose}, {cell.runs} of {cell.wanted} seeds",
        list[list[Entry]](),
    )
    if those is not None and complete and len(those):
        if (~those.same_size).any():
            status = f"{whose}, another size: not compared"
        else:
            # Five scores of one set of texts have no mean
            status = beside.status(those, mean=False) or status
            of = {row.column: row for row in those.itertuples() if row.n >= row.wanted}
            found = [gap(of[c], _decimals(c)) if c in of else NONE for c in columns]
            lines.append(["", "difference", "", *found, ""])
    if cell.diverged:
        status += f", {cell.diverged} diverged"
    words = dict(zip(those.column, those.word, strict=True)) if those is not None else {}
    head = [cell.label, whose, count(cell)]
    values = [_score(own.get(c), c, words.get(c, "")) for c in columns]
    lines.insert(0, [*head, *values, status])
    for other in others:
        lines.append(
            [
                "",
                f"{whose}, length penalty {other}",
                "",
                *_of_texts(runs, columns, "last", other, cell.wanted),
                "",
            ]
        )
    if any(e["which"] == "best" and e["epoch"] != run.last_epoch for run, e in entries):
        lines.append(
            ["", f"{whose}, best epoch", "", *_of_texts(runs, columns, "best", usual, cell.wanted), ""]
        )
    return lines


def _score(cell: Cell | None, column: str, verdict: str) -> Entry:
    if cell is None or not cell.n:
        return NONE
    known = [value for value in cell.values if value == value]
    return _over_seeds(known, cell.wanted, _decimals(column), cell.ids, verdict)


def _of_texts(
    runs: pd.DataFrame, columns: Iterable[str], which: str, variant: str | None, wanted: int
) -> list[Entry]:
    """The scores of an epoch and a variant of decoding; 0 of a run that diverged before it had texts."""
    lines = list[Entry]()
    for column in columns:
        found = []
        for run in runs.itertuples():
            of = [e for e in run.texts or [] if e["which"] == which and e["variant"] == variant]
            score = of[0].get(column) if of else 0.0 if run.status == "diverged" else None
            found += [] if score is None else [float(score)]
        lines.append(_over_seeds(found, wanted, _decimals(column), runs.id) if found else NONE)
    return lines


def _decimals(column: str) -> int:
    return SCORES[column][1]


def _over_seeds(values: Sequence[float], wanted: int, decimals: int, ids: Any, verdict: str = "") -> Number:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return Number(
        statistics.median(values), spread, len(values), wanted, decimals, verdict=verdict, ids=tuple(ids)
    )
