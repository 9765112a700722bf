"""What the VeRA paper prints (analysis/printed: tables, recipes, claims), under the
names that its tasks, models and rows have in conf/ (names.yaml there)."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from runs.record.files import read_yaml
from runs.record.schema import TEXT_SCORES

#: The content of a YAML file.
Content = dict[str, Any]


@cache
def printed_file(name: str) -> Content:
    """The content of a file of printed/."""
    content: Content = read_yaml(Path(__file__).parent / "printed" / name)
    return content


def _group(name: str) -> dict[str, str]:
    """A group of names.yaml: names in tables by names in conf/."""
    return dict(printed_file("names.yaml")[name])


#: Names in tables by names in conf/: of GLUE's tasks, image tasks, benches, models and
#: methods.
GLUE = _group("glue")
IMAGES = _group("images")
BENCHES = _group("benches")
ROBERTA = _group("roberta")
GPT2 = _group("gpt2")
VIT = _group("vit")
LLAMAS = _group("llamas")
METHOD_NAMES = _group("methods")
#: How many decimals the numbers of a table's column have; 1 for a column that is not
#: here.
DECIMALS: dict[str, int] = {
    **{key: score.decimals for key, score in TEXT_SCORES.items()},
    **printed_file("names.yaml")["decimals"],
}
#: Tasks on which a row of the paper started from an adapter trained on MNLI, by the row's
#: model and name. Our run of such a task is comparable only if it started there, too.
FROM_MNLI = {("roberta_base", "lora"): ("mrpc", "rte", "stsb")}


def paper() -> Content:
    """The content of printed/tables.yaml: what the paper prints, by table and figure, and
    notes."""
    return printed_file("tables.yaml")


def recipes() -> Content:
    """The hyperparameters that the papers print."""
    return printed_file("recipes.yaml")


#: The tables with numbers of trained models, and the model of each; "" where
#: printed/tables.yaml names the model of each group or row.
_MODEL_BY_TABLE = {
    "table2": "",
    "table3": "",
    "table5": "",
    "table4": "",
    "table6": "roberta-large",
    "table7": "roberta-large",
    "table12": "llama-7b",
    "table13": "llama-7b",
}
#: Tables of one task, whose columns are scores or costs of it.
_TASK_BY_TABLE = {
    "table3": "e2e",
    "table4": "alpaca",
    "table12": "alpaca",
    "table13": "alpaca",
}


@cache
def printed_numbers() -> pd.DataFrame:
    """Every number that the paper prints of a trained model (tables 2 to 7, 12 and 13), a
    row each. The columns:

    - table, as "table2"; part: of table 6, which of its three ("" for other tables).
    - model, row, task: as in conf/; task is "" for a mean over tasks.
    - method, size: the row's name, and its trained parameters (and bytes) as printed.
    - column: as in printed/tables.yaml.
    - value, spread: as printed; a spread is NaN where none is printed.
    - quoted: whether the authors took the row from earlier work.
    - like: our row that it is compared with. Where the paper's row started from an
      adapter trained on MNLI, that is our row which did so, too."""
    lines = list[Content]()
    for table in _MODEL_BY_TABLE:
        # the first entry of a table has its columns, each further one a group of rows
        (_, columns), *groups = paper()[table].items()
        for group, rows in groups:
            for cells in rows:
                cell_by_column = dict(zip(columns, cells, strict=True))
                lines += _numbers_of_row(table, group, cell_by_column)
    return pd.DataFrame(lines)


def _numbers_of_row(table: str, group: str, cells: Content) -> Iterator[Content]:
    """The numbers of a row that the paper prints, as rows of `printed_numbers`.

    group: the key that the row stands under in printed/tables.yaml: its model, in table
    6 the part of the table, or "rows". cells: what is printed in each column. Names and
    sizes are removed from it, so that scores are left."""
    names = printed_file("names.yaml")
    model = _MODEL_BY_TABLE[table] or str(cells.pop("model", group))
    model = model.replace("-", "_")
    first_column = next(iter(cells))  # of those that are left: the row's name
    method = str(cells.pop(first_column))
    size = str(cells.pop("params", ""))
    if "bytes" in cells:
        size += f" ({cells.pop('bytes')})"
    row_names = names["rows"].get(table, {})
    # a table may print a method in several sizes, which are rows of their own in conf/
    row = row_names.get(f"{method} {size}") or row_names.get(method, method)
    # rows of tables 6 and 7 are settings of VeRA, and no methods
    keeps_name = table in ("table6", "table7")
    row_facts = {
        "table": table,
        "part": group if table == "table6" else "",
        "model": model,
        "row": row,
        "method": method if keeps_name else METHOD_NAMES.get(method, method),
        "size": size,
        "quoted": row in names["quoted"].get(table, ()),
    }
    for column, cell in cells.items():
        task = _TASK_BY_TABLE.get(table, "" if column == "avg" else column)
        # such a number is compared with our row that started from MNLI, too
        from_mnli = table == "table2" and task in FROM_MNLI.get((model, row), ())
        value, spread = value_and_spread(cell)
        yield {
            **row_facts,
            "task": task,
            "column": column,
            "value": value,
            "spread": spread,
            "like": f"{row}_mnli" if from_mnli else row,
        }


def value_and_spread(cell: float | list[float]) -> tuple[float, float]:
    """The value and the spread of a printed number, which is x or [x, spread]. The spread
    is NaN where none is printed."""
    if isinstance(cell, list):
        value, spread = cell
        return float(value), float(spread)
    return float(cell), math.nan
