"""What independent groups report (printed/others.yaml, whose head says what a source
has), as a frame; and the lines of tables whose source is "others". Each report stands
beside our score at the epoch that its source chose."""

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
#: Names in tables of the methods that the paper or other groups ran, by names in conf/.
METHODS: dict[str, str] = METHOD_NAMES | printed_file("names.yaml")["others"]
#: Names in tables of test sets with exact answers, which the VeRA paper does not have.
EXACT: dict[str, str] = printed_file("names.yaml")["exact"]
#: Names in tables of models, columns and methods, by their keys.
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
    """Names in tables by key. names: the name of a group of printed/names.yaml, some keys
    (one that has no name in DISPLAY_NAMES is its own), or a dict that is returned as it
    is."""
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
    """What each source reports (printed/others.yaml), by its key."""
    return printed_file("others.yaml")


@cache
def reports_of_others() -> pd.DataFrame:
    """Every number that another source reports, a row each. The columns:

    - source, its key; label, its name, followed by who ran it if the source quotes
      several groups; and RUN_FACTS, how it was trained.
    - model, row, column, value, spread: as in `paper.printed_numbers`.
    - same_sites: whether the target modules are the paper's, or not said.
    - like: our row that it is compared with."""
    lines = list[dict[str, Any]]()
    for source, settings in reported_sources().items():
        for part in settings["parts"]:
            for row in part["rows"]:
                # A row overrides its part, and a part its source.
                facts = {"source": source, **_facts_of_row(settings | part | row)}
                scores = _scores_of_row(part["columns"], row["values"])
                lines += [facts | score for score in scores]
    return pd.DataFrame(lines)


def _scores_of_row(
    columns: Sequence[str], cells: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """The scores of a row with their columns. cells: x, [x, spread], or None for a column
    without a score."""
    for column, cell in zip(columns, cells, strict=True):
        if cell is not None:
            value, spread = value_and_spread(cell)
            yield {"column": column, "value": value, "spread": spread}


def _facts_of_row(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of `reports_of_others` that all numbers of a row share, without its
    source. row: its keys in printed/others.yaml, and those of its part and its source."""
    facts = {key: "" if row.get(key) is None else row[key] for key in RUN_FACTS}
    papers_sites = "all-linear" if row["model"] in LLAMAS else "qv"
    same_sites = facts["sites"] in ("", papers_sites)
    own_row = row["row"]
    if not same_sites:
        own_row += "_all"  # conf/method's row on all linear layers, such as vera_all
    return facts | {
        "model": row["model"],
        "row": row["row"],
        "same_sites": same_sites,
        "like": own_row,
        "label": " ".join(filter(None, [row["name"], row.get("by")])),
    }


def setup_text(row: Any) -> str:
    """How a row was run, as far as its source says: "r 32, q, v, lr 1e-5 x 1,024 steps".
    row: a mapping with the columns of `reports_of_others`."""
    parts = list[str]()
    if rank := row.get("rank"):
        parts.append(f"r {rank:,}")
    if sites := row.get("sites"):
        names = {"qv": "q, v", "all-linear": "all linear"}
        parts.append(names.get(sites, sites))
    if steps := row.get("steps"):
        parts.append(f"lr {row['lr']} x {steps:,} steps")
    return ", ".join(parts)


# --- the lines of tables

#: At least so many numbers with the paper's target modules are given as a range.
SOURCES_OF_RANGE = 3


def reports_of(model: str, columns: Sequence[str], cells: pd.DataFrame) -> pd.DataFrame:
    """What others report of a model in these columns (`reports_of_others`), with a
    `difference`: our median minus their number. Ours is of the epoch that they chose or,
    if they do not say it, of our table's. It is NaN where we have no such cell, or not
    with every seed. cells: ours."""
    frame = reports_of_others()
    reports = frame[(frame.model == model) & frame.column.isin(columns)]
    if reports.empty:
        return reports.assign(difference=math.nan)
    # a cell may have several variants, such as snapshots of the judge: the first counts
    distinct = cells.drop_duplicates(["row", "column"])
    own_cells = {(cell.row, cell.column): cell for cell in distinct.itertuples()}
    differences = [
        _own_number(own_cells, report) - report.value for report in reports.itertuples()
    ]
    return reports.assign(difference=differences)


def _own_number(own_cells: dict[tuple[str, str], Cell], report: Any) -> float:
    """Our number beside a report; NaN without a complete cell. Beside an average ours is
    over all tasks of GLUE. own_cells: our cells by row and column. report: a row of
    `reports_of_others`."""
    columns = [*GLUE] if report.column == "avg" else [report.column]
    cells: list[Cell] = [own_cells.get((report.like, column)) for column in columns]
    if not all(cell and cell.runs >= cell.wanted for cell in cells):
        return math.nan
    # Other columns than tasks of the paper are scores of texts, of the last epoch alone.
    if columns[0] not in GLUE | IMAGES:
        return float(np.mean([cell.median for cell in cells]))
    # A cell's columns best, half and last are named as the epochs of reports.
    medians = [getattr(cell, report.epoch or cell.reported) for cell in cells]
    return float(np.mean(medians))


def range_texts(reports: pd.DataFrame) -> str:
    """On each column, whether our number is within what others report, that is, neither
    above nor below all of them: "CoLA within what others report (62.8 to 67.0)". Columns
    that fewer than SOURCES_OF_RANGE report, or of which we have no number, are left out.
    reports: of one row (`reports_of`), those with the paper's target modules."""
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
    """The lines of a table on what others report of a row: a line for each source
    (each_source), or one for all. reports: the lines of `reports_of` on the row."""
    groups = reports.groupby(["label", "sites"] if each_source else "row", sort=False)
    return [_report_line(group, each_source) for _, group in groups]


def _report_line(reports: pd.DataFrame, each_source: bool) -> dict[str, Entry]:
    """The entries of a line by column. reports: of one source if each_source, which is
    then named with its settings; otherwise of all sources."""
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
        line[str(column)] = _reports_entry(group)
    return line


def _reports_entry(reports: pd.DataFrame) -> Entry:
    """What sources report of one column, as an entry. Numbers with the paper's target
    modules are given as a range if there are SOURCES_OF_RANGE of them. Others stand one
    by one: ^ marks other target modules, and ours minus theirs stands in brackets. Only
    a single number has its spread with it."""
    decimals = DECIMALS.get(reports.column.iloc[0], 1)
    entries = list[Number]()
    single_reports = reports
    if reports.same_sites.sum() >= SOURCES_OF_RANGE:
        entries.append(_range(reports[reports.same_sites]))
        single_reports = reports[~reports.same_sites]
    for report in single_reports.itertuples():
        mark = "" if report.same_sites else "^"
        if not math.isnan(report.difference):
            mark += f" ({Number(report.difference, decimals=decimals, sign=True)})"
        number = Number(report.value, decimals=decimals, mark=mark)
        if len(reports) == 1:
            number = replace(number, spread=report.spread)
        entries.append(number)
    return entries[0] if len(entries) == 1 else ", ".join(map(str, entries))


def _range(reports: pd.DataFrame) -> Number:
    """The lowest and the highest number of these reports of one column."""
    decimals = DECIMALS.get(reports.column.iloc[0], 1)
    return Number(reports.value.min(), high=reports.value.max(), decimals=decimals)
