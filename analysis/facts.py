"""What a row of `frame.runs` says of a run: functions of its record, and the columns that they make (NAMES,
NUMBERS, at the end). A column is added there, by one line."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from runs.record import (
    CONF,
    FINISHED,
    Metric,
    Record,
    cell_id,
    crossfit_of,
    defining,
    epoch_of_table,
    lora_scaling,
    one_class,
    other_data_seed,
    protocol,
    row_label,
    seed_value,
    text_score,
)


def row_of(record: Record) -> str:
    """The row of tables that a record belongs to. LoRA of another rank than its recipe's is one row with a
    constant alpha and another with a proportional one, however alpha was set."""
    row = str(record["cell"]["row"])
    return f"{row}_proportional" if lora_scaling(record["config"]) == "proportional" else row


def label_of(record: Record) -> str:
    """The name of a record's method in tables. It says how LoRA's alpha was chosen, which the labels of older
    records do not, and spells a class of peft as every table does."""
    by_config = lora_scaling(record["config"]) or record["config"]["method"]["kind"] == "peft"
    return row_label(record["config"]) if by_config else str(record["label"]["row"])


def kind_of(record: Record) -> str:
    """What a record is: a result, or why it is in no table: failed, stopped (train.max_steps ended it
    early), or a trial (judged on training rows, task.holdout)."""
    config = record["config"]
    if record["status"] not in FINISHED:
        return "failed"
    if config["train"].get("max_steps") is not None:
        return "stopped"
    return "result" if config["task"].get("holdout") is None else "trial"


def reported_epoch(record: Record) -> str:
    """best or last: the epoch that a table reports of a record."""
    return epoch_of_table(record["config"]["train"], record["result"]["reported"])


def measured_on(record: Record) -> str:
    """What a record's number was measured on, and how: the data, how many rows of them, the texts that were
    decoded, the protocol, and whether an epoch was chosen. Numbers that differ in it are not compared."""
    items, chosen = record["config"]["task"].get("items"), reported_epoch(record) == "best"
    return repr((protocol(record), chosen, items, *sorted(record["data"].items())))


def settings_of(record: Record) -> dict[str, Any]:
    """What defines a record's result except its seed and what follows it, as one mapping without groups."""
    settings = dict[str, Any]()
    for group, values in defining(record["config"]).items():
        of_group = values if isinstance(values, dict) else {group: values}
        settings |= {key: value for key, value in of_group.items() if key != "draw_seed"}
    if record["config"]["method"].get("redrawn"):
        settings.pop("projection_seed", None)
    settings |= {"recipe": record["recipe"]["name"], "start": (record.get("start") or {}).get("id")}
    return settings | {
        "data_seed": other_data_seed(record),
        "protocol": protocol(record),
        "data": record["data"]["content"].rpartition(":")[2][:8],
        "model": record["model"].rpartition(":")[2][:8],
    }


def forgetting(record: Record) -> float:
    """Nats a token that a run has lost on its text (above 0), or gained; NaN where it was not measured."""
    of = record["result"].get("forgetting") or {}
    whole = of.get("before") is not None and of.get("after") is not None
    return float(of["after"] - of["before"]) if whole else math.nan


#: Tokens of the text whose forward pass `added_flops` counts.
TOKENS = 512
#: Methods of this project whose change merges into the weights of the base model, so that inference costs
#: nothing more (docs/methods.md). Of peft's classes there, one does not merge.
MERGE = {"none", "head", "full", "bitfit", "ssf", "lora", "dylora", "lora_xs", "tied_lora", "nola"}
MERGE |= {"adalora", "vera", "vera_plus"}
PEFT_STAYS = {"LilyConfig"}


def added_flops(record: Record) -> float:
    """FLOPs of a forward pass over TOKENS tokens beyond the base model's: 0 where the method merges, two
    for each weight of a bottleneck adapter and token, in each block that shares it; NaN where that is not
    known."""
    config, method = record["config"], record["config"]["method"]
    if method["kind"] == "adapter":
        architecture = config["model"].get("architecture") or {}
        layers = architecture.get("num_hidden_layers") or architecture.get("n_layer")
        blocks = int(layers) - int(method.get("drop_layers") or 0) if layers else math.nan
        return 2.0 * TOKENS * record["parameters"]["adapter"] * (blocks if method.get("share") else 1)
    of_peft = method["kind"] == "peft" and method["config_class"] not in PEFT_STAYS
    return 0.0 if of_peft or method["kind"] in MERGE else math.nan


def part_of_data(record: Record) -> bool:
    """Whether a run was trained or evaluated on as many rows as task.train_rows and task.dev_rows say. With
    fewer rows than the setting says, the data are whole."""
    task, data = record["config"]["task"], record["data"]
    return any(task.get(key) and task[key] == data[key] for key in ("train_rows", "dev_rows"))


@cache
def of_method(recipe: str) -> bool:
    """Whether a recipe is that of a method, such as vera/minilm, and not one that a study made for its
    rows."""
    return (CONF / "method" / f"{recipe.partition('/')[0]}.yaml").is_file()


def metric(epoch: str | None, select: str = "paper") -> Callable[[Record], float]:
    return lambda record: record["result"]["scale"] * seed_value(record, epoch, select)


def crossfit(record: Record) -> float:
    return float(record["result"]["scale"] * seed_value(record, reported_epoch(record), "crossfit"))


def optimism(record: Record) -> float:
    of = crossfit_of(record) if record["status"] == "done" and reported_epoch(record) == "best" else None
    return float(record["result"]["scale"] * of["optimism"]) if of else math.nan


def score(key: str) -> Callable[[Record], float]:
    return lambda record: math.nan if (score := text_score(record, key)) is None else score


def cost(*keys: str) -> Callable[[Record], float | None]:
    def number(record: Record) -> float | None:
        known = [record["cost"][key] for key in keys if record["cost"].get(key) is not None]
        return float(sum(known)) if known else None

    return number


def at(*path: str) -> Callable[[Record], Any]:
    def value(record: Record) -> Any:
        part: Any = record
        for key in path:
            part = (part or {}).get(key)
        return part

    return value


def one_draw(record: Record) -> bool:
    """Whether all seeds share VeRA's random matrices."""
    method = record["config"]["method"]
    return method["kind"] == "vera" and not method.get("redrawn")


# --- the columns of `frame.runs`

SCORES = ("bleu", "nist", "meteor", "rouge_l", "cider")
#: The columns of `runs`: how each comes from a record, and what `cells` makes of it: its first value, its
#: median over the runs that did not diverge, or nothing (""). A failed run has those of NAMES alone.
NAMES: dict[str, tuple[Callable[[Record], Any], str]] = {
    "id": (at("id"), ""),
    "status": (at("status"), ""),
    "kind": (kind_of, ""),
    "model": (at("cell", "model"), ""),
    "row": (row_of, ""),
    "task": (at("cell", "task"), ""),
    "seed": (at("cell", "seed"), ""),
    "label": (label_of, "first"),
    "model_label": (at("label", "model"), "first"),
    "task_label": (at("label", "task"), "first"),
    "method": (at("config", "method", "kind"), "first"),
    "scaling": (lambda record: lora_scaling(record["config"]), "first"),
    "conf_row": (at("cell", "row"), "first"),
    "family": (at("config", "task", "family"), "first"),
    "preset": (at("cell", "paper"), ""),
    "asked_train_rows": (lambda record: record["config"]["task"].get("train_rows") or 0, ""),
    "asked_dev_rows": (lambda record: record["config"]["task"].get("dev_rows") or 0, ""),
    "epochs": (at("config", "train", "epochs"), "first"),
    "lr": (at("config", "train", "lr"), "first"),
    "lr_head": (at("config", "train", "lr_head"), "first"),
    "error": (at("error"), ""),
}
NUMBERS: dict[str, tuple[Callable[[Record], Any], str]] = {
    "metric": (at("result", "metric"), "first"),
    "higher_is_better": (at("result", "higher_is_better"), "first"),
    "scale": (at("result", "scale"), "first"),
    "decimals": (lambda record: Metric.of_record(record).decimals, "first"),
    "reported": (reported_epoch, "first"),
    "value": (metric(None), ""),
    "best": (metric("best"), ""),
    "last": (metric("last"), ""),
    "best_epoch": (
        lambda record: (record["result"].get("protocols") or {}).get("paper", {}).get("best_epoch"),
        "",
    ),
    "last_epoch": (lambda record: (record["curve"]["epoch"] or [math.nan])[-1], ""),
    "crossfit": (crossfit, ""),
    "half": (metric("best", "half"), ""),
    "optimism": (optimism, ""),
    **{key: (score(key), "") for key in SCORES},
    "forgetting": (forgetting, ""),
    "forgetting_before": (at("result", "forgetting", "before"), ""),
    "forgetting_name": (at("result", "forgetting", "text"), ""),
    "forgetting_text": (at("result", "forgetting", "sha256"), ""),
    "forgetting_tokens": (at("result", "forgetting", "tokens"), ""),
    "added_flops": (added_flops, ""),
    "diverged": (lambda record: record["status"] == "diverged", ""),
    "one_class": (one_class, ""),  # the share of rows that the class has, in words
    "parameters": (at("parameters", "adapter"), "first"),
    "head_parameters": (at("parameters", "head"), "first"),
    "total_parameters": (at("parameters", "total"), "first"),
    "train_rows": (at("data", "train_rows"), "first"),
    "dev_rows": (at("data", "dev_rows"), "first"),
    "data": (at("data", "content"), "first"),
    "part_of_data": (part_of_data, ""),
    "shots": (at("config", "task", "shots"), "first"),
    "evaluations": (lambda record: len(record["curve"]["epoch"]), ""),
    "rank": (at("config", "method", "rank"), "first"),
    "alpha": (at("config", "method", "alpha"), "first"),
    "texts": (lambda record: (record.get("texts") or {}).get("scores", []), ""),
    "judged": (lambda record: record.get("judged") or [], ""),
    "template": (at("config", "task", "template"), ""),
    "seconds": (cost("train_seconds", "evaluate_seconds", "decode_seconds"), "median"),
    **{
        key: (cost(key), "median")
        for key in ("train_seconds", "evaluate_seconds", "decode_seconds", "tokens_per_second")
    },
    "peak_memory_bytes": (cost("peak_memory_bytes"), "median"),
    "adapter_bytes": (cost("adapter_bytes"), "median"),
    "steps": (at("steps"), "first"),
    "device": (at("device", "name"), "first"),
    "device_type": (at("device", "type"), "first"),
    "threads": (at("determinism", "threads"), ""),
    "recipe": (lambda record: str(record["recipe"]["name"]), "first"),
    "deviations": (lambda record: tuple(record["deviations"]), ""),
    "protocol": (protocol, "first"),
    "measured": (measured_on, ""),
    "cell": (cell_id, "first"),
    "sources": (lambda record: (record.get("code") or {}).get("sources") or {}, ""),
    "one_draw": (one_draw, "first"),
}
