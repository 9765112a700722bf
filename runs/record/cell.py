"""What a record's number means: which settings define it, and so which records are
seeds of one cell; the row of a table that a run belongs to; its metric, and the
epoch that a protocol chooses."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from runs.record.configuration import Configuration, TrainConfig
from runs.record.keys import KEYS, SEED, Key
from runs.record.schema import (
    TEXT_SCORES,
    Curve,
    DecodedScores,
    MeasuredRecord,
    MetricResult,
    Number,
    Record,
    Selected,
)

#: The names in conf/model of any model of a kind, which model.path= or model.hub=
#: gives.
GENERIC_MODELS = ("decoder", "encoder", "vision")
#: The groups whose keys ids hold together, each under its name.
HASHED_GROUPS: tuple[Literal["method", "task", "train", "reward"], ...] = (
    "method",
    "task",
    "train",
    "reward",
)
#: Keys that were removed, by the task's family, with the value that every run had. Ids
#: still hold them.
VALUES_OF_REMOVED_KEYS: dict[str, dict[str, Any]] = {
    "images": {"augment": "none", "crop_scale": [0.25, 1.0]}
}


@cache
def keys_of_group(group: str) -> dict[str, Key]:
    """The declared keys of a group, by their names in it."""
    return {
        key.name.removeprefix(f"{group}."): key
        for key in KEYS.values()
        if key.group == group
    }


def defining_settings(config: Configuration, with_seeds: bool = True) -> dict[str, Any]:
    """The settings that define a run's result, as the roles of runs/record/keys.py say.
    The row, the contents of model and data, and the seeds `seed` and `data_seed` define
    it, too, and are not among them.

    with_seeds: False leaves out what differs between the seeds of one cell.

    Returns a mapping of settings for each of HASHED_GROUPS that the run has; and, under
    "model NAME", each declared setting of the model."""
    family = config["task"].get("family")
    settings = dict[str, Any]()
    for group in HASHED_GROUPS:
        values = cast("Mapping[str, object] | None", config.get(group))
        if not values:  # a run by likelihood has no settings of a reward
            continue
        settings[group] = _hashed_settings(group, values, family, with_seeds)
    # so that the ids of older runs, which had these keys, stay as they are
    settings["task"] = VALUES_OF_REMOVED_KEYS.get(family or "", {}) | settings["task"]
    if config["method"].get("redrawn") and not with_seeds:
        settings["method"].pop("projection_seed", None)  # A and B follow the seed
    model_settings = _hashed_settings("model", config["model"], family, with_seeds)
    for name, value in model_settings.items():
        # Undeclared keys of a model do not change ids, and {} counts as no setting
        if f"model.{name}" in KEYS and value:
            settings[f"model {name}"] = value
    return settings


def _hashed_settings(
    group: str, values: Mapping[str, object], family: str | None, with_seeds: bool
) -> dict[str, object]:
    """The settings of a group that define the result, each with the value that ids
    hold. Undeclared keys are among them, since they are settings of somebody's own
    method or task. with_seeds: whether keys with the role SEED are among them, too."""
    hashed = dict[str, object]()
    keys = keys_of_group(group)
    for name, value in values.items():
        key = keys.get(name)
        if key is None:
            hashed[name] = value
        elif key.hashed_as:
            hashed[name] = key.hashed_as.value
        elif key.role == SEED and not with_seeds:
            continue
        elif key.in_ids(value, family):
            hashed[name] = value
    return hashed


def id_of(
    config: Configuration,
    *,
    row: str,
    model: str,
    data: str,
    protocol: int,
    start: str | None,
    functions: str | None = None,
) -> str:
    """The id of a run: 12 hex digits of a hash of all that defines its result.

    It holds the row, since two rows of a study may differ in their name alone and still
    are two runs. It does not hold the recipe's name: where two recipes have the same
    values, it is the same run.

    model, data: the hashes of their contents. protocol: the version of the task
    family's protocol. start: the id of the adapter that the run starts from; None for
    the base model. functions: the hash of the user's own reward functions, if any."""
    parts = defining_settings(config)
    parts |= {"row": row, "model": model, "data": data, "protocol": protocol}
    parts["seeds"] = [config["seed"], config["data_seed"]]
    if start is not None:
        parts["start"] = start
    if functions is not None:
        parts["functions"] = functions
    return hash_of(parts)[:12]


def is_trial_or_stopped(config: Configuration) -> bool:
    """Whether a run is a trial, scored on training rows (task.holdout, task.folds), or was
    stopped early (train.max_steps). Neither is in a table."""
    is_stopped = config["train"].get("max_steps") is not None
    return is_stopped or judged_on_training_rows(config)


def judged_on_training_rows(config: Configuration) -> bool:
    """Whether a run is evaluated on rows of the training set."""
    task = config["task"]
    return task.get("holdout") is not None or task.get("folds") is not None


def recorded_start(record: MeasuredRecord) -> str | None:
    """The id of the adapter that a run started from; None for one that started from
    the base model."""
    start = record.get("start")
    return start["id"] if start else None


def protocol_of(record: MeasuredRecord) -> int:
    """The version of the task family's protocol that a run followed. Records that name
    none followed the first."""
    return record.get("protocol") or 1


def other_data_seed(record: MeasuredRecord) -> int | None:
    """A run's data_seed, which orders its rows, where it was set apart from its seed;
    None where both are the same, as by default."""
    data_seed = record["config"].get("data_seed")
    return None if data_seed == record["config"]["seed"] else data_seed


def cell_id(record: Record) -> str:
    """The id of a finished record's cell: the one that a ledger has put into the record,
    or else computed."""
    if "cell_id" in record:
        return record["cell_id"]
    return computed_cell_id(record)


def computed_cell_id(record: MeasuredRecord) -> str:
    """A hash of all that defines a finished record's result, except the seed.

    Unlike a run's id it holds the recipe's name and not the row. Tables form the cells of
    one row at a time, and say in which settings a cell's runs differ from their recipe.
    So runs by two recipes are not seeds of one cell even if their own settings agree."""
    settings = defining_settings(record["config"], with_seeds=False)
    parts = [
        settings,
        record["model"],
        record["data"]["content"],
        record["recipe"]["name"],
        recorded_start(record),
        protocol_of(record),
    ]
    data_seed = other_data_seed(record)
    if data_seed is not None:
        parts.append(data_seed)
    content = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:16]


def hash_of(value: object) -> str:
    """SHA-256 of a value's JSON, with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- rows: their labels, and how LoRA's alpha relates to the recipe's


def from_recipe(config: Configuration, key: str, default: object = None) -> Any:
    """The recipe's value of a key for the run's task: the task's own, else that for all
    tasks, else `default`. A null is a value (`clip: null`)."""
    recipe = config.get("recipe")
    if not recipe:
        return default
    by_task = (recipe.get("by_task") or {}).get(key) or {}
    values: Mapping[str, Any] = recipe
    return by_task.get(config["task"]["name"], values.get(key, default))


def lora_scaling(config: Configuration) -> str | None:
    """How a LoRA run's alpha depends on its rank: "constant" (the recipe's alpha, as in
    Hu et al. 2022), "proportional" (the recipe's alpha / rank, times this rank), or
    "given" (neither). None for other methods; for a rank or alpha that is no number;
    and at the recipe's own rank and alpha, where "constant" and "proportional" are the
    same."""
    method = config["method"]
    if method.get("kind") != "lora":
        return None
    # Without a recipe: the values of conf/method/lora.yaml
    recipe_rank = from_recipe(config, "rank", 8)
    recipe_alpha = from_recipe(config, "alpha", 8)
    rank = method.get("rank")
    alpha = method.get("alpha")
    values = (recipe_rank, recipe_alpha, rank, alpha)
    if not all(isinstance(value, int | float) for value in values):
        return None
    if rank == recipe_rank and alpha == recipe_alpha:
        return None
    if alpha == recipe_alpha:
        return "constant"
    if alpha * recipe_rank == rank * recipe_alpha:
        return "proportional"
    return "given"


#: Names of methods as their papers spell them.
PAPER_SPELLINGS = (
    "AdaLoRA",
    "AdaMSS",
    "BEFT",
    "DEFT",
    "DeLoRA",
    "FRoD",
    "GLoRA",
    "GraLoRA",
    "HiRA",
    "LoRA",
    "MiSS",
    "PEANuT",
    "PSOFT",
    "PVeRA",
    "RandLoRA",
    "RoAd",
    "SHiRA",
    "TinyLoRA",
    "Uni-LoRA",
    "VB-LoRA",
    "VeRA",
)
#: These names by the name of peft's class, without Config and in small letters.
SPELLING_BY_CLASS = {name.lower().replace("-", ""): name for name in PAPER_SPELLINGS}


def row_label(config: Configuration) -> str:
    """A run's method as tables and logs name it: "LoRA r=2, alpha=8" where alpha stayed
    the recipe's at another rank, "alpha=r" or "alpha=2r" where it follows the rank.
    peft's classes are spelt as in papers."""
    method = config["method"]
    label = str(method["label"])
    class_name = str(method.get("config_class") or "").removesuffix("Config")
    # A label that was made from the name of peft's class gets the papers' spelling
    if class_name and re.split("[ ,]", label)[0] == class_name:
        spelling = SPELLING_BY_CLASS.get(class_name.lower(), class_name)
        label = spelling + label.removeprefix(class_name)
    scaling = lora_scaling(config)
    if scaling is None:
        return label
    if scaling != "proportional":
        return f"{label}, alpha={method['alpha']:g}"
    ratio = method["alpha"] / method["rank"]
    factor = "" if ratio == 1 else f"{ratio:g}"
    return f"{label}, alpha={factor}r"


# --- metrics


@dataclass(frozen=True)
class ReportedMetric:
    """A metric of dev rows. scale: the factor that tables print a value with, 100 for
    fractions."""

    name: str
    higher_is_better: bool = True
    scale: float = 100.0

    @classmethod
    def of_record(cls, record: Record) -> "ReportedMetric":
        """The metric of a finished record."""
        return cls.of_result(record["result"])

    @classmethod
    def of_result(cls, result: MetricResult) -> "ReportedMetric":
        """The metric of a result."""
        return cls(result["metric"], result["higher_is_better"], result["scale"])

    @property
    def worst(self) -> float:
        """The value of a run that diverged before its first evaluation."""
        return 0.0 if self.higher_is_better else math.inf

    @property
    def decimals(self) -> int:
        """The decimals of a value in a table."""
        return 1 if self.scale == 100 else 2

    def index_of_best(self, values: Sequence[float]) -> int:
        """Index of the best of these values, the earliest of equals; 0 where there are
        none."""
        if not values:
            return 0
        best = max(values) if self.higher_is_better else min(values)
        return values.index(best)

    def text(self, value: float) -> str:
        """A value as tables print it."""
        return f"{self.scale * value:.{self.decimals}f}"


# --- the epoch that a record reports: the best one on dev, as in the paper, or chosen on other rows


def dev_halves(rows: int) -> tuple[Any, Any]:
    """The indices of the dev rows in the halves A and B for cross-fitted selection: two
    sorted arrays, the same for every run and seed. rows: how many dev rows there are."""
    import numpy as np

    order = np.random.Generator(np.random.Philox(key=[0, rows])).permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def crossfit(curve: Curve, dev_rows: int, metric: ReportedMetric) -> Selected | None:
    """Cross-fitted selection, which does not choose an epoch on the rows that it
    reports: chosen on half A of dev and reported on half B, chosen on B and reported on
    A, and the mean of the two, weighted by rows.

    curve: metric_select is of half A (dev_rows // 2 rows), metric_report of half B.
    Returns, on the scale of the curve: best; last, the same mean at the last epoch;
    best_epoch, the two epochs chosen; and optimism, by how much the mean at the epoch
    that is best on all of dev is better than `best`. That is an upper estimate, since
    half of the rows choose worse than all. None if a half lacks a score."""
    half_a = complete_scores(curve.get("metric_select"))
    half_b = complete_scores(curve.get("metric_report"))
    if not half_a or len(half_a) != len(half_b):
        return None
    scores = complete_scores(curve["metric"])
    if not scores:
        return None
    chosen_on_a = metric.index_of_best(half_a)
    chosen_on_b = metric.index_of_best(half_b)
    chosen_on_all = metric.index_of_best(scores)
    share_of_a = (dev_rows // 2) / dev_rows

    def mean(score_a: float, score_b: float) -> float:
        return share_of_a * score_a + (1 - share_of_a) * score_b

    best = mean(half_a[chosen_on_b], half_b[chosen_on_a])
    optimism = mean(half_a[chosen_on_all], half_b[chosen_on_all]) - best
    return {
        "best": best,
        "best_epoch": [curve["epoch"][chosen_on_a], curve["epoch"][chosen_on_b]],
        "last": mean(half_a[-1], half_b[-1]),
        "optimism": optimism if metric.higher_is_better else -optimism,
    }


def complete_scores(scores: list[Number] | None) -> list[float]:
    """The scores of all evaluations, in order; an empty list if one of them is missing,
    or if there are none."""
    if scores is None or None in scores:
        return []
    return [score for score in scores if score is not None]  # for mypy: all of them


def best_and_last(record: Record, select: str) -> Selected:
    """A record's best and last score; empty for a record without scores. select: the
    protocol: paper, crossfit or half (half A chooses the epoch, half B reports)."""
    if select == "paper":
        protocols = record["result"].get("protocols") or {}
        return protocols.get("paper") or {}
    by_crossfit = crossfit_of(record)
    if by_crossfit is None:  # scores of dev or of a half are missing
        return {}
    if select == "crossfit":
        return by_crossfit
    half_a = complete_scores(record["curve"]["metric_select"])
    half_b = complete_scores(record["curve"]["metric_report"])
    chosen_on_a = ReportedMetric.of_record(record).index_of_best(half_a)
    return {"best": half_b[chosen_on_a], "last": half_b[-1]}


def crossfit_of(record: Record) -> Selected | None:
    """`crossfit` of a finished record."""
    metric = ReportedMetric.of_record(record)
    return crossfit(record["curve"], record["data"]["dev_rows"], metric)


# --- what tables show of a run


def score_of_record(
    record: Record, epoch: str | None = None, select: str = "paper"
) -> float:
    """The score of a finished record, unscaled. A diverged run without a score has the
    worst one of its metric; a run that is done without a score has NaN.

    epoch: best or last; by default the one that the task's table reports. select: the
    protocol, as in `best_and_last`."""
    selected = best_and_last(record, select)
    if epoch is None:
        epoch = record["result"]["reported"]
    score = selected.get("best") if epoch == "best" else selected.get("last")
    if score is not None and math.isfinite(score):
        return float(score)
    if record["status"] == "diverged":
        return ReportedMetric.of_record(record).worst
    return math.nan


def shown_model(name: str, model: Mapping[str, Any]) -> str:
    """The name that tables and plans have for a model: for a generic one (model=encoder
    model.path=...) that of its folder, or its name on the hub. model: its settings."""
    place = model.get("path") or model.get("hub") or model.get("package")
    if name not in GENERIC_MODELS or not place:
        return str(name)
    return Path(place).name


def epoch_of_table(train: TrainConfig, reported: str) -> str:
    """best or last: the epoch that a table reports of runs with these settings. It is
    `reported`, the epoch of the task's table, or the last if a run has one evaluation
    only and so cannot choose."""
    has_one_evaluation = train["epochs"] <= (train.get("evaluate_every") or 1)
    if has_one_evaluation and not train.get("evaluate_steps"):
        return "last"
    return reported


def kept_epoch(keep: str, reported: str) -> str:
    """best or last: the epoch whose predictions a run keeps, and its adapter with them.
    keep=both also keeps the last epoch's adapter. keep=none keeps predictions alone.

    keep: the run's setting. reported: best or last, whichever the task's table shows."""
    if keep == "both":
        return "best"
    return reported if keep == "none" else keep


def scored_texts(record: Record) -> DecodedScores | None:
    """The scores of the last epoch's texts. If they were decoded in several ways, those of
    the first, which is the protocol's. None without texts."""
    texts = record.get("texts")
    if not texts:
        return None
    for scores in texts["scores"]:
        if scores["which"] == "last":
            return scores
    return None


def key_of_text_score(record: Record) -> str | None:
    """The key of the text score that tables show of a run: the first of TEXT_SCORES
    that it has. None for a run without texts."""
    scores: Mapping[str, Any] = scored_texts(record) or {}
    return next((key for key in TEXT_SCORES if scores.get(key) is not None), None)


def text_score(record: Record, key: str) -> float | None:
    """A score of the texts (`scored_texts`), by its key in TEXT_SCORES; None if it is
    missing, as METEOR is without Java. A run that diverged before any text has 0."""
    scores: Mapping[str, Any] | None = scored_texts(record)
    if scores is None:
        return 0.0 if record["status"] == "diverged" else None
    score = scores.get(key)
    return None if score is None else float(score)
