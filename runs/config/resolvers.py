"""The functions that the files of conf/ call: ${recipe:KEY,DEFAULT}, ${alpha:...},
${keep:} and ${peft_sites:CLASS}. docs/recipes.md describes how a recipe's values get
into a configuration."""

import json
from collections.abc import Callable
from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf

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
