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

#: The sites of each class of peft where none are named. The file is read, since importing
#: vera would import torch.
PEFT_SITES = ROOT / "vera" / "methods" / "peft_sites.json"


def recipe_value(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    """The recipe's value of a key for the run's task, else its value for all tasks, else
    the default. A null is a value (`clip: null`). runs.record.from_recipe reads the
    recipe of a record in the same way. _root_: OmegaConf gives the whole configuration
    to a parameter of this name."""
    recipe = _root_.get("recipe")
    if not recipe:
        return _node(default)
    by_task = recipe.get("by_task")
    values = by_task.get(key) if by_task else None
    if values and _root_.task.name in values:
        return _node(values[_root_.task.name])
    return recipe[key] if key in recipe else _node(default)


def alpha_at_rank(
    scaling: str, alpha: int | float, recipe_rank: int, rank: int
) -> int | float:
    """LoRA's alpha at a rank (conf/method/lora.yaml). An int remains one where that is
    exact, since a run's id is a hash of 8, not of 8.0.

    Args:
        scaling: "proportional" to the rank; anything else keeps the recipe's alpha.
        alpha: The recipe's alpha.
        recipe_rank: The rank that the recipe's alpha is for.
        rank: The run's rank.
    """
    if scaling != "proportional":
        return alpha
    scaled = alpha * rank / recipe_rank
    return int(scaled) if scaled.is_integer() and isinstance(alpha, int) else scaled


def keep_of_method_or_task(*, _root_: DictConfig) -> str:
    """Which epoch's adapter is kept: the task's `keep`, else the method's. Where the
    method's is none, it holds for every task. _root_: the whole configuration."""
    keep_of_method = str(_root_.method.get("keep"))
    keep_of_task = _root_.task.get("keep")
    if keep_of_method == "none" or keep_of_task is None:
        return keep_of_method
    return str(keep_of_task)


def sites_of_peft(config_class: str) -> Any:
    """The sites that a class of peft adapts where none are named."""
    sites: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return _node(sites.get(config_class, sites["others"]))


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf's own type, which --resolve needs."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def register(resolvers: dict[str, Callable[..., Any]]) -> None:
    """Registers resolvers with OmegaConf, by the names that the files of conf/ call."""
    version = tuple(map(int, omegaconf.__version__.split(".")[:2]))
    # 2.3 has a register_resolver as well, which is another function
    function_name = "register_new_resolver"
    if version >= (2, 4):
        function_name = "register_resolver"
    register_resolver: Any = getattr(OmegaConf, function_name)
    for name, resolver in resolvers.items():
        register_resolver(name, resolver, replace=True)


register(
    {
        "recipe": recipe_value,
        "alpha": alpha_at_rank,
        "keep": keep_of_method_or_task,
        "peft_sites": sites_of_peft,
    }
)


# --- a recipe's files

#: The keys of a recipe that no file refers to: this module reads them, or a person.
DESCRIBING_KEYS = ("source", "chosen", "by_task", "by_row")


def recipe_of_row(recipe: dict[str, Any], row: str) -> dict[str, Any]:
    """A recipe as a row sees it: without by_row, whose values for this row stand in the
    place of those that all rows share. Its own part by_task, and the shared one, have
    for each key the values by task. row: as by_row names it, vera or
    peft:IA3Config."""
    if "by_row" not in recipe:
        return recipe
    row_values = dict(recipe["by_row"].get(row) or {})
    row_by_task = row_values.pop("by_task", None) or {}
    shared_by_task = recipe.get("by_task") or {}
    merged = {key: value for key, value in recipe.items() if key != "by_row"}
    merged.update(row_values)
    if shared_by_task or row_by_task:
        # a shared value for one task would win over the row's value for all tasks
        by_task = {
            key: values
            for key, values in shared_by_task.items()
            if key not in row_values
        }
        for key, values in row_by_task.items():
            by_task[key] = shared_by_task.get(key, {}) | values
        merged["by_task"] = by_task
    if reasons := recipe.get("chosen"):
        # a row has the reasons of the values that it has
        row_keys = {*recipe, *shared_by_task, *row_values, *row_by_task}
        row_reasons = {
            key: reason for key, reason in reasons.items() if key in row_keys
        }
        merged["chosen"] = row_reasons | row_values.get("chosen", {})
    return merged


def check_recipe(
    recipe: dict[str, Any], path: Path, task: str | None, files: Files
) -> None:
    """Raises UserError for a key that nothing reads, and for a row or task that does not
    exist: with a misspelt one the default would hold, under the recipe's name. task: the
    run's, since a task of the user's own may have no file."""
    keys = {*files.recipe_keys, *DESCRIBING_KEYS}
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
    """Raises UserError, with the file, for the first of the names that is not known."""
    for name in names:
        if name in known_names:
            continue
        listed = f" Known: {', '.join(sorted(known_names))}"
        advice = did_you_mean(str(name), sorted(known_names)) or listed
        raise UserError(f"{path}: {name}: nothing reads it.{advice}")
