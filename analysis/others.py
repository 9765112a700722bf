"""What independent groups report (printed/others.yaml, whose head says what a source has), as a frame."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from analysis.paper import GLUE, GPT2, IMAGES, LLAMAS, NAMES, ROBERTA, SCORES, VIT, printed_file

SOURCES: dict[str, dict[str, Any]] = printed_file("others.yaml")
#: How a source chose the epoch that it reports.
EPOCHS = {"best": "best epoch", "half": "epoch by other rows", "last": "last epoch", "": "epoch not said"}
METHODS: dict[str, str] = NAMES | printed_file("names.yaml")["others"]
#: Names of models, columns and methods.
NAMED = ROBERTA | GPT2 | LLAMAS | VIT | GLUE | IMAGES | METHODS | {"avg": "Avg.", "score": "MT-Bench"}
NAMED |= {key: name for key, (name, _) in SCORES.items()}
#: What a source, a part or a row may say of how it was run; "" where none says it.
ABOUT: tuple[str, ...] = (
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
)
ABOUT += ("memory", "time")


@cache
def others() -> pd.DataFrame:
    """Every number of another source, a row each: source, its key; ABOUT; label, its name with the runner
    where it has several; model, row and column, as in `paper.numbers`; value and spread, in the unit of the
    paper's table; same, whether its target modules are the paper's, or it has none; and like, our row that
    it is compared with."""
    lines = list[dict[str, Any]]()
    for source, of in SOURCES.items():
        for part in of["parts"]:
            for row in part["rows"]:
                scopes = [(key, scope[key]) for scope in (of, part, row) for key in ABOUT if key in scope]
                about = dict.fromkeys(ABOUT, "") | {key: "" if one is None else one for key, one in scopes}
                same = about["sites"] in ("", "all-linear" if row["model"] in LLAMAS else "qv")
                about |= {"source": source, "model": row["model"], "row": row["row"], "same": same}
                about |= {"like": row["row"] if same else f"{row['row']}_all"}
                about |= {"label": " ".join(filter(None, [of["name"], row.get("by")]))}
                for column, value in zip(part["columns"], row["values"], strict=True):
                    if value is not None:
                        value, spread = value if isinstance(value, list) else (value, math.nan)
                        lines.append(about | {"column": column, "value": float(value), "spread": spread})
    return pd.DataFrame(lines)


def setting(of: Mapping[str, Any]) -> str:
    """How a row was run, in a few words: rank and target modules."""
    rank, sites = of.get("rank"), of.get("sites", "")
    sites = {"qv": "q, v", "all-linear": "all linear"}.get(sites, sites)
    return ", ".join(filter(None, [f"r {rank:,}" if rank else "", sites]))
