"""What a row of `frame.runs` says of a run: for each column a function of the run's
record (FACTS, at the end). One more line there adds a column."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from runs.record.cell import (
    ReportedMetric,
    cell_id,
    crossfit_of,
    defining_settings,
    epoch_of_table,
    judged_on_training_rows,
    key_of_text_score,
    lora_scaling,
    other_data_seed,
    protocol_of,
    recorded_start,
    row_label,
    score_of_record,
    shown_model,
    text_score,
)
from runs.record.collapse import describe_one_class
from runs.record.ledger import CONF
from runs.record.lm_eval import lm_eval_results
from runs.record.schema import FINISHED, TEXT_SCORES, DecodedScores, Record

#: How many digits of a hash are shown.
HASH_DIGITS = 8
#: Settings of a task that change which texts are decoded, and how.
DECODING = (
    "beams",
    "length_penalty",
    "no_repeat_ngram",
    "max_new_tokens",
    "test_rows",
    "items",
)

# --- what a record is, and its names


def kind_of(record: Record) -> str:
    """What a record is: a result, or why it is in no table: failed, stopped
    (train.max_steps ended it early), or a trial (evaluated on training rows,
    task.holdout or task.folds)."""
    config = record["config"]
    if record["status"] not in FINISHED:
        return "failed"
    if config["train"].get("max_steps") is not None:
        return "stopped"
    return "trial" if judged_on_training_rows(config) else "result"


def row_of(record: Record) -> str:
    """The row of tables that a record belongs to: the one that it names. A LoRA run whose
    alpha follows its rank belongs to a row of its own (lora_proportional), whether
    method.scaling or method.alpha made it so: tables keep it apart from runs with the
    recipe's alpha."""
    row = str(record["cell"]["row"])
    if lora_scaling(record["config"]) == "proportional":
        return f"{row}_proportional"
    return row


def label_of(record: Record) -> str:
    """The name of a record's method in tables. For LoRA of another rank or alpha than its
    recipe's, and for methods of peft, it is made anew: older records do not say how
    alpha was chosen, and spell peft's classes in other ways."""
    config = record["config"]
    # lora_scaling is None for other methods, and at the recipe's own rank and alpha
    if lora_scaling(config) or config["method"]["kind"] == "peft":
        return row_label(config)
    return str(record["label"]["row"])


def model_of(record: Record) -> str:
    """The name of a record's model: for a generic one (model=encoder model.path=...)
    that of its folder, or its name on the hub."""
    return shown_model(record["cell"]["model"], record["config"]["model"])


def model_label(record: Record) -> str:
    """A model's name in tables: the label in its file of conf/model. The label of a
    generic model (encoder) is the same for all models of that kind, so that such a
    model has the name of its folder or hub instead."""
    name_in_conf = record["cell"]["model"]
    name = model_of(record)
    is_generic = name != name_in_conf
    return name if is_generic else str(record["label"]["model"])


@cache
def is_method_recipe(recipe: str) -> bool:
    """Whether a recipe is that of a method, such as vera/minilm, and not one that a
    study made for its rows."""
    method = recipe.partition("/")[0]
    return (CONF / "method" / f"{method}.yaml").is_file()


def settings_of(record: Record) -> dict[str, Any]:
    """What defines a record's result, as one flat mapping: the settings by their keys
    without the group (lr, rank), the recipe's name, and the hashes of data and model.
    The seed and what follows from it are not in it."""
    settings = dict[str, Any]()
    for name, value in defining_settings(record["config"], with_seeds=False).items():
        if isinstance(value, dict):  # the settings of a group
            settings |= value
        else:
            settings[name] = value
    settings["recipe"] = record["recipe"]["name"]
    settings["start"] = recorded_start(record)
    settings["data_seed"] = other_data_seed(record)  # None: it follows the seed
    settings["protocol"] = protocol_of(record)
    settings["data"] = short_hash(record["data"]["content"])
    settings["model"] = short_hash(record["model"])
    return settings


def short_hash(content_hash: str) -> str:
    """The first HASH_DIGITS digits of a hash: 05317c8a of sha256:05317c8a3c34."""
    return content_hash.rpartition(":")[2][:HASH_DIGITS]


# --- what was measured


def reported_epoch(record: Record) -> str:
    """best or last: the epoch that a table reports of a record."""
    return epoch_of_table(record["config"]["train"], record["result"]["reported"])


def measurement_of(record: Record) -> dict[str, str]:
    """What a record's score was measured on, and how: phrases by topic, such as "1,000
    training rows". Only scores with the same phrases may be compared."""
    data = record["data"]
    task: Mapping[str, object] = record["config"]["task"]
    phrases = {
        "base model": f"base model {short_hash(record['model'])}",
        "training rows": f"{data['train_rows']:,} training rows",
        "dev rows": f"{data['dev_rows']:,} dev rows",
        "epoch": f"{reported_epoch(record)} epoch",
        "metric": str(record["result"]["metric"]),
        "protocol": f"protocol {protocol_of(record)}",
        "data": f"data {short_hash(data['content'])}",
    }
    dtype = record["config"]["model"].get("dtype")
    if dtype not in (None, "fp32"):  # None is fp32, too
        phrases["dtype"] = f"{dtype} base weights"
    for key in DECODING:
        if task.get(key) is not None:
            phrases[key] = f"{key}={task[key]}"
    return phrases


def way_of(record: Record) -> str:
    """The way in which a record's score was measured, as one text: the phrases of
    `measurement_of` without the protocol (the version of the task family's rules for
    training and scoring). Runs that follow different protocols may share a way, so that
    the older ones are left out as soon as their row has newer ones."""
    phrases = measurement_of(record)
    del phrases["protocol"]
    return "; ".join(phrases.values())


def pairing_key(record: Record) -> str:
    """A key that two records of one seed share if their scores may be paired: it has the
    whole hashes of model and data, the images that the seed draws (selection), and the
    measurement."""
    data = record["data"]
    contents = record["model"], data["content"], data.get("selection")
    return repr((*contents, *measurement_of(record).values()))


# --- numbers of a record


def metric(record: Record, epoch: str | None = None, select: str = "paper") -> float:
    """A record's metric as tables print it, such as an accuracy in percent. epoch: best
    or last; by default the one that tables report. select: on which dev rows the epoch
    is chosen and reported (paper, crossfit or half, see `best_and_last`)."""
    return float(record["result"]["scale"] * score_of_record(record, epoch, select))


def crossfit_metric(record: Record) -> float:
    """The metric by cross-fitting (`runs.record.cell.crossfit`): at the epochs that the
    other half of the dev rows chose, or at the last epoch if tables report that."""
    return metric(record, reported_epoch(record), "crossfit")


def text_score_or_nan(key: str, record: Record) -> float:
    """A score of a record's texts; NaN if it is missing, and 0 for a run that diverged
    before any text. key: one of TEXT_SCORES, or "unread", the percentage of texts in
    which no answer was found."""
    value = text_score(record, key)
    return math.nan if value is None else value


def optimism(record: Record) -> float:
    """How much choosing the epoch on the rows that are reported adds to the score, in the
    unit that tables print. NaN where no epoch is chosen, because the table reports the
    last one, for a diverged run, and for one without scores of both halves of dev."""
    chooses_epoch = reported_epoch(record) == "best"
    if record["status"] != "done" or not chooses_epoch:
        return math.nan
    crossfit = crossfit_of(record) or {}
    added = crossfit.get("optimism")
    return math.nan if added is None else record["result"]["scale"] * added


def forgetting(record: Record) -> float:
    """How much training has raised the loss on a text that is no training data, in nats
    per token (above 0: the run has forgotten); NaN where it was not measured."""
    losses = record["result"].get("forgetting")
    if losses is None or losses["before"] is None or losses["after"] is None:
        return math.nan
    return losses["after"] - losses["before"]


def scores_of_texts(record: Record) -> list[DecodedScores]:
    """The scores of the texts that a run decoded: an entry for each epoch and variant of
    decoding; empty for a run that decoded none."""
    texts = record.get("texts")
    return texts["scores"] if texts else []


def seconds(record: Record) -> float:
    """How many seconds training, evaluation and decoding took together."""
    cost = record["cost"]
    decoding = cost.get("decode_seconds", 0.0)
    return cost["train_seconds"] + cost["evaluate_seconds"] + decoding


def last_epoch(record: Record) -> float:
    """The epoch of the last evaluation; NaN for a run that had none."""
    epochs = record["curve"]["epoch"]
    return float(epochs[-1]) if epochs else math.nan


def shares_matrices(record: Record) -> bool:
    """Whether all seeds of the record's cell share one draw of VeRA's random matrices.
    With method.redrawn each seed draws its own."""
    method = record["config"]["method"]
    return method["kind"] == "vera" and not method.get("redrawn")


def benches(record: Record) -> str:
    """The benches (mt_bench, vicuna_bench) on which a judge has scored the run, separated
    by spaces; "" for none."""
    judgements = record.get("judged") or []
    return " ".join(sorted({judgement["bench"] for judgement in judgements}))


# --- the columns of `frame.runs`


class Fact(NamedTuple):
    """A column of `frame.runs`.

    read: makes its value from a record. per_cell: which value `frame.cells` takes from
    the runs of a cell: the first one, the median over the runs that did not diverge, or
    none (""). form: how a table writes it (render.FORMS). is_cost: whether it depends on
    the device, so that only runs of the same conditions may be compared."""

    read: Callable[[Record], Any]
    per_cell: Literal["", "first", "median"] = ""
    form: str = "general"
    is_cost: bool = False


def value_at(
    path: str, per_cell: Literal["", "first", "median"] = "", form: str = "general"
) -> Fact:
    """A column with the value of a record at a path, such as cost.train_seconds; None
    if the record has none. per_cell, form: as in `Fact`."""
    *groups, key = path.split(".")

    def read(record: Any) -> Any:
        for group in groups:
            record = record.get(group) or {}
        return record.get(key)

    return Fact(read, per_cell, form)


def cost_at(key: str, form: str = "general") -> Fact:
    """A column with a cost of a record that depends on the device, such as train_seconds;
    None if the record has none. A cell has the median. form: as in `Fact`."""
    fact = value_at(f"cost.{key}", "median", form)
    return fact._replace(is_cost=True)


def asked_rows(part: str) -> Fact:
    """A column with how many rows of a part of the data a run asked for; 0 if it asked
    for all. part: train or dev."""
    return Fact(
        lambda record: record["config"]["task"].get(f"{part}_rows") or 0, "first"
    )


#: Columns that every run has, also a failed one.
FACTS_OF_EVERY_RUN: dict[str, Fact] = {
    "id": value_at("id"),
    "status": value_at("status"),
    "kind": Fact(kind_of),
    "model": Fact(model_of),
    "row": Fact(row_of),
    "task": value_at("cell.task"),
    "seed": value_at("cell.seed"),
    "label": Fact(label_of, "first"),
    "scaling": Fact(lambda record: lora_scaling(record["config"]), "first"),
    "asked_train_rows": asked_rows("train"),
    "benches": Fact(benches),
    "asked_dev_rows": asked_rows("dev"),
    "preset": value_at("cell.paper"),
    "error": value_at("error"),
    "model_label": Fact(model_label, "first"),
    "task_label": value_at("label.task", "first"),
    "conf_row": value_at("cell.row", "first"),
    "conf_model": value_at("cell.model", "first"),
    "method": value_at("config.method.kind", "first"),
    "family": value_at("config.task.family", "first"),
    "epochs": value_at("config.train.epochs", "first"),
    "lr": value_at("config.train.lr", "first"),
    "lr_head": value_at("config.train.lr_head", "first"),
}

#: Columns that only a finished run has.
FACTS_OF_FINISHED_RUNS: dict[str, Fact] = {
    # of the dev metric; `digits` of `frame.with_reported_scores` are the reported score's
    "decimals": Fact(lambda record: ReportedMetric.of_record(record).decimals, "first"),
    "reported": Fact(reported_epoch, "first"),
    "value": Fact(metric, form="number"),
    "best": Fact(partial(metric, epoch="best"), form="number"),
    "last": Fact(partial(metric, epoch="last"), form="number"),
    "last_epoch": Fact(last_epoch),
    "crossfit": Fact(crossfit_metric, form="number"),
    "half": Fact(partial(metric, epoch="best", select="half"), form="number"),
    "optimism": Fact(optimism, form="number"),
    "text_score": Fact(key_of_text_score),
    **{key: Fact(partial(text_score_or_nan, key)) for key in (*TEXT_SCORES, "unread")},
    "forgetting": Fact(forgetting),
    "diverged": Fact(lambda record: record["status"] == "diverged"),
    "one_class": Fact(describe_one_class),
    "evaluations": Fact(lambda record: len(record["curve"]["epoch"])),
    "texts": Fact(scores_of_texts),
    "judged": Fact(lambda record: record.get("judged") or []),
    "lm_eval": Fact(lm_eval_results),
    "seconds": Fact(seconds, "median", "number", is_cost=True),
    "recipe": Fact(lambda record: str(record["recipe"]["name"]), "first"),
    "deviations": Fact(lambda record: tuple(record["deviations"])),
    "protocol": Fact(protocol_of, "first"),
    "measurement": Fact(measurement_of, "first"),
    "measured": Fact(pairing_key, "first"),  # equal where scores may be paired
    "way": Fact(way_of),
    "cell": Fact(cell_id, "first"),
    "sources": Fact(lambda record: (record.get("code") or {}).get("sources") or {}),
    "one_draw": Fact(shares_matrices, "first"),
    "metric": value_at("result.metric", "first"),
    "higher_is_better": value_at("result.higher_is_better", "first"),
    "scale": value_at("result.scale", "first"),
    "base_model": value_at("model", "first"),
    "data": value_at("data.content", "first"),
    "steps": value_at("steps", "first", "count"),
    "train_rows": value_at("data.train_rows", "first", "count"),
    "dev_rows": value_at("data.dev_rows", "first", "count"),
    "shots": value_at("config.task.shots", "first"),
    "parameters": value_at("parameters.adapter", "first", "count"),
    "head_parameters": value_at("parameters.head", "first", "count"),
    "total_parameters": value_at("parameters.total", "first", "count"),
    "rank": value_at("config.method.rank", "first"),
    "alpha": value_at("config.method.alpha", "first"),
    "precision": value_at("config.train.precision", "first"),
    "dtype": Fact(
        lambda record: record["config"]["model"].get("dtype") or "fp32", "first"
    ),
    "device": value_at("device.name", "first"),
    "device_type": value_at("device.type", "first"),
    "train_seconds": cost_at("train_seconds", "number"),
    "evaluate_seconds": cost_at("evaluate_seconds", "number"),
    "decode_seconds": cost_at("decode_seconds", "number"),
    "peak_memory_bytes": cost_at("peak_memory_bytes", "bytes"),
    "tokens_per_second": cost_at("tokens_per_second"),
    "images_per_second": cost_at("images_per_second"),
    "adapter_bytes": value_at("cost.adapter_bytes", "median", "bytes"),
    "train_on_inputs": value_at("config.task.train_on_inputs", "first"),
    "beams": value_at("config.task.beams", "first"),
    "threads": value_at("determinism.threads"),
    "best_epoch": value_at("result.protocols.paper.best_epoch"),
    "forgetting_name": value_at("result.forgetting.text"),
    "forgetting_text": value_at("result.forgetting.sha256"),
    "forgetting_before": value_at("result.forgetting.before"),
    "forgetting_tokens": value_at("result.forgetting.tokens"),
}
FACTS = FACTS_OF_EVERY_RUN | FACTS_OF_FINISHED_RUNS
