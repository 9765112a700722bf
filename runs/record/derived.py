"""The keys of a record that follow from its configuration, its curve and its hashes.

`derived_keys` computes them. Training writes them into the record
(runs/training/result.py), and `publish check` compares them with what a record says, so
that a mistake or a careless edit shows. It does not show if somebody changes the curve,
the costs, the scores of texts or those of a judge (NOT_PROVABLE), which nothing can
derive, and computes the other keys anew."""

import math
from collections.abc import Iterator
from typing import Literal

from runs.record.cell import (
    ReportedMetric,
    best_and_last,
    complete_scores,
    computed_cell_id,
    crossfit,
    id_of,
    protocol_of,
    recorded_start,
    row_label,
)
from runs.record.configuration import Configuration
from runs.record.items import METRIC_OF_ITEMS, right_items
from runs.record.schema import (
    Curve,
    DerivedKeys,
    MeasuredRecord,
    Number,
    Recipe,
    Record,
    Result,
    Seeds,
    Selected,
)
from runs.record.steps import StepPlan

#: A record's note on VeRA's A and B, by method.redrawn.
PROJECTION_NOTES = {
    False: (
        "one draw of A and B for all seeds: "
        "the spread over seeds leaves out what another draw would change"
    ),
    True: (
        "A and B are drawn anew for each seed: "
        "the spread over seeds holds what another draw changes"
    ),
}
#: Scores that are computed twice, from floats, agree within this.
TOLERANCE = 1e-9
#: The lowest and the highest value of each metric.
RANGES = {
    "accuracy": (0.0, 1.0),
    "balanced_accuracy": (0.0, 1.0),
    "exact_match": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "matthews": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "perplexity": (1.0, math.inf),
}
#: A record with more epochs than this is refused at once: listing the steps of all its
#: evaluations would take forever.
MOST_EPOCHS = 100_000
#: What `derived_keys` and `contradictions` cannot check.
NOT_PROVABLE = ("curve", "predictions", "files", "cost", "texts", "judged", "lm_eval")


def derived_keys(record: MeasuredRecord) -> DerivedKeys:
    """The keys of a finished record that follow from what the run measured, each as the
    record should have it. `contradictions` compares them with what a record says."""
    config = record["config"]
    data = record["data"]
    trains = config["method"]["kind"] != "none"
    plan = StepPlan.of_run(config["train"], data["train_rows"], trains)
    evaluated_steps = plan.evaluated_steps()
    if record["status"] != "done":  # it ended before the last evaluation
        evaluated_steps = evaluated_steps[: len(record["curve"]["metric"])]
    keys: DerivedKeys = {
        "id": id_of(
            config,
            row=record["cell"]["row"],
            model=record["model"],
            data=data["content"],
            protocol=protocol_of(record),
            start=recorded_start(record),
            functions=record.get("functions"),
        ),
        "cell": {
            **record["cell"],
            "task": config["task"]["name"],
            "seed": config["seed"],
        },
        "label": {
            "row": row_label(config),
            "model": config["model"]["label"],
            "task": config["task"]["label"],
        },
        "recipe": _recipe(record),
        "seeds": _seeds(config),
        "effective_batch": config["train"]["effective_batch"],
        "micro_batch": config["micro_batch"],
        "result": _result(record),
        "cell_id": computed_cell_id(record),
        "curve": {
            "epoch": [
                round(step / plan.steps_per_epoch, 4) for step in evaluated_steps
            ],
            "step": evaluated_steps,
        },
    }
    if record["status"] == "done":
        keys["steps"] = plan.total_steps
    return keys


def _recipe(record: MeasuredRecord) -> Recipe:
    """The record's `recipe`: its name as recorded, the rest from the configuration."""
    recipe = record["config"].get("recipe") or {}
    return {
        "name": record["recipe"]["name"],
        "source": recipe.get("source"),
        "chosen": recipe.get("chosen") or {},
    }


def _seeds(config: Configuration) -> Seeds:
    """The record's `seeds`, with a note on VeRA's A and B."""
    method = config["method"]
    seeds: Seeds = {
        "training": config["seed"],
        "data": config["data_seed"],
        "projection": method.get("projection_seed"),
    }
    # only methods with a random pair have this setting
    if "redrawn" in method:
        seeds["projection_note"] = PROJECTION_NOTES[method["redrawn"]]
    return seeds


def _result(record: MeasuredRecord) -> Result:
    """The record's `result`. A known metric has a known direction and scale; those of a
    user's own metric are taken from the record."""
    result = record["result"]
    metric = ReportedMetric.of_result(result)
    if metric.name in RANGES:
        is_perplexity = metric.name == "perplexity"
        scale = 1.0 if is_perplexity else 100.0
        metric = ReportedMetric(metric.name, not is_perplexity, scale)
    return summarise(
        record["curve"],
        record["data"]["dev_rows"],
        metric,
        result["reported"],
        record["config"]["select"],
    )


def summarise(
    curve: Curve,
    dev_rows: int,
    metric: ReportedMetric,
    reported: Literal["best", "last"],
    select: str,
) -> Result:
    """The record's `result`, with the scores by both protocols.

    By "paper" the epoch with the best score on the dev set is reported with that score,
    which is optimistic; for "crossfit" see runs.record.cell.crossfit.

    Args:
        curve: the scores of each evaluation.
        dev_rows: how many rows they are measured on.
        metric: their metric.
        reported: "best" or "last", whichever the task's table shows.
        select: the protocol of `best` and `last`. `best_epoch` is by "paper" in any
            case, since the adapter of that epoch is kept.
    """
    result: Result = {
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "scale": metric.scale,
        "reported": reported,
        "select": select,
        "best": None,
        "best_epoch": None,
        "last": None,
    }
    scores = complete_scores(curve["metric"])
    if not scores:
        return result
    best_index = metric.index_of_best(scores)
    by_paper: Selected = {
        "best": scores[best_index],
        "best_epoch": curve["epoch"][best_index],
        "last": scores[-1],
    }
    by_crossfit = crossfit(curve, dev_rows, metric) or {}
    selected = by_paper if select == "paper" else by_crossfit
    result["best"] = selected.get("best")
    result["best_epoch"] = by_paper["best_epoch"]
    result["last"] = selected.get("last")
    result["protocols"] = {"paper": by_paper, "crossfit": by_crossfit}
    return result


# --- checking


def contradictions(record: Record) -> Iterator[str]:
    """A sentence for each statement of a finished record that contradicts its other
    keys."""
    if record["config"]["train"]["epochs"] > MOST_EPOCHS:
        yield f"more than {MOST_EPOCHS:,} epochs"
        return
    for key in _differing_keys(record, derived_keys(record)):
        if key == "label.row" and _has_unspelt_label(record):
            continue
        yield f"{key} does not follow from the configuration, curve and hashes"
    yield from _impossible_scores(record)
    yield from _wrong_bits(record)
    yield from _wrong_groups(record)


def _has_unspelt_label(record: Record) -> bool:
    """Whether the record's row has the label of the configuration's method, unchanged.
    Older records have it: `row_label` did not spell peft's classes as papers do."""
    return bool(record["label"]["row"] == record["config"]["method"]["label"])


def _differing_keys(
    stated: object, computed: object, key_path: str = ""
) -> Iterator[str]:
    """The dotted keys, such as result.best, at which a record states something else than
    was computed. Keys that the record lacks, as older records do, do not count.
    key_path: where in the record both values stand."""
    if isinstance(computed, dict) and isinstance(stated, dict):
        for key, value in computed.items():
            if key in stated:
                inner = f"{key_path}.{key}" if key_path else key
                yield from _differing_keys(stated[key], value, inner)
    elif not _agree(stated, computed):
        yield key_path


def _agree(stated: object, computed: object) -> bool:
    """Whether two values are the same, numbers within TOLERANCE. Of mappings only the
    keys that both have are compared."""
    if isinstance(stated, dict) and isinstance(computed, dict):
        return not [*_differing_keys(stated, computed)]
    if isinstance(stated, list) and isinstance(computed, list):
        return len(stated) == len(computed) and all(map(_agree, stated, computed))
    if isinstance(stated, float | int) and isinstance(computed, float | int):
        return math.isclose(stated, computed, rel_tol=0, abs_tol=TOLERANCE)
    return bool(stated == computed)


def _impossible_scores(record: Record) -> Iterator[str]:
    """A sentence for each score in the curve that is outside the metric's range, or is
    an accuracy that no number of right rows gives; and one if an accuracy is not the mean
    of those of its two halves."""
    metric = record["result"]["metric"]
    curve = record["curve"]
    rows = record["data"]["dev_rows"]
    rows_a = rows // 2
    rows_b = rows - rows_a
    scores_a, scores_b = curve.get("metric_select"), curve.get("metric_report")
    yield from _impossible_scores_in_column(metric, "metric", curve["metric"], rows)
    yield from _impossible_scores_in_column(metric, "metric_select", scores_a, rows_a)
    yield from _impossible_scores_in_column(metric, "metric_report", scores_b, rows_b)
    if metric != METRIC_OF_ITEMS:  # only a share of rows is the mean of its halves
        return
    scores = complete_scores(curve["metric"])
    # strict=False: a record may lack the columns of the halves
    halves = zip(complete_scores(scores_a), complete_scores(scores_b), strict=False)
    for score, (score_a, score_b) in zip(scores, halves, strict=False):
        if not _is_close(score * rows, score_a * rows_a + score_b * rows_b):
            yield "curve.metric is not the mean of its two halves"
            return


def _impossible_scores_in_column(
    metric: str, column: str, scores: list[Number] | None, rows: int
) -> Iterator[str]:
    """A sentence for each impossible score in a column of the curve. metric: its name.
    rows: how many rows the scores were measured on; an accuracy is the share of those,
    from 0 to 1, that were right."""
    for score in scores or []:
        if score is None:
            yield f"curve.{column} has an evaluation without a score"
        elif metric in RANGES and not _is_in_range(score, RANGES[metric]):
            yield f"curve.{column}: {score} is no {metric}"
        elif metric == METRIC_OF_ITEMS and not _is_whole(score * rows):
            yield f"curve.{column}: {score} is no {metric} of {rows} rows"


def _is_in_range(score: float, bounds: tuple[float, float]) -> bool:
    low, high = bounds
    return low - TOLERANCE <= score <= high + TOLERANCE


def _is_close(first: float, second: float) -> bool:
    """Whether two counts of rows, shares of them or percentages are the same but for
    rounding."""
    return math.isclose(first, second, abs_tol=1e-4)


def _is_whole(number: float) -> bool:
    return _is_close(number, round(number))


def _wrong_bits(record: Record) -> Iterator[str]:
    """A sentence for each list of right rows (`items.pack`), of dev or of the texts, that
    cannot be read or that gives another score than the record states."""
    by_paper = best_and_last(record, "paper")  # the scores on all dev rows
    stated_scores = {"best": by_paper.get("best"), "last": by_paper.get("last")}
    for epoch in record.get("right") or {}:
        try:
            bits = right_items(record, epoch)
        except ValueError as error:
            yield f"right.{epoch}: {error}"
            continue
        score = stated_scores.get(epoch)
        if bits is None or score is None:
            continue
        if not _is_close(float(bits.mean()), score):
            yield f"right.{epoch} are not the rows of its score"
    texts = record.get("texts")
    for entry in texts["scores"] if texts else []:
        if "right" not in entry:
            continue
        bits = right_items(record, entry["which"])
        exact_match = entry.get("exact_match")
        # The exact match of several test sets is not the share of all right texts
        has_one_part = len(entry.get("parts") or {}) == 1
        if bits is None or exact_match is None or not has_one_part:
            continue
        if not _is_close(100 * float(bits.mean()), exact_match):
            yield "texts: the right texts are not those of the exact match"


def _wrong_groups(record: Record) -> Iterator[str]:
    """A sentence for each contradiction in the optimizer's groups: they do not hold the
    trained parameters, or one has a rate or weight decay that the configuration lacks."""
    groups = record.get("groups") or []
    if not groups:
        return
    parameters = record["parameters"]
    trained = parameters["adapter"] + parameters["head"]
    if sum(group["parameters"] for group in groups) != trained:
        yield "groups do not hold the trained parameters"
    train = record["config"]["train"]
    rates = {train["lr"], train["lr_head"], *(train.get("lr_by") or {}).values()}
    # 0.0: biases and the like have no decay unless train.decay_all says so
    decays = {train["weight_decay"], 0.0, *(train.get("decay_by") or {}).values()}
    for group in groups:
        if group["lr"] not in rates or group["weight_decay"] not in decays:
            yield f"group {group['name']} has another rate than the configuration"
