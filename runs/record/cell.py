"""What defines a result: which settings tell runs apart, and which records are seeds of one cell."""

import hashlib
from typing import Any

import orjson

from runs.record.schema import Record

#: Keys of a part of the configuration that came after records had been written, with what was fixed before. At that value
#: they are left out of identities and comparisons: what was run stays done.
LATER: dict[str, dict[str, Any]] = {
    "train": {"decay_all": False, "adam_eps": 1e-8, "warmup_steps": None, "evaluate_every": 1},
    "task": {"holdout": None},
}
#: Task families whose batches were of like lengths before task.length_grouped said so. Others have had it from the beginning.
READS_LENGTH_GROUPED = ("glue", "text")

#: Parts of a configuration that do not define the result: where things lie, what they are called, how they are computed.
NOT_DEFINING = (
    "seed",
    "data_seed",
    "device",
    "micro_batch",
    "gradient_checkpointing",
    "eval_batch",
    "checkpoint_minutes",
    "output",
    "debug",
    "keep",
    "adapter_precision",
    "select",
    "recipe",
    "init_from",  # by its id, below
)
PLACES = (
    *("label", "keep", "path", "weights", "data_dir", "train_file", "dev_file", "cache_dir", "hub", "revision"),
    *("draw_seed", "workers", "bad_images"),  # the first follows the seed
    *("scaling", "redrawn"),  # say where alpha and projection_seed come from
    *("template", "bench", "mt_bench_dir", "answer_tokens", "top_p", "top_k"),  # of the answers, which come after training
)


def defining(config: dict[str, Any], part: str) -> dict[str, Any]:
    """The settings of a part of the configuration (train, task) that tell runs apart."""
    later = LATER[part]
    if part == "task" and config["task"].get("family") in READS_LENGTH_GROUPED:
        later = later | {"length_grouped": True}
    return {key: value for key, value in config[part].items() if key not in later or value != later[key]}


def is_trial(config: dict[str, Any]) -> bool:
    """Whether a run was stopped early by train.max_steps, or judged on training rows (task.holdout): no result."""
    return config["train"].get("max_steps") is not None or config["task"].get("holdout") is not None


def protocol(record: Record) -> int:
    """The version of the task family's protocol that a run followed."""
    return int(record.get("protocol") or 1)


def cell_id(record: Record) -> str:
    """A hash of everything that defines a finished record's result but the seed. Records of a ledger have it at hand."""
    if "cell_id" in record:
        return str(record["cell_id"])

    def plain(value: Any) -> Any:
        return {k: v for k, v in value.items() if k not in PLACES} if isinstance(value, dict) else value

    config = {k: plain(v) for k, v in record["config"].items() if k not in (*NOT_DEFINING, "model")}
    config |= {part: defining(config, part) for part in ("train", "task")}
    if record["config"]["method"].get("redrawn"):  # and then it follows the seed
        config["method"].pop("projection_seed")
    model = record["config"].get("model", {})
    config["model settings"] = [model.get("settings") or {}, *([model["quantise"]] if model.get("quantise") else [])]
    start = (record.get("start") or {}).get("id")
    parts = [config, record["model"], record["data"]["content"], record["recipe"]["name"], start, protocol(record)]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
