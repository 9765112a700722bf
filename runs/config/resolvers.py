"""Recipes, as files of conf/recipe say them and as a row sees them; and the functions
that the files of conf/ call: ${recipe:KEY,DEFAULT}, ${alpha:...}, ${keep:} and
${peft_sites:CLASS}. docs/recipes.md describes how a recipe's values get
into a configuration."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf

from runs.command.advice import did_you_mean
from runs.command.errors import UserError
from runs.config.files import Files
from runs.record.ledger import ROOT

#: The sites of each class of peft where none are named. Read as a file: importing vera
#: would import torch.
PEFT_SITES = ROOT / "vera" / "methods" / "peft_sites.json"


def recipe_value(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """The recipe's value of a key: for the task, else for all tasks. A null is a value
    (`clip: null`). runs.record.from_recipe reads it so in a record."""
    recipe = _root_.get("recipe")
    if not recipe:
        return _node(default)
    by_task = recipe.get("by_task")
    values = by_task.get(key) if by_task else None
    if values and _root_.task.name in values:
        return _node(values[_root_.task.name])
    return recipe[key] if key in recipe else _node(default)


def alpha_of(scaling: str, alpha: int | float, of_rank: int, rank: int) -> int | float:
    """LoRA's alpha at a rank, from the recipe's alpha and rank (conf/method/lora.yaml):
    constant, or proportional to the rank. A whole number stays one: identities hash 8,
    not 8.0."""
    if scaling != "proportional":
        return alpha
    scaled = alpha * rank / of_rank
    return int(scaled) if scaled.is_integer() and isinstance(alpha, int) else scaled


def keep_of_method_or_task(*, _root_: DictConfig) -> str:
    """Which epoch's adapter is kept: the task's `keep`, else the method's; of a method
    without any, none."""
    method = str(_root_.method.get("keep"))
    task = _root_.task.get("keep")
    return method if method == "none" or task is None else str(task)


def sites_of_peft(config_class: str) -> Any:
    """The sites of a class of peft."""
    sites: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return _node(sites.get(config_class, sites["others"]))


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf's own type, which --resolve needs."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def register(resolvers: dict[str, Callable[..., Any]]) -> None:
    """Registers them with OmegaConf, whose 2.4 has another name for this. (What has
    that name in 2.3 is another function.)"""
    version = tuple(map(int, omegaconf.__version__.split(".")[:2]))
    names = {True: "register_resolver", False: "register_new_resolver"}
    register_one: Any = getattr(OmegaConf, names[version >= (2, 4)])
    for name, resolver in resolvers.items():
        register_one(name, resolver, replace=True)


register(
    {
        "recipe": recipe_value,
        "alpha": alpha_of,
        "keep": keep_of_method_or_task,
        "peft_sites": sites_of_peft,
    }
)


# --- a recipe's files

#: The keys of a recipe that no other file reads.
OF_RECIPES = ("source", "chosen", "by_task", "by_row")


def recipe_of_row(recipe: dict[str, Any], row: str) -> dict[str, Any]:
    """A recipe as a row sees it: without by_row, and with the row's part in the place
    of what every row has. row: as by_row names it, vera or peft:IA3Config."""
    if "by_row" not in recipe:
        return recipe
    part = dict(recipe["by_row"].get(row) or {})
    shared = recipe.get("by_task") or {}
    by_task_of_row = part.pop("by_task", None) or {}
    merged = {key: value for key, value in recipe.items() if key != "by_row"}
    merged.update(part)
    if shared or by_task_of_row:
        # a value for one task would stand before the row's own for all tasks
        by_task = {key: values for key, values in shared.items() if key not in part}
        for key, values in by_task_of_row.items():
            by_task[key] = shared.get(key, {}) | values
        merged["by_task"] = by_task
    if reasons := recipe.get("chosen"):
        # how a value was chosen is said of rows that have it
        read_here = {*recipe, *shared, *part, *by_task_of_row}
        chosen = {key: reason for key, reason in reasons.items() if key in read_here}
        merged["chosen"] = chosen | part.get("chosen", {})
    return merged


def check_recipe(
    recipe: dict[str, Any], path: Path, task: str | None, files: Files
) -> None:
    """Raises UserError for a key that nothing reads, and for a row or task that there
    is not: a misspelt one would leave the default in effect, under the recipe's name.
    task: the run's, since one's own may have no file."""
    keys = {*files.keys_of_recipes, *OF_RECIPES}
    tasks = {*files.choices("task"), str(task)}
    methods = {*files.choices("method")}
    try:
        rows = recipe.get("by_row", {})
        for row in rows:
            _check_names(path, [row.partition(":")[0]], methods)
        for part in (recipe, *rows.values()):
            by_task = part.get("by_task", {})
            _check_names(path, [*part, *part.get("chosen", {}), *by_task], keys)
            for values in by_task.values():
                _check_names(path, {**values}, tasks)
    except (AttributeError, TypeError):
        raise UserError(
            f"{path}: by_row, by_task and by_task's values are mappings"
        ) from None


def _check_names(path: Path, names: Iterable[Any], known_names: set[str]) -> None:
    for name in names:
        if name in known_names:
            continue
        listed = f" Known: {', '.join(sorted(known_names))}"
        advice = did_you_mean(str(name), sorted(known_names)) or listed
        raise UserError(f"{path}: {name}: nothing reads it.{advice}")
