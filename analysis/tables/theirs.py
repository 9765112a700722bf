"""The lines `others` of tables 2 to 5: what independent groups report of a row of the paper, beside ours by
each one's own choice of the epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.others import EPOCHS, NAMED, others, setting
from analysis.paper import GLUE, SCORES, numbers
from analysis.render import NONE, Cell, Entry, Number, Table
from runs.record.text import plural

#: From so many sources with the paper's target modules on, ours is within their range or outside it.
ENOUGH = 3
NOTE = (
    "others: independent groups (docs/others.md); ^ on other target modules than the paper's; in brackets"
    " ours less theirs, ours by their choice of the epoch and their statistic."
)


def with_others(
    table: Table, name: str, chosen: Callable[[str], Mapping[str, Mapping[str, Cell]]], each: bool = False
) -> Table:
    """The table with what others report below each row of the paper: one line, or one for each source.

    chosen: our cells by row and column, for a choice of the epoch. Where ENOUGH sources have the paper's
    target modules, the status of our row goes on whether ours is within their range: neither above nor below
    all of them, each by its own choice of the epoch."""
    keys = {label: key for key, label in table.tasks.items()} | {"Avg": "avg", "score": "score"}
    keys |= {label: key for key, (label, _) in SCORES.items()}
    columns = [keys.get(label, "") for label in table.header[3:-1]]
    of_size = {
        (of.method, of.size): of.row for of in numbers() if (of.table, of.model) == (name, table.model)
    }
    theirs = others()[lambda of: (of.model == table.model) & of.column.isin(columns)]
    theirs = theirs.assign(less=[_ours(chosen, of) - of.value for of in theirs.itertuples()])
    rows, word = list[list[Entry]](), ""
    for row in table.rows:
        if word and isinstance(row[2], Number):  # ours, of the paper's row above
            row, word = [*row[:-1], f"{row[-1]}; {word}"], ""
        rows.append(row)
        if str(row[1]).startswith("paper"):
            of = theirs[theirs.row == of_size.get((str(row[0]), str(row[2])))]
            word = _verdict(of[of.same])
            lines = of.groupby(["label", "sites"] if each else "row", sort=False)
            rows += [_line(part, columns, each) for _, part in lines]
    notes = [*table.notes, NOTE] if len(rows) > len(table.rows) else table.notes
    return replace(table, rows=rows, notes=notes)


def _ours(chosen: Callable[[str], Mapping[str, Mapping[str, Cell]]], of: Any) -> float:
    """Our number beside a source's; NaN where we have none, or not of every seed."""
    cells = chosen(of.epoch).get(of.like, {})
    wanted = [cells.get(column) for column in (GLUE if of.column == "avg" else [of.column])]
    if any(cell is None or not cell.complete for cell in wanted):
        return math.nan
    return sum(getattr(cell, "mean" if of.statistic == "mean" else "median") for cell in wanted) / len(wanted)


def _verdict(of: pd.DataFrame) -> str:
    """Such as "CoLA within what others report (62.8 to 67.0)"; "" with fewer sources or without ours."""
    words = []
    for column, part in of.groupby("column", sort=False):
        if len(part) >= ENOUGH and part.less.notna().all():
            where = "within" if part.less.min() <= 0 <= part.less.max() else "outside"
            words.append(f"{NAMED[column]} {where} what others report ({_range(part)})")
    return ", ".join(words)


def _line(of: pd.DataFrame, columns: Sequence[str], each: bool) -> list[Entry]:
    """A line of one source, or of all."""
    entries = {"": ""} | {column: _entry(part) for column, part in of.groupby("column")}
    first, epochs = of.to_dict("records")[0], ", ".join(dict.fromkeys(of.epoch.map(EPOCHS)))
    seeds = " of ".join(filter(None, [first["statistic"], first["seeds"] and plural(first["seeds"], "seed")]))
    status = "; ".join(filter(None, [setting(first), epochs, seeds])) if each else epochs
    source, size = (first["label"], first["params"]) if each else ("others", "")
    return ["", source, size, *(entries.get(column, NONE) for column in columns), status]


def _entry(of: pd.DataFrame) -> Entry:
    """A source's number, or all of several, of ENOUGH with the paper's target modules their range."""
    many = of.same.sum() >= ENOUGH
    shown = [_range(of[of.same])] if many else []
    for one in of[~(of.same & many)].itertuples():
        number = Number(one.value, one.spread if len(of) == 1 else math.nan, decimals=_digits(one.column))
        less = Number(one.less, decimals=number.decimals, sign=True)
        mark = ("" if one.same else "^") + ("" if math.isnan(one.less) else f" ({less})")
        shown.append(replace(number, mark=mark))
    return shown[0] if len(shown) == 1 else ", ".join(map(str, shown))


def _range(of: pd.DataFrame) -> Number:
    return Number(of.value.min(), high=of.value.max(), decimals=_digits(of.column.iloc[0]))


def _digits(column: str) -> int:
    return SCORES[column][1] if column in SCORES else 2 if column == "score" else 1
