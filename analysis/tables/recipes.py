"""Tables 8 to 11: the recipes of conf/recipe, beside those that the paper prints."""

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from analysis.paper import GLUE, IMAGES, LLAMAS, NAMES, ROBERTA, VIT, recipes
from analysis.render import Entry, Table
from runs.record import CONF, Ledger

#: Keys of a recipe as tables call them.
KEYS = {"rank": "rank", "effective_batch": "batch size", "max_length": "tokens", "epochs": "epochs"}
KEYS |= {"lr": "learning rate", "lr_head": "learning rate, head", "schedule": "schedule"}
KEYS |= {"warmup_ratio": "warm-up ratio", "warmup_steps": "warm-up steps", "weight_decay": "weight decay"}
KEYS |= {"label_smoothing": "label smoothing"}
#: The columns of a table: its names, each with row, model and task; and the paper's values by key, a list
#: with one for each column or one for all (None: it prints none).
Columns = Mapping[str, tuple[str, str, str]]
Printed = Mapping[str, Any]


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


def _parts(number: int) -> Iterator[tuple[str, Columns, Printed, str]]:
    """The tables of a number: what each is about, its columns, what the paper prints, and a note."""
    of = recipes()[{8: "glue", 9: "instruct", 10: "e2e", 11: "images"}[number]]
    common: dict[str, Any] = of["common"]
    if number == 8:
        common = {key: common[key] for key in ("warmup_ratio", "schedule")} | {"weight_decay": None}
        for model, label in ROBERTA.items():
            papers = dict(of["vera"][model.replace("_", "-")])
            papers["effective_batch"] = papers["batch"]
            keys = ("rank", "effective_batch", "max_length", "epochs", "lr", "lr_head")
            columns = {name: ("vera", model, task) for task, name in GLUE.items()}
            yield f"{label}: VeRA on GLUE", columns, {key: papers[key] for key in keys} | common, "AdamW."
    elif number == 9:
        printed = {key: [of[row][key] for row in ("lora", "vera")] for key in ("rank", "lr")}
        printed |= {"effective_batch": common["batch"] * common["accumulation"]}
        printed |= {key: common[key] for key in ("epochs", "warmup_ratio", "schedule")} | {"max_length": None}
        note = f"AdamW. The paper's batch is {common['batch']}, accumulated {common['accumulation']} times."
        for model, label in LLAMAS.items():
            columns = {NAMES[row]: (row, model, "alpaca") for row in ("lora", "vera")}
            yield f"{label}: instruction tuning", columns, printed, note
    elif number == 10:
        columns = {size: ("vera", f"gpt2_{size}", "e2e") for size in ("medium", "large")}
        printed = {key: [of["vera"][f"gpt2-{size}"][key] for size in columns] for key in ("rank", "lr")}
        keys = ("epochs", "warmup_steps", "schedule", "weight_decay", "label_smoothing")
        printed |= {"effective_batch": common["batch"]} | {key: common[key] for key in keys}
        yield ": VeRA on E2E with GPT-2", columns, printed, "AdamW."
    else:
        common = {key: common[key] for key in ("epochs", "schedule", "weight_decay")}
        common |= {"effective_batch": None, "warmup_ratio": None}
        for (model, label), row in itertools.product(VIT.items(), ("head", "full", "lora", "vera")):
            papers = of[model.replace("_", "-")][row]
            printed = {key: papers[key] for key in ("rank", "lr", "lr_head") if key in papers} | common
            columns = {name: (row, model, task) for task, name in IMAGES.items()}
            yield f"{label}, {NAMES[row]}: images", columns, printed, "AdamW. 10 training images a class."


def recipe_tables(number: int, _: Ledger | None = None) -> list[Table]:
    """Table 8 (VeRA on GLUE), 9 (instruction tuning), 10 (E2E) or 11 (images): a line for each key, of which
    the last column says whether the paper prints the same."""
    return [_table(f"Table {number}", *of) for of in _parts(number)]


def _table(number: str, about: str, columns: Columns, printed: Printed, note: str) -> Table:
    rows = list[list[Entry]]()
    for key, values in printed.items():
        papers = values if isinstance(values, list) else [values] * len(columns)
        ours = [recipe(*column, key) for column in columns.values()]
        pairs = [(a, b) for a, b in zip(ours, papers, strict=True) if b is not None]
        status = "as printed" if pairs else "not printed"
        if any(a != b for a, b in pairs):
            status = f"DIFFERS: {', '.join(str(b) for _, b in pairs)}"
        rows.append([KEYS[key], *map(_plain, ours), status])
    files = [_recipe_file(row, model).get("chosen") or {} for row, model, _ in columns.values()]
    chosen = dict.fromkeys(f"this project's choice: {key}: {why}" for of in files for key, why in of.items())
    title = f"{number}{about if about[0] == ':' else f', {about}'}, from conf/recipe"
    return Table(title, ["hyperparameter", *columns, "paper"], rows, [note, *chosen])


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
