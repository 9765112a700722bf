"""Which settings define a result, and so which records are seeds of one cell. And the row of a table that a
run belongs to."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from runs.record.schema import TASK_PATHS, Record

#: Settings of a method that only name it, say what is kept of it, or give values to its other settings.
NOT_SETTINGS = ("label", "keep", "recipe", "init_from", "lr_by", "scaling", "redrawn")
#: Settings of a method that change how it is computed: the result is the same up to rounding.
COMPUTED = ("path", "weights")
#: Settings of a task that do not change the result: names, places of files, how rows are read, and what
#: comes after training. A template counts by its text, which is part of the data's content.
PLACES = (
    *(*TASK_PATHS, "hub", "revision", "label", "modality", "keep", "workers", "bad_images"),
    *("bench", "answer_tokens", "top_p", "top_k"),
)
#: Keys that were added after records had been written, with the value that was fixed before. At that value
#: they are left out of identities and comparisons, so that older records still count.
LATER: dict[str, dict[str, Any]] = {
    "train": {
        "decay_all": False,
        "adam_eps": 1e-8,
        "adam_beta2": 0.999,
        "warmup_steps": None,
        "evaluate_every": 1,
        "lr_by": None,
        "decay_by": None,
    },
    "task": {"holdout": None},
}
#: Keys that are gone, by the task's family, with the value that every run had. Identities hold them still.
GONE: dict[str, dict[str, Any]] = {"images": {"augment": "none", "crop_scale": [0.25, 1.0]}}
#: Task families that sorted batches by length before task.length_grouped was added; others had it from the
#: beginning.
READS_LENGTH_GROUPED = ("glue", "text")


def defining(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that define a run's result, besides its row, its seeds and the contents of its model and
    data."""
    later, family = dict(LATER["task"]), config["task"].get("family")
    if family in READS_LENGTH_GROUPED:
        later["length_grouped"] = True
    settings = {
        "method": _without(config["method"], (*NOT_SETTINGS, *COMPUTED), {}),
        "task": GONE.get(family, {}) | _without(config["task"], PLACES, later),
        "train": _without(config["train"], (), LATER["train"]),
    }
    model = config["model"]
    return settings | {f"model {key}": model[key] for key in ("settings", "quantise") if model.get(key)}


def _without(settings: dict[str, Any], keys: tuple[str, ...], later: Mapping[str, Any]) -> dict[str, Any]:
    """The settings but for these keys, and but for those of `later` at the value there."""
    return {
        key: value
        for key, value in settings.items()
        if key not in keys and (key not in later or value != later[key])
    }


def is_trial(config: dict[str, Any]) -> bool:
    """Whether a run is a trial and no result: stopped early by train.max_steps, or judged on training rows
    (task.holdout)."""
    return config["train"].get("max_steps") is not None or config["task"].get("holdout") is not None


def protocol(record: Record) -> int:
    """The version of the task family's protocol that a run followed."""
    return int(record.get("protocol") or 1)


def other_data_seed(record: Record) -> int | None:
    """The seed of the order of the rows, where it is not the run's own."""
    data_seed = record["config"].get("data_seed")
    return None if data_seed in (None, record["config"].get("seed")) else int(data_seed)


def cell_id(record: Record) -> str:
    """A hash of everything that defines a finished record's result but the seed; of a ledger's records, the
    one that was computed when they were read."""
    if "cell_id" in record:
        return str(record["cell_id"])
    settings = defining(record["config"])
    settings["task"].pop("draw_seed", None)  # follows the seed
    if record["config"]["method"].get("redrawn"):  # then A and B follow it as well
        settings["method"].pop("projection_seed")
    recipe, start = record["recipe"]["name"], (record.get("start") or {}).get("id")
    parts = [settings, record["model"], record["data"]["content"], recipe, start, protocol(record)]
    if (data_seed := other_data_seed(record)) is not None:
        parts.append(data_seed)
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def hash_of(value: Any) -> str:
    """SHA-256 of a value's JSON, with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- rows: their labels, and how LoRA's alpha relates to the recipe's


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


#: Methods as their papers spell them.
PAPERS = (
    *("AdaLoRA", "AdaMSS", "BEFT", "DEFT", "DeLoRA", "FRoD", "GLoRA", "GraLoRA", "HiRA", "LoRA", "MiSS"),
    *("PEANuT", "PSOFT", "PVeRA", "RandLoRA", "RoAd", "SHiRA", "TinyLoRA", "Uni-LoRA", "VB-LoRA", "VeRA"),
)
#: The same, by peft's class in small letters.
SPELLINGS = {name.lower().replace("-", ""): name for name in PAPERS}


def row_label(config: dict[str, Any]) -> str:
    """A run's method as tables and logs name it: "LoRA r=2, alpha=8" where alpha stayed the recipe's at
    another rank, "LoRA r=2, alpha=r" or "alpha=2r" where it follows the rank. A class of peft is spelt as in
    its paper: SHiRA, not Shira."""
    method, scaling = config["method"], lora_scaling(config)
    label, of_class = str(method["label"]), str(method.get("config_class")).removesuffix("Config")
    if re.split("[ ,]", label)[0] == of_class:  # made from the class, as a record keeps it
        label = SPELLINGS.get(of_class.lower(), of_class) + label.removeprefix(of_class)
    if scaling is None:
        return label
    ratio = method["alpha"] / method["rank"]
    alpha = f"{'' if ratio == 1 else f'{ratio:g}'}r" if scaling == "proportional" else f"{method['alpha']:g}"
    return f"{label}, alpha={alpha}"
