"""What a row of `frame.runs` says of a run: functions of its record, and the columns
that they make (NAMES, NUMBERS, at the end). A column is added there, by one line."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from runs.record import (
    CONF,
    FINISHED,
    TEXT_SCORES,
    Metric,
    Record,
    cell_id,
    crossfit_of,
    defining,
    epoch_of_table,
    evaluated,
    lora_scaling,
    number_of_texts,
    one_class,
    other_data_seed,
    protocol,
    row_label,
    seed_value,
    text_score,
)


def row_of(record: Record) -> str:
    """The row of tables that a record belongs to. LoRA of another rank than its
    recipe's is one row with a constant alpha and another with a proportional one,
    however alpha was set."""
    row = str(record["cell"]["row"])
    return (
        f"{row}_proportional"
        if lora_scaling(record["config"]) == "proportional"
        else row
    )


def label_of(record: Record) -> str:
    """The name of a record's method in tables. It says how LoRA's alpha was chosen,
    which the labels of older records do not, and spells a class of peft as every table
    does."""
    by_config = (
        lora_scaling(record["config"]) or record["config"]["method"]["kind"] == "peft"
    )
    return row_label(record["config"]) if by_config else str(record["label"]["row"])


def kind_of(record: Record) -> str:
    """What a record is: a result, or why it is in no table: failed, stopped
    (train.max_steps ended it early), or a trial (judged on training rows,
    task.holdout)."""
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
    """What a record's number was measured on, and how: the data, how many rows of them,
    the texts that were decoded, the protocol, and whether an epoch was chosen. Numbers
    that differ in it are not compared."""
    items, chosen = (
        record["config"]["task"].get("items"),
        reported_epoch(record) == "best",
    )
    return repr((protocol(record), chosen, items, *sorted(record["data"].items())))


def settings_of(record: Record) -> dict[str, Any]:
    """What defines a record's result except its seed and what follows it, as one
    mapping without groups."""
    settings = dict[str, Any]()
    for group, values in defining(record["config"], with_seeds=False).items():
        settings |= values if isinstance(values, dict) else {group: values}
    settings |= {
        "recipe": record["recipe"]["name"],
        "start": (record.get("start") or {}).get("id"),
    }
    return settings | {
        "data_seed": other_data_seed(record),
        "protocol": protocol(record),
        "data": record["data"]["content"].rpartition(":")[2][:8],
        "model": record["model"].rpartition(":")[2][:8],
    }


def forgetting(record: Record) -> float:
    """Nats a token that a run has lost on its text (above 0), or gained; NaN where it
    was not measured."""
    of = record["result"].get("forgetting") or {}
    whole = of.get("before") is not None and of.get("after") is not None
    return float(of["after"] - of["before"]) if whole else math.nan


@cache
def of_method(recipe: str) -> bool:
    """Whether a recipe is that of a method, such as vera/minilm, and not one that a
    study made for its rows."""
    return (CONF / "method" / f"{recipe.partition('/')[0]}.yaml").is_file()


def metric(record: Record, epoch: str | None = None, select: str = "paper") -> float:
    """The metric of an epoch, by default of the reported one, as tables print it."""
    return float(record["result"]["scale"] * seed_value(record, epoch, select))


def score(key: str, record: Record) -> float:
    return math.nan if (score := text_score(record, key)) is None else score


def optimism(record: Record) -> float:
    of = (
        crossfit_of(record)
        if record["status"] == "done" and reported_epoch(record) == "best"
        else None
    )
    return float(record["result"]["scale"] * of["optimism"]) if of else math.nan


def seconds(record: Record) -> float | None:
    """Of training, evaluation and decoding."""
    cost = [
        record["cost"].get(f"{part}_seconds")
        for part in ("train", "evaluate", "decode")
    ]
    return (
        float(sum(of for of in cost if of is not None))
        if any(of is not None for of in cost)
        else None
    )


def one_draw(record: Record) -> bool:
    """Whether all seeds share VeRA's random matrices."""
    method = record["config"]["method"]
    return method["kind"] == "vera" and not method.get("redrawn")


# --- the columns of `frame.runs`

#: How a column comes from a record, and what `cells` makes of it: its first value, its
#: median over the runs that did not diverge, or nothing ("").
Columns = dict[str, tuple[Callable[[Record], Any], str]]


def at(path: str) -> Callable[[Record], Any]:
    """The value of a record at a path, such as cost.train_seconds; None where it has
    none."""

    *above, last = path.split(".")

    def value(record: Any) -> Any:
        for key in above:
            record = record.get(key) or {}
        return record.get(last)

    return value


def values(how: str, **paths: str) -> Columns:
    """Columns that are values of a record, by their paths there."""
    return {name: (at(path), how) for name, path in paths.items()}


#: The columns that a failed run has, too.
NAMES: Columns = {
    "id": (at("id"), ""),
    "status": (at("status"), ""),
    "kind": (kind_of, ""),
    "model": (at("cell.model"), ""),
    "row": (row_of, ""),
    "task": (at("cell.task"), ""),
    "seed": (at("cell.seed"), ""),
    "label": (label_of, "first"),
    "scaling": (lambda record: lora_scaling(record["config"]), "first"),
    "asked_train_rows": (
        lambda record: record["config"]["task"].get("train_rows") or 0,
        "first",
    ),
    "benches": (
        lambda record: " ".join(
            sorted({of["bench"] for of in record.get("judged") or []})
        ),
        "",
    ),
    "asked_dev_rows": (
        lambda record: record["config"]["task"].get("dev_rows") or 0,
        "first",
    ),
}
NAMES |= values("", preset="cell.paper", error="error")
NAMES |= values(
    "first", model_label="label.model", task_label="label.task", conf_row="cell.row"
)
NAMES |= values("first", method="config.method.kind", family="config.task.family")
NAMES |= values(
    "first",
    epochs="config.train.epochs",
    lr="config.train.lr",
    lr_head="config.train.lr_head",
)

NUMBERS: Columns = {
    "decimals": (lambda record: Metric.of_record(record).decimals, "first"),
    "reported": (reported_epoch, "first"),
    "value": (metric, ""),
    "best": (lambda record: metric(record, "best"), ""),
    "last": (lambda record: metric(record, "last"), ""),
    "last_epoch": (lambda record: (record["curve"]["epoch"] or [math.nan])[-1], ""),
    "crossfit": (lambda record: metric(record, reported_epoch(record), "crossfit"), ""),
    "half": (lambda record: metric(record, "best", "half"), ""),
    "optimism": (optimism, ""),
    "text_score": (number_of_texts, ""),
    **{key: (partial(score, key), "") for key in (*TEXT_SCORES, "unread")},
    "forgetting": (forgetting, ""),
    "diverged": (lambda record: record["status"] == "diverged", ""),
    "one_class": (one_class, ""),  # the share of rows that the class has, in words
    "evaluations": (lambda record: len(record["curve"]["epoch"]), ""),
    "texts": (lambda record: (record.get("texts") or {}).get("scores", []), ""),
    "judged": (lambda record: record.get("judged") or [], ""),
    "lm_eval": (evaluated, ""),
    "seconds": (seconds, "median"),
    "recipe": (lambda record: str(record["recipe"]["name"]), "first"),
    "deviations": (lambda record: tuple(record["deviations"]), ""),
    "protocol": (protocol, "first"),
    "measured": (measured_on, ""),
    "cell": (cell_id, "first"),
    "sources": (lambda record: (record.get("code") or {}).get("sources") or {}, ""),
    "one_draw": (one_draw, "first"),
}
NUMBERS |= values(
    "first", metric="result.metric", higher_is_better="result.higher_is_better"
)
NUMBERS |= values("first", scale="result.scale", data="data.content", steps="steps")
NUMBERS |= values(
    "first",
    train_rows="data.train_rows",
    dev_rows="data.dev_rows",
    shots="config.task.shots",
)
NUMBERS |= values(
    "first", parameters="parameters.adapter", head_parameters="parameters.head"
)
NUMBERS |= values(
    "first", total_parameters="parameters.total", rank="config.method.rank"
)
NUMBERS |= values(
    "first",
    alpha="config.method.alpha",
    device="device.name",
    device_type="device.type",
)
NUMBERS |= values(
    "median",
    train_seconds="cost.train_seconds",
    evaluate_seconds="cost.evaluate_seconds",
)
NUMBERS |= values(
    "median",
    decode_seconds="cost.decode_seconds",
    peak_memory_bytes="cost.peak_memory_bytes",
)
NUMBERS |= values(
    "median",
    tokens_per_second="cost.tokens_per_second",
    adapter_bytes="cost.adapter_bytes",
)
NUMBERS |= values(
    "first", train_on_inputs="config.task.train_on_inputs", beams="config.task.beams"
)
NUMBERS |= values("", threads="determinism.threads")
NUMBERS |= values("", best_epoch="result.protocols.paper.best_epoch")
NUMBERS |= values(
    "",
    forgetting_name="result.forgetting.text",
    forgetting_text="result.forgetting.sha256",
)
NUMBERS |= values("", forgetting_before="result.forgetting.before")
NUMBERS |= values("", forgetting_tokens="result.forgetting.tokens")
