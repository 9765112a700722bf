"""Recipes: the one way by which a row gets values of its own (docs/recipes.md).

    conf/config.yaml          lr: ${recipe:lr,1e-3}         a key that recipes may set, and its default
    conf/recipe/ROW/MODEL     lr: 1e-2                      of every row and task
                              by_task: {lr: {rte: 4e-2}}    of one task
                              by_row: {vera: {lr: 8e-2}}    of one row, where rows share a recipe

A later line comes before the earlier ones; a row's part may have by_task itself. `of_row` takes a row's
part, and from_recipe (runs/record/rows.py) reads the result, in configurations and in records."""

import json
import re
from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runs.command import did_you_mean
from runs.config.schema import alpha_of
from runs.errors import UserError
from runs.record import ROOT, from_recipe

#: A key of a recipe, where a file reads it.
READS = re.compile(r"\$\{recipe:([a-z_0-9]+)")
#: The sites of each class of peft where none are named. Read as a file: importing vera would import torch.
PEFT_SITES = ROOT / "vera" / "methods" / "peft_sites.json"


def check_recipe(recipe: dict[str, Any], read: Collection[str], tasks: Collection[str]) -> None:
    """Raises UserError for a key that nothing reads, and for a task that there is not: a misspelt one would
    leave the default in effect, under the recipe's name.

    recipe: a file of conf/recipe; source says where its values are from, and chosen which of them are this
    project's choice, with the reason. read: the keys that files read. tasks: the names of all tasks."""
    known = {*read, "source", "chosen", "by_task", "by_row"}
    try:
        for part in (recipe, *recipe.get("by_row", {}).values()):
            by_task = part.get("by_task", {})
            names = [(name, known) for name in (*part, *part.get("chosen", {}), *by_task)]
            names += [(name, {*tasks}) for of in by_task.values() for name in of.keys()]  # noqa: SIM118
            for name, of in names:
                if name not in of:
                    near = did_you_mean(name, sorted(of)) or f" Known: {', '.join(sorted(of))}"
                    raise UserError(f"{name}: nothing reads it.{near}")
    except AttributeError:
        raise UserError("by_row, by_task and the values of by_task are mappings") from None


def of_row(recipe: dict[str, Any], row: str) -> dict[str, Any]:
    """A recipe as a row sees it: without by_row, and with the row's part in the place of what every row has.
    row: as by_row names it, vera or peft:IA3Config."""
    if "by_row" not in recipe:
        return recipe
    part = dict(recipe["by_row"].get(row) or {})
    shared, own = recipe.get("by_task") or {}, part.pop("by_task", None) or {}
    found = {key: value for key, value in recipe.items() if key != "by_row"} | part
    if shared or own:  # a value for one task would stand before the row's own for all tasks
        found["by_task"] = {key: of for key, of in shared.items() if key not in part}
        found["by_task"] |= {key: shared.get(key, {}) | of for key, of in own.items()}
    if chosen := recipe.get("chosen"):  # how a value was chosen is said of rows that have it
        here = {*recipe, *shared, *part, *own}
        found["chosen"] = {key: why for key, why in chosen.items() if key in here}
    return found


# --- resolvers: ${recipe:KEY,DEFAULT}, ${alpha:...}, ${keep:} and ${peft_sites:CLASS} in conf/


def _recipe(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    return _node(from_recipe(_root_, key, default))


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf's own type, which --resolve needs."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def _keep(*, _root_: DictConfig) -> str:
    """Which epoch's adapter is kept: the task's `keep`, or else the method's; never one of a method that
    keeps none."""
    method, task = str(_root_.method.get("keep")), _root_.task.get("keep")
    return method if method == "none" or task is None else str(task)


def _peft_sites(config_class: str) -> Any:
    sites: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return _node(sites.get(config_class, sites["others"]))


OmegaConf.register_new_resolver("peft_sites", _peft_sites, replace=True)
OmegaConf.register_new_resolver("recipe", _recipe, replace=True)
OmegaConf.register_new_resolver("alpha", alpha_of, replace=True)
OmegaConf.register_new_resolver("keep", _keep, replace=True)
