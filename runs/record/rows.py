"""What a recipe says of a key, and which row of a table a run belongs to: LoRA's alpha at ranks other than
its recipe's, and what the row is called."""

from collections.abc import Mapping
from typing import Any


def from_recipe(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """What a configuration's recipe says of a key: for its task, or else for all. A null counts: `clip: null`
    is none."""
    recipe = config.get("recipe") or {}
    by_task = (recipe.get("by_task") or {}).get(key) or {}
    return by_task.get(config["task"]["name"], recipe.get(key, default))


def proportional_alpha(alpha: float, of_rank: int, rank: int) -> float:
    """LoRA's alpha for the scale alpha / of_rank at another rank. A whole number stays one: identities hash
    8, not 8.0."""
    scaled = alpha * rank / of_rank
    return int(scaled) if scaled.is_integer() and isinstance(alpha, int) else scaled


#: What method.scaling may be: LoRA's alpha is the recipe's at every rank, or follows the rank.
SCALINGS = ("constant", "proportional")


def lora_scaling(config: dict[str, Any]) -> str | None:
    """How a LoRA run's alpha came about: "constant" (the recipe's alpha, as in Hu et al. 2021),
    "proportional" (the recipe's alpha / rank, times this rank), or "given" (neither). None at the recipe's
    own rank and alpha, where the two are one, and for other methods."""
    method = config["method"]
    if method.get("kind") != "lora":
        return None
    # conf/method/lora.yaml's, without a recipe
    rank, alpha = from_recipe(config, "rank", 8), from_recipe(config, "alpha", 8)
    if not all(
        isinstance(number, int | float) for number in (rank, alpha, method.get("rank"), method.get("alpha"))
    ):
        return None
    if (method["rank"], method["alpha"]) == (rank, alpha):
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
