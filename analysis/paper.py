"""What the VeRA paper prints (analysis/printed: tables, recipes, claims), under the names that its tasks,
models and rows have in conf/ (names.yaml there)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def _printed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "printed" / name).read_text())
    return content


#: Names of tasks, benches, models and methods in tables, by their names in conf/.
GLUE: dict[str, str] = _printed("names.yaml")["glue"]
IMAGES: dict[str, str] = _printed("names.yaml")["images"]
BENCHES: dict[str, str] = _printed("names.yaml")["benches"]
ROBERTA: dict[str, str] = _printed("names.yaml")["roberta"]
GPT2: dict[str, str] = _printed("names.yaml")["gpt2"]
VIT: dict[str, str] = _printed("names.yaml")["vit"]
LLAMAS: dict[str, str] = _printed("names.yaml")["llamas"]
NAMES: dict[str, str] = _printed("names.yaml")["methods"]
#: The scores of E2E's texts: the name, and the decimals that the paper prints.
SCORES: dict[str, tuple[str, int]] = {
    key: (name, decimals) for key, (name, decimals) in _printed("names.yaml")["scores"].items()
}
#: Tasks on which the paper's row (model, row) started from an adapter trained on MNLI. Our run of such a task
#: is comparable only if it started there, too.
FROM_MNLI = {("roberta_base", "lora"): ("mrpc", "rte", "stsb")}


def paper() -> dict[str, Any]:
    """The content of printed/tables.yaml, with the formulas and findings beside the numbers."""
    return _printed("tables.yaml")


def claims() -> dict[str, Any]:
    """Numbers of the paper's text."""
    return _printed("claims.yaml")


def recipes() -> dict[str, Any]:
    """The hyperparameters that the papers print."""
    return _printed("recipes.yaml")


@dataclass(frozen=True)
class Printed:
    """A number that the paper prints of a trained model.

    model, row, task: as in conf/; task is "" for a mean over tasks. part: of table 6, which of its three.
    method, size: the paper's name of the row and its trained parameters, as printed. column: as in
    printed/tables.yaml. spread: over seeds, as printed. quoted: whether the authors took the row from earlier
    work.
    """

    table: str
    part: str
    model: str
    row: str
    method: str
    size: str
    task: str
    column: str
    value: float
    spread: float | None
    quoted: bool


@cache
def numbers() -> tuple[Printed, ...]:
    """Every number of tables 2 to 7, 12 and 13; of each table in its order."""
    return (*_by_model(), *_table4(), *_ablations(), *_table12_and_13())


def _by_model() -> Iterator[Printed]:
    """Tables 2, 3 and 5: a part for each model, a column for each task or score."""
    for table in ("table2", "table3", "table5"):
        columns = paper()[table]["columns"][2:]
        for model in (key for key in paper()[table] if key != "columns"):
            for method, size, *values in paper()[table][model]:
                for column, value in zip(columns, values, strict=True):
                    task = "e2e" if table == "table3" else "" if column == "avg" else column
                    yield _number(table, model, method, task, column, value, str(size))


def _table4() -> Iterator[Printed]:
    for model, method, size, score in paper()["table4"]["rows"]:
        yield _number("table4", model, method, "alpaca", "score", score, str(size))


def _ablations() -> Iterator[Printed]:
    """Tables 6 and 7: a row for each setting of VeRA."""
    parts = [("table6", part) for part in ("scaling_vectors", "matrix_init", "d_init")]
    for table, part in [*parts, ("table7", "rows")]:
        for setting, *values in paper()[table][part]:
            for task, value in zip(paper()[table]["columns"][1:], values, strict=True):
                number = _number(table, "roberta_large", str(setting), task, task, value)
                yield replace(number, part=part if table == "table6" else "", method=str(setting))


def _table12_and_13() -> Iterator[Printed]:
    for table in ("table12", "table13"):
        for values in paper()[table]["rows"]:
            row = dict(zip(paper()[table]["columns"], values, strict=True))
            method, size = row.pop("method"), ""
            if table == "table13":
                size = f"{row.pop('params')} ({row.pop('bytes')})"
            for column, value in row.items():
                yield _number(table, "llama_7b", method, "alpaca", column, value, size)


def _number(
    table: str, model: str, method: str, task: str, column: str, value: Any, size: str = ""
) -> Printed:
    """method: the first column of the row. value: as in tables.yaml, x or [x, spread]."""
    names = _printed("names.yaml")
    rows = names["rows"].get(table, {})
    row = rows.get(f"{method} {size}") or rows.get(method, method)
    value, spread = value if isinstance(value, list) else (value, None)
    return Printed(
        table,
        "",
        model.replace("-", "_"),
        row,
        NAMES.get(method, method),
        size,
        task,
        column,
        float(value),
        None if spread is None else float(spread),
        row in names["quoted"].get(table, ()),
    )
