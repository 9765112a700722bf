"""What a record is: its keys, their types, and the parts of its configuration that define a result."""

from collections.abc import Callable
from typing import Any

SCHEMA = 2
#: From each older schema to the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda record: record | {"schema": 2, "tries": []}}
#: Of measures, and the columns that each kind has.
MEASURE_SCHEMA = 1
MEASURES = {
    "magnitude": ("layer", "site", "d", "b"),
    "similarity": ("layer", "site", "lora_vera", "lora_random", "vera_random"),
    "matrix_fit": ("method", "rank", "parameters", "mse", "best"),
}
#: A run with one of these needs no other try. A diverged run is a result.
FINISHED = ("done", "diverged")
#: Keys of a part of the configuration that came after records had been written, with what was fixed before. At that value
#: they are left out of identities and comparisons: what was run stays done.
LATER: dict[str, dict[str, Any]] = {
    "train": {"decay_all": False, "adam_eps": 1e-8, "warmup_steps": None, "evaluate_every": 1},
    "task": {"holdout": None},
}
#: Task families whose batches were of like lengths before task.length_grouped said so. Others have had it from the beginning.
READS_LENGTH_GROUPED = ("glue", "text")

Record = dict[str, Any]


def defining(config: dict[str, Any], part: str) -> dict[str, Any]:
    """The settings of a part of the configuration (train, task) that tell runs apart."""
    later = LATER[part]
    if part == "task" and config["task"].get("family") in READS_LENGTH_GROUPED:
        later = later | {"length_grouped": True}
    return {key: value for key, value in config[part].items() if key not in later or value != later[key]}


def is_trial(config: dict[str, Any]) -> bool:
    """Whether a run was stopped early by train.max_steps, or judged on training rows (task.holdout): no result."""
    return config["train"].get("max_steps") is not None or config["task"].get("holdout") is not None
