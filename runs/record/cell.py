"""Which settings define a result, and so which records are seeds of one cell."""

import hashlib
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
