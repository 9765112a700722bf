"""The row of a table that a run belongs to: its label, and how LoRA's alpha relates to the recipe's."""

from collections.abc import Mapping
from typing import Any


def from_recipe(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The recipe's value of a key: for the configuration's task, or else for all tasks. A null is a value:
    `clip: null` switches clipping off."""
    recipe = config.get("recipe") or {}
    by_task = (recipe.get("by_task") or {}).get(key) or {}
    return by_task.get(config["task"]["name"], recipe.get(key, default))


def lora_scaling(config: dict[str, Any]) -> str | None:
    """How a LoRA run's alpha depends on its rank: "constant" (the recipe's alpha, as in Hu et al. 2022),
    "proportional" (the recipe's alpha / rank, times this rank), or "given" (neither). None for other methods,
    and at the recipe's own rank and alpha, where "constant" and "proportional" are the same."""
    method = config["method"]
    if method.get("kind") != "lora":
        return None
    # Without a recipe: the values of conf/method/lora.yaml
    rank, alpha = from_recipe(config, "rank", 8), from_recipe(config, "alpha", 8)
    own = method.get("rank"), method.get("alpha")
    if own == (rank, alpha) or not all(isinstance(number, int | float) for number in (rank, alpha, *own)):
        return None
    if method["rank"] != rank and method["alpha"] == alpha:
        return "constant"
    return "proportional" if method["alpha"] * rank == method["rank"] * alpha else "given"


def row_label(config: dict[str, Any]) -> str:
    """A run's method as tables and logs name it: "LoRA r=2, alpha=8" where alpha stayed the recipe's at
    another rank, "LoRA r=2, alpha=r" or "alpha=2r" where it follows the rank."""
    method, scaling = config["method"], lora_scaling(config)
    if scaling is None:
        return str(method["label"])
    ratio = method["alpha"] / method["rank"]
    alpha = f"{'' if ratio == 1 else f'{ratio:g}'}r" if scaling == "proportional" else f"{method['alpha']:g}"
    return f"{method['label']}, alpha={alpha}"
