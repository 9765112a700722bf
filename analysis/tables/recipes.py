"""Tables 8 to 11: the recipes of conf/recipe, beside those that the paper prints."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis.paper import GLUE, IMAGES, LLAMAS, NAMES, recipes
from analysis.render import Entry, Table
from analysis.tables.view import View
from runs.record import CONF

#: Keys of a recipe as tables call them.
KEYS = {"rank": "rank", "effective_batch": "batch size", "max_length": "tokens", "epochs": "epochs"}
KEYS |= {"lr": "learning rate", "lr_head": "learning rate, head", "schedule": "schedule"}
KEYS |= {"warmup_ratio": "warm-up ratio", "warmup_steps": "warm-up steps", "weight_decay": "weight decay"}
KEYS |= {"label_smoothing": "label smoothing"}


@cache
def _recipe_file(row: str, model: str) -> dict[str, Any]:
    return _read(CONF / "recipe" / row / f"{model}.yaml")


def _read(path: Path) -> dict[str, Any]:
    """A file with those that its defaults list names, as Hydra merges them: what comes later counts."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    entries, merged = content.pop("defaults", ["_self_"]), dict[str, Any]()
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        other = CONF / f"{entry.partition('@')[0].strip('/')}.yaml"
        for key, value in (content if entry == "_self_" else _read(other)).items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **value} if both else value
    return merged


def recipe(row: str, model: str, task: str, key: str) -> Any:
    """A value of conf/recipe/ROW/MODEL.yaml, by task or at its top; None where the file has none."""
    file = _recipe_file(row, model)
    value = (file.get("by_task") or {}).get(key, {}).get(task, file.get(key))
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 4e-3 as a text
    except ValueError:
        return value


Column = tuple[str, str, str]  # row, model, task


def _recipe_table(title: str, columns: dict[str, Column], printed: dict[str, Any], notes: list[str]) -> Table:
    """The recipe's values, a line for each key; the last column says whether the paper prints the same.

    printed: the paper's values by key, a list with one for each column or one for all; None where it prints
    none.
    """
    rows = list[list[Entry]]()
    for key, values in printed.items():
        papers = values if isinstance(values, list) else [values] * len(columns)
        ours = [recipe(*column, key) for column in columns.values()]
        pairs = [(a, b) for a, b in zip(ours, papers, strict=True) if b is not None]
        wrong = ", ".join(str(b) for _, b in pairs) if any(a != b for a, b in pairs) else ""
        status = f"DIFFERS: {wrong}" if wrong else "as printed" if pairs else "not printed"
        rows.append([KEYS[key], *map(_plain, ours), status])
    chosen: dict[str, None] = {}
    for row, model, _ in columns.values():
        reasons = _recipe_file(row, model).get("chosen") or {}
        chosen |= dict.fromkeys(f"{key}: {why}" for key, why in reasons.items())
    notes = [*notes, *(f"this project's choice: {line}" for line in chosen)]
    return Table(title, ["hyperparameter", *columns, "paper"], rows, notes)


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def table8(view: View) -> list[Table]:
    """The recipes of VeRA on GLUE. Needs no record."""
    tables, common = [], recipes()["glue"]["common"]
    for name, label in (("roberta-base", "RoBERTa-base"), ("roberta-large", "RoBERTa-large")):
        papers = recipes()["glue"]["vera"][name]
        printed = {"rank": papers["rank"], "effective_batch": papers["batch"]}
        printed |= {key: papers[key] for key in ("max_length", "epochs", "lr", "lr_head")}
        printed |= {key: common[key] for key in ("warmup_ratio", "schedule")} | {"weight_decay": None}
        columns = {GLUE[task]: ("vera", name.replace("-", "_"), task) for task in GLUE}
        title = f"Table 8, {label}: VeRA on GLUE, from conf/recipe"
        tables.append(_recipe_table(title, columns, printed, ["AdamW."]))
    return tables


def table9(view: View) -> list[Table]:
    """The recipes of instruction tuning, the same for each Llama. Needs no record."""
    papers = recipes()["instruct"]
    common = papers["common"]
    printed = {key: [papers[row][key] for row in ("lora", "vera")] for key in ("rank", "lr")}
    printed |= {"effective_batch": common["batch"] * common["accumulation"]}
    printed |= {key: common[key] for key in ("epochs", "warmup_ratio", "schedule")} | {"max_length": None}
    notes = [f"AdamW. The paper's batch is {common['batch']}, accumulated {common['accumulation']} times."]
    tables = []
    for model, label in LLAMAS.items():
        columns = {NAMES[row]: (row, model, "alpaca") for row in ("lora", "vera")}
        title = f"Table 9, {label}: instruction tuning, from conf/recipe"
        tables.append(_recipe_table(title, columns, printed, notes))
    return tables


def table10(view: View) -> list[Table]:
    """The recipes of VeRA on E2E. Needs no record."""
    papers, common = recipes()["e2e"]["vera"], recipes()["e2e"]["common"]
    columns = {"medium": ("vera", "gpt2_medium", "e2e"), "large": ("vera", "gpt2_large", "e2e")}
    printed = {key: [papers[name][key] for name in ("gpt2-medium", "gpt2-large")] for key in ("rank", "lr")}
    printed |= {"effective_batch": common["batch"]}
    keys = ("epochs", "warmup_steps", "schedule", "weight_decay", "label_smoothing")
    printed |= {key: common[key] for key in keys}
    return [_recipe_table("Table 10: VeRA on E2E with GPT-2, from conf/recipe", columns, printed, ["AdamW."])]


def table11(view: View) -> list[Table]:
    """The recipes of image classification. Needs no record."""
    common = recipes()["images"]["common"]
    tables = []
    for name, label in (("vit-base", "ViT-B/16"), ("vit-large", "ViT-L/16")):
        for row in ("head", "full", "lora", "vera"):
            papers = recipes()["images"][name][row]
            columns = {IMAGES[task]: (row, name.replace("-", "_"), task) for task in IMAGES}
            printed = {key: papers[key] for key in ("rank", "lr", "lr_head") if key in papers}
            printed |= {key: common[key] for key in ("epochs", "schedule", "weight_decay")}
            printed |= {"effective_batch": None, "warmup_ratio": None}
            title = f"Table 11, {label}, {NAMES[row]}: images, from conf/recipe"
            tables.append(_recipe_table(title, columns, printed, ["AdamW. 10 training images a class."]))
    return tables
