"""The row of a table that a run belongs to: its label, and how LoRA's alpha relates to the recipe's."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from runs.record.place import CONF


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
    another rank, "LoRA r=2, alpha=r" or "alpha=2r" where it follows the rank. A class of peft is spelt as the
    rows of conf/method spell it: SHiRA, not Shira."""
    method, scaling = config["method"], lora_scaling(config)
    label, of_class = str(method["label"]), str(method.get("config_class")).removesuffix("Config")
    if re.split("[ ,]", label)[0] == of_class:  # made from the class, as a record keeps it
        label = _spellings().get(of_class.lower(), of_class) + label.removeprefix(of_class)
    if scaling is None:
        return label
    ratio = method["alpha"] / method["rank"]
    alpha = f"{'' if ratio == 1 else f'{ratio:g}'}r" if scaling == "proportional" else f"{method['alpha']:g}"
    return f"{label}, alpha={alpha}"


#: As their papers spell them: classes of peft that have no row in conf/method.
PAPERS = ("GraLoRA", "GLoRA", "FRoD", "AdaMSS", "TinyLoRA")


@cache
def _spellings() -> dict[str, str]:
    """The names of methods in the labels of conf/method, and of PAPERS, by their small letters."""
    files = (path.read_text(encoding="utf-8") for path in sorted((CONF / "method").glob("*.yaml")))
    names = (found[1] for text in files if (found := re.search(r"^label: (\S+)", text, re.MULTILINE)))
    return {name.lower().replace("-", ""): name for name in (*PAPERS, *names)}
