"""What independent groups report (printed/others.yaml, whose head says what a source
has), as a frame; and the lines `others` of tables 2 to 5, each beside ours by its own
choice of the epoch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper import (
    DECIMALS,
    GLUE,
    GPT2,
    IMAGES,
    LLAMAS,
    METHOD_NAMES,
    ROBERTA,
    VIT,
    printed_file,
    value_and_spread,
)
from analysis.render import Cell, Entry, Number
from runs.record.schema import TEXT_SCORES
from runs.record.text import plural

#: How a source chose the epoch that it reports.
EPOCHS = {
    "best": "best epoch",
    "half": "epoch by other rows",
    "last": "last epoch",
    "": "epoch not said",
}
METHODS: dict[str, str] = METHOD_NAMES | printed_file("names.yaml")["others"]
#: Sets with exact answers, which the VeRA paper does not have.
EXACT: dict[str, str] = printed_file("names.yaml")["exact"]
#: Names of models, columns and methods.
DISPLAY_NAMES: dict[str, str] = {
    **ROBERTA,
    **GPT2,
    **LLAMAS,
    **VIT,
    **GLUE,
    **IMAGES,
    **METHODS,
    "avg": "Avg.",
    "score": "MT-Bench",
    **{key: score.name for key, score in TEXT_SCORES.items()},
    **EXACT,
    **printed_file("names.yaml")["decoders"],
}


def names_by_key(names: str | Sequence[str] | dict[str, str]) -> dict[str, str]:
    """Names by key: of a group of printed/names.yaml, of some keys, or their own."""
    if isinstance(names, dict):
        return names
    keys = printed_file("names.yaml")[names] if isinstance(names, str) else names
    return {key: DISPLAY_NAMES.get(key, key) for key in keys}


#: What a source, a part or a row may say of how a row was run; "" where none of them
#: says it.
RUN_FACTS: tuple[str, ...] = (
    "name",
    "seeds",
    "statistic",
    "epoch",
    "mnli",
    "rank",
    "sites",
    "params",
    "lr",
    "lr_head",
    "steps",
    "memory",
    "time",
)


def reported_sources() -> dict[str, dict[str, Any]]:
    """What each group reports, by its key."""
    return printed_file("others.yaml")


@cache
def reports_of_others() -> pd.DataFrame:
    """Every number of another source, a row each: source, its key; RUN_FACTS; label, its
    name with the runner where it has several; model, row and column, as in
    `paper.printed_numbers`; value and spread, in the unit of the paper's table; same, whether
    its target modules are the paper's (also where it names none); and like, our row
    that it is compared with."""
    lines = list[dict[str, Any]]()
    for source, settings in reported_sources().items():
        for part in settings["parts"]:
            for row in part["rows"]:
                # A row overrides its part, and a part its source.
                facts = {"source": source, **_facts_of_row(settings | part | row)}
                numbers = _numbers_of_row(part["columns"], row["values"])
                lines += [facts | number for number in numbers]
    return pd.DataFrame(lines)


def _numbers_of_row(
    columns: Sequence[str], cells: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """The numbers of a row that are reported; a cell of another column is null."""
    for column, cell in zip(columns, cells, strict=True):
        if cell is not None:
            value, spread = value_and_spread(cell)
            yield {"column": column, "value": value, "spread": spread}


def _facts_of_row(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of `others` that all numbers of a row share. row: its keys, and those
    of its part and its source."""
    facts = {key: "" if row.get(key) is None else row[key] for key in RUN_FACTS}
    papers_sites = "all-linear" if row["model"] in LLAMAS else "qv"
    same_sites = facts["sites"] in ("", papers_sites)
    return facts | {
        "model": row["model"],
        "row": row["row"],
        "same_sites": same_sites,
        "like": row["row"] if same_sites else f"{row['row']}_all",
        "label": " ".join(filter(None, [row["name"], row.get("by")])),
    }


def setup_text(row: Any) -> str:
    """How a row was run, in a few words: rank and target modules and, where the source
    says how many steps, the rate times steps."""
    rank, sites = row.get("rank"), row.get("sites", "")
    names = {"qv": "q, v", "all-linear": "all linear"}
    parts = [f"r {rank:,}" if rank else "", names.get(sites, sites)]
    if row.get("steps"):
        parts.append(f"lr {row['lr']} x {row['steps']:,} steps")
    return ", ".join(filter(None, parts))


# --- the lines of tables

#: How many sources with the paper's target modules make a range.
SOURCES_OF_RANGE = 3


def reports_of(model: str, columns: Sequence[str], cells: pd.DataFrame) -> pd.DataFrame:
    """What others report of a model in these columns, and `difference`: our median
    minus their number, at the epoch that they chose or, where they do not say it, at
    our table's. It is NaN where we have no such cell, or not with every seed. cells:
    ours."""
    frame = reports_of_others()
    reports = frame[(frame.model == model) & frame.column.isin(columns)]
    if reports.empty:
        return reports.assign(difference=math.nan)
    distinct = cells.drop_duplicates(["row", "column"])
    own_cells = {(cell.row, cell.column): cell for cell in distinct.itertuples()}
    differences = [
        _own_number(own_cells, report) - report.value for report in reports.itertuples()
    ]
    return reports.assign(difference=differences)


def _own_number(own_cells: dict[tuple[str, str], Cell], report: Any) -> float:
    """Our number beside a report; NaN for none. own_cells: our cells by row and
    column."""
    columns = [*GLUE] if report.column == "avg" else [report.column]
    cells: list[Cell] = [own_cells.get((report.like, column)) for column in columns]
    if not all(cell and cell.runs >= cell.wanted for cell in cells):
        return math.nan
    # A column that is no task of the paper's is a score, of one epoch.
    if columns[0] not in GLUE | IMAGES:
        return float(np.mean([cell.median for cell in cells]))
    # the column best, half or last
    medians = [getattr(cell, report.epoch or cell.reported) for cell in cells]
    return float(np.mean(medians))


def range_texts(reports: pd.DataFrame) -> str:
    """Whether our number is within what others report, neither above nor below all of
    them, on each column: "CoLA within what others report (62.8 to 67.0)"; "" where
    fewer than SOURCES_OF_RANGE report it, or we have no number. reports: those with the
    paper's target modules."""
    texts = list[str]()
    for column, group in reports.groupby("column", sort=False):
        if len(group) >= SOURCES_OF_RANGE and group.difference.notna().all():
            is_within = group.difference.min() <= 0 <= group.difference.max()
            side = "within" if is_within else "outside"
            texts.append(
                f"{DISPLAY_NAMES[column]} {side} what others report ({_range(group)})"
            )
    return ", ".join(texts)


def report_lines(reports: pd.DataFrame, each_source: bool) -> list[dict[str, Entry]]:
    """The lines of a row: one of each source (each_source), or one of all."""
    groups = reports.groupby(["label", "sites"] if each_source else "row", sort=False)
    return [_report_line(group, each_source) for _, group in groups]


def _report_line(reports: pd.DataFrame, each_source: bool) -> dict[str, Entry]:
    """A line of one source (each_source), or of all: entries by column."""
    epochs = ", ".join(dict.fromkeys(reports.epoch.map(EPOCHS)))
    line: dict[str, Entry] = {"source": "others", "status": epochs}
    if each_source:
        first = reports.iloc[0].to_dict()
        seeds = plural(first["seeds"], "seed") if first["seeds"] else ""
        statistic = " of ".join(filter(None, [first["statistic"], seeds]))
        status = "; ".join(filter(None, [setup_text(first), epochs, statistic]))
        params = first["params"]
        line = {"source": first["label"], "params": params, "status": status}
    # Grouping a frame of few columns is faster.
    numbers = reports[["column", "value", "spread", "difference", "same_sites"]]
    for column, group in numbers.groupby("column"):
        line[str(column)] = _entry(group)
    return line


def _entry(reports: pd.DataFrame) -> Entry:
    """What sources report of one column: their range, where SOURCES_OF_RANGE have the
    paper's target modules, and the number of each other source. ^ marks other target
    modules; ours minus theirs stands in brackets."""
    has_range = reports.same_sites.sum() >= SOURCES_OF_RANGE
    entries = [_range(reports[reports.same_sites])] if has_range else []
    digits = DECIMALS.get(reports.column.iloc[0], 1)
    for report in reports[~(reports.same_sites & has_range)].itertuples():
        mark = "" if report.same_sites else "^"
        if not math.isnan(report.difference):
            mark += f" ({Number(report.difference, decimals=digits, sign=True)})"
        number = Number(report.value, decimals=digits, mark=mark)
        if len(reports) == 1:
            number = replace(number, spread=report.spread)
        entries.append(number)
    return entries[0] if len(entries) == 1 else ", ".join(map(str, entries))


def _range(reports: pd.DataFrame) -> Number:
    """The lowest and the highest number of these reports of one column."""
    digits = DECIMALS.get(reports.column.iloc[0], 1)
    return Number(reports.value.min(), high=reports.value.max(), decimals=digits)
