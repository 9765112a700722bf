"""What the VeRA paper prints (analysis/printed: tables, recipes, claims), under the names that its tasks,
models and rows have in conf/ (names.yaml there)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@cache
def printed_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "printed" / name).read_text())
    return content


#: Names of tasks, benches, models and methods in tables, by their names in conf/.
GLUE: dict[str, str] = printed_file("names.yaml")["glue"]
IMAGES: dict[str, str] = printed_file("names.yaml")["images"]
BENCHES: dict[str, str] = printed_file("names.yaml")["benches"]
ROBERTA: dict[str, str] = printed_file("names.yaml")["roberta"]
GPT2: dict[str, str] = printed_file("names.yaml")["gpt2"]
VIT: dict[str, str] = printed_file("names.yaml")["vit"]
LLAMAS: dict[str, str] = printed_file("names.yaml")["llamas"]
NAMES: dict[str, str] = printed_file("names.yaml")["methods"]
#: The scores of E2E's texts: the name, and the decimals that the paper prints.
SCORES: dict[str, tuple[str, int]] = {
    key: (name, decimals) for key, (name, decimals) in printed_file("names.yaml")["scores"].items()
}
#: Tasks on which the paper's row (model, row) started from an adapter trained on MNLI. Our run of such a task
#: is comparable only if it started there, too.
FROM_MNLI = {("roberta_base", "lora"): ("mrpc", "rte", "stsb")}


def paper() -> dict[str, Any]:
    """The content of printed/tables.yaml, with the formulas and findings beside the numbers."""
    return printed_file("tables.yaml")


def claims() -> dict[str, Any]:
    """Numbers of the paper's text."""
    return printed_file("claims.yaml")


def recipes() -> dict[str, Any]:
    """The hyperparameters that the papers print."""
    return printed_file("recipes.yaml")


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
    names, found = printed_file("names.yaml"), list[Printed]()
    of_one_task = {"table3": "e2e"} | dict.fromkeys(("table4", "table12", "table13"), "alpaca")
    for table, part, model, method, size, values in _lines():
        rows = names["rows"].get(table, {})
        row = rows.get(f"{method} {size}") or rows.get(method, method)
        name = method if table in ("table6", "table7") else NAMES.get(method, method)
        quoted = row in names["quoted"].get(table, ())
        for column, value in values.items():
            task = of_one_task.get(table, "" if column == "avg" else column)
            number, spread = map(float, value) if isinstance(value, list) else (float(value), None)
            about = (table, part, model.replace("-", "_"), row, name, size, task, column)
            found.append(Printed(*about, number, spread, quoted))
    return tuple(found)


def _lines() -> Iterator[tuple[str, str, str, str, str, dict[str, Any]]]:
    """Each row of printed/tables.yaml: its table, part, model, method (or setting) and size, and its values
    by column, x or [x, spread]."""
    content = paper()
    for table in ("table2", "table3", "table5"):
        columns = content[table]["columns"][2:]
        for model in (key for key in content[table] if key != "columns"):
            for method, size, *values in content[table][model]:
                yield table, "", model, method, str(size), dict(zip(columns, values, strict=True))
    for model, method, size, score in content["table4"]["rows"]:
        yield "table4", "", model, method, str(size), {"score": score}
    for table, part in [
        *(("table6", of) for of in ("scaling_vectors", "matrix_init", "d_init")),
        ("table7", ""),
    ]:
        columns = content[table]["columns"][1:]
        for setting, *values in content[table][part or "rows"]:
            yield table, part, "roberta_large", str(setting), "", dict(zip(columns, values, strict=True))
    for table in ("table12", "table13"):
        for values in content[table]["rows"]:
            row = dict(zip(content[table]["columns"], values, strict=True))
            method = row.pop("method")
            size = f"{row.pop('params')} ({row.pop('bytes')})" if table == "table13" else ""
            yield table, "", "llama_7b", method, size, row
