"""What independent groups report (printed/others.yaml, whose head says what a source
has), as a frame; and the lines `others` of tables 2 to 5, each beside ours by its own
choice of the epoch."""

import math
from collections.abc import Mapping, Sequence
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
    NAMES,
    ROBERTA,
    VIT,
    printed_file,
)
from analysis.render import Entry, Number
from runs.record import TEXT_SCORES, plural

SOURCES: dict[str, dict[str, Any]] = printed_file("others.yaml")
#: How a source chose the epoch that it reports.
EPOCHS = {
    "best": "best epoch",
    "half": "epoch by other rows",
    "last": "last epoch",
    "": "epoch not said",
}
METHODS: dict[str, str] = NAMES | printed_file("names.yaml")["others"]
#: Names of models, columns and methods.
NAMED = (
    ROBERTA
    | GPT2
    | LLAMAS
    | VIT
    | GLUE
    | IMAGES
    | METHODS
    | {"avg": "Avg.", "score": "MT-Bench"}
)
NAMED |= {key: of.name for key, of in TEXT_SCORES.items()}
#: Sets with exact answers, which the VeRA paper has not.
EXACT: dict[str, str] = printed_file("names.yaml")["exact"]
NAMED |= EXACT | printed_file("names.yaml")["decoders"]


def named(of: str | Sequence[str] | dict[str, str]) -> dict[str, str]:
    """Names by key: of a group of printed/names.yaml, of some keys, or their own."""
    if isinstance(of, dict):
        return of
    keys = printed_file("names.yaml")[of] if isinstance(of, str) else of
    return {key: NAMED.get(key, key) for key in keys}


#: What a source, a part or a row may say of how it was run; "" where none says it.
ABOUT: tuple[str, ...] = (
    "name",
    "seeds",
    "statistic",
    "epoch",
    "mnli",
    "rank",
    "sites",
)
ABOUT += ("params", "lr", "lr_head", "steps", "memory", "time")


@cache
def others() -> pd.DataFrame:
    """Every number of another source, a row each: source, its key; ABOUT; label, its
    name with the runner where it has several; model, row and column, as in
    `paper.numbers`; value and spread, in the unit of the paper's table; same, whether
    its target modules are the paper's, or it has none; and like, our row that it is
    compared with."""
    lines = list[dict[str, Any]]()
    for source, of in SOURCES.items():
        for part in of["parts"]:
            for row in part["rows"]:
                whole = {**of, **part, **row}
                about = {
                    key: "" if whole.get(key) is None else whole[key] for key in ABOUT
                }
                same = about["sites"] in (
                    "",
                    "all-linear" if row["model"] in LLAMAS else "qv",
                )
                about |= {
                    "source": source,
                    "model": row["model"],
                    "row": row["row"],
                    "same": same,
                }
                about |= {"like": row["row"] if same else f"{row['row']}_all"}
                about |= {"label": " ".join(filter(None, [of["name"], row.get("by")]))}
                for column, value in zip(part["columns"], row["values"], strict=True):
                    if value is not None:
                        value, spread = (
                            value if isinstance(value, list) else (value, math.nan)
                        )
                        lines.append(
                            about
                            | {
                                "column": column,
                                "value": float(value),
                                "spread": spread,
                            }
                        )
    return pd.DataFrame(lines)


def setting(of: Mapping[str, Any]) -> str:
    """How a row was run, in a few words: rank and target modules and, where the source
    says how many steps, the rate times steps."""
    rank, sites = of.get("rank"), of.get("sites", "")
    sites = {"qv": "q, v", "all-linear": "all linear"}.get(sites, sites)
    steps = f"lr {of['lr']} x {of['steps']:,} steps" if of.get("steps") else ""
    return ", ".join(filter(None, [f"r {rank:,}" if rank else "", sites, steps]))


# --- the lines of tables

#: From so many sources with the paper's target modules on, ours is within their range
#: or outside it.
ENOUGH = 3


def others_of(model: str, columns: Sequence[str], cells: pd.DataFrame) -> pd.DataFrame:
    """What others report of a model in these columns, and `less`, our median by the
    same choice of the epoch less theirs, or by that of our table: NaN where we have
    none, or not of every seed. cells: ours."""
    theirs = others()[lambda of: (of.model == model) & of.column.isin(columns)]
    shown = cells.drop_duplicates(["row", "column"])
    by_column = {(cell.row, cell.column): cell for cell in shown.itertuples()}

    def ours(of: Any) -> float:
        wanted = [*GLUE] if of.column == "avg" else [of.column]
        own: list[Any] = [by_column.get((of.like, column)) for column in wanted]
        if not all(cell and cell.runs >= cell.wanted for cell in own):
            return math.nan
        # A column that is no task of the paper's is a score, of one epoch
        scores = wanted[0] not in GLUE | IMAGES
        of_each = [
            getattr(cell, "median" if scores else of.epoch or cell.reported)
            for cell in own
        ]
        return float(np.mean(of_each))

    return theirs.assign(less=[ours(of) - of.value for of in theirs.itertuples()])


def verdict(of: pd.DataFrame) -> str:
    """Whether ours is within the range of ENOUGH sources with the paper's target
    modules, neither above nor below all of them: "CoLA within what others report (62.8
    to 67.0)"; "" with fewer, or without ours."""
    words = []
    for column, part in of.groupby("column", sort=False):
        if len(part) >= ENOUGH and part.less.notna().all():
            where = "within" if part.less.min() <= 0 <= part.less.max() else "outside"
            words.append(f"{NAMED[column]} {where} what others report ({_range(part)})")
    return ", ".join(words)


def line(of: pd.DataFrame, each: bool) -> dict[str, Entry]:
    """A line of one source (each), or of all: entries by the names of their columns."""
    first, epochs = (
        of.to_dict("records")[0],
        ", ".join(dict.fromkeys(of.epoch.map(EPOCHS))),
    )
    about: dict[str, Entry] = {"source": "others", "status": epochs}
    if each:
        seeds = [first["statistic"], first["seeds"] and plural(first["seeds"], "seed")]
        status = "; ".join(
            filter(None, [setting(first), epochs, " of ".join(filter(None, seeds))])
        )
        about = {"source": first["label"], "params": first["params"], "status": status}
    # pandas takes its time for each column
    numbers = of[["column", "value", "spread", "less", "same"]]
    return about | {column: _entry(part) for column, part in numbers.groupby("column")}


def _entry(of: pd.DataFrame) -> Entry:
    """A source's number, or all of several, of ENOUGH with the paper's target modules
    their range."""
    many, digits = of.same.sum() >= ENOUGH, DECIMALS.get(of.column.iloc[0], 1)
    shown = [_range(of[of.same])] if many else []
    for one in of[~(of.same & many)].itertuples():
        number = Number(
            one.value, one.spread if len(of) == 1 else math.nan, decimals=digits
        )
        less = Number(one.less, decimals=number.decimals, sign=True)
        mark = ("" if one.same else "^") + (
            "" if math.isnan(one.less) else f" ({less})"
        )
        shown.append(replace(number, mark=mark))
    return shown[0] if len(shown) == 1 else ", ".join(map(str, shown))


def _range(of: pd.DataFrame) -> Number:
    return Number(
        of.value.min(), high=of.value.max(), decimals=DECIMALS.get(of.column.iloc[0], 1)
    )
