"""What defines a result: which settings tell runs apart, and which records are seeds of one cell."""

import hashlib
from typing import Any

import orjson

from runs.record.schema import Record

#: Settings of a method that say what it is called, what is kept of it, and where others of its settings come
#: from.
NOT_SETTINGS = ("label", "keep", "recipe", "init_from", "scaling", "redrawn")
#: Settings of a method that say how it is computed: the result is the same, to rounding.
COMPUTED = ("path", "weights")
#: Settings of a task that say where its files lie and what it is called, and what comes after training.
PLACES = (
    *("data_dir", "train_file", "dev_file", "hub", "revision", "cache_dir", "label", "modality", "keep"),
    *("workers", "bad_images"),
    # By its words; and what comes after training
    *("template", "bench", "mt_bench_dir", "answer_tokens", "top_p", "top_k"),
)
#: Keys of a part of the configuration that came after records had been written, with what was fixed before.
#: At that value they are left out of identities and comparisons: what was run stays done.
LATER: dict[str, dict[str, Any]] = {
    "train": {"decay_all": False, "adam_eps": 1e-8, "warmup_steps": None, "evaluate_every": 1, "lr_by": None},
    "task": {"holdout": None},
}
#: Task families whose batches were of like lengths before task.length_grouped said so. Others have had it
#: from the beginning.
READS_LENGTH_GROUPED = ("glue", "text")


def defining(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that define a run's result, beside its row and seeds and the contents of its model and
    data."""
    later = LATER["task"] | (
        {"length_grouped": True} if config["task"].get("family") in READS_LENGTH_GROUPED else {}
    )
    settings = {
        "method": _without(config["method"], (*NOT_SETTINGS, *COMPUTED)),
        "task": _without(_changed(config["task"], later), PLACES),
        "train": _changed(config["train"], LATER["train"]),
    }
    model = config["model"]
    return settings | {f"model {key}": model[key] for key in ("settings", "quantise") if model.get(key)}


def _without(settings: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _changed(settings: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in later or value != later[key]}


def is_trial(config: dict[str, Any]) -> bool:
    """Whether a run was stopped early by train.max_steps, or judged on training rows (task.holdout): no
    result."""
    return config["train"].get("max_steps") is not None or config["task"].get("holdout") is not None


def protocol(record: Record) -> int:
    """The version of the task family's protocol that a run followed."""
    return int(record.get("protocol") or 1)


def cell_id(record: Record) -> str:
    """A hash of everything that defines a finished record's result but the seed. Records of a ledger have it
    at hand."""
    if "cell_id" in record:
        return str(record["cell_id"])
    settings = defining(record["config"])
    settings["task"].pop("draw_seed", None)  # follows the seed
    if record["config"]["method"].get("redrawn"):  # and then this one follows it, too
        settings["method"].pop("projection_seed")
    start = (record.get("start") or {}).get("id")
    parts = [
        settings,
        record["model"],
        record["data"]["content"],
        record["recipe"]["name"],
        start,
        protocol(record),
    ]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
