"""What the VeRA paper prints (analysis/printed: tables, recipes, claims), under the
names that its tasks, models and rows have in conf/ (names.yaml there)."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from runs.record import TEXT_SCORES


@cache
def printed_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(
        (Path(__file__).parent / "printed" / name).read_text()
    )
    return content


#: Names of tasks, benches, models and methods in tables, by their names in conf/.
GLUE, IMAGES, BENCHES, ROBERTA, GPT2, VIT, LLAMAS, NAMES = (
    dict[str, str](printed_file("names.yaml")[of])
    for of in (
        "glue",
        "images",
        "benches",
        "roberta",
        "gpt2",
        "vit",
        "llamas",
        "methods",
    )
)
#: The decimals of a table's column; 1 of others.
DECIMALS: dict[str, int] = {key: of.decimals for key, of in TEXT_SCORES.items()}
DECIMALS |= printed_file("names.yaml")["decimals"]
#: Tasks on which the paper's row (model, row) started from an adapter trained on MNLI.
#: Our run of such a task is comparable only if it started there, too.
FROM_MNLI = {("roberta_base", "lora"): ("mrpc", "rte", "stsb")}


def paper() -> dict[str, Any]:
    """The content of printed/tables.yaml, with the formulas and findings beside the
    numbers."""
    return printed_file("tables.yaml")


def recipes() -> dict[str, Any]:
    """The hyperparameters that the papers print."""
    return printed_file("recipes.yaml")


#: The tables with numbers of trained models, and the model of those that name none.
_TABLES = {
    "table2": "",
    "table3": "",
    "table5": "",
    "table4": "",
    "table6": "roberta-large",
}
_TABLES |= {"table7": "roberta-large", "table12": "llama-7b", "table13": "llama-7b"}
#: Tables of one task, whose columns are scores or costs of it.
_TASKS = {"table3": "e2e"} | dict.fromkeys(("table4", "table12", "table13"), "alpaca")


@cache
def numbers() -> pd.DataFrame:
    """Every number that the paper prints of a trained model, a row each: of tables 2 to
    7, 12 and 13.

    model, row, task: as in conf/; task is "" for a mean over tasks. part: of table 6,
    which of its three. method, size: the paper's name of the row and its trained
    parameters, as printed. column: as in printed/tables.yaml. value, spread: over
    seeds, as printed (NaN: none). quoted: whether the authors took the row from earlier
    work. like: our row that it is compared with: where the paper's started from an
    adapter of MNLI, only one that did so, too."""
    names, found = printed_file("names.yaml"), list[dict[str, Any]]()
    for table, of_all in _TABLES.items():
        columns, *groups = paper()[table].items()
        for key, line in ((key, line) for key, lines in groups for line in lines):
            values = dict(zip(columns[1], line, strict=True))
            model = str(of_all or values.pop("model", key)).replace("-", "_")
            method, size = (
                str(values.pop(next(iter(values)))),
                str(values.pop("params", "")),
            )
            size += f" ({values.pop('bytes')})" if "bytes" in values else ""
            rows = names["rows"].get(table, {})
            row = rows.get(f"{method} {size}") or rows.get(method, method)
            about = {
                "table": table,
                "part": key if table == "table6" else "",
                "model": model,
                "row": row,
            }
            about["method"] = (
                method if table in ("table6", "table7") else NAMES.get(method, method)
            )
            about |= {"size": size, "quoted": row in names["quoted"].get(table, ())}
            for column, value in values.items():
                task = _TASKS.get(table, "" if column == "avg" else column)
                mnli = table == "table2" and task in FROM_MNLI.get((model, row), ())
                value, spread = value if isinstance(value, list) else (value, math.nan)
                of = {
                    "task": task,
                    "column": column,
                    "value": float(value),
                    "spread": float(spread),
                }
                found.append(about | of | {"like": f"{row}_mnli" if mnli else row})
    return pd.DataFrame(found)
