"""What W&B gets of a run, as plain data: its settings and names, a point for each epoch,
and the summary of its record. None of it contains a local path."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from runs.record.cell import is_trial_or_stopped
from runs.record.redaction import config_without_paths, hide_paths
from runs.record.schema import CURVE_COLUMNS, Curve, Provenance, Record
from runs.run.definition import Run

#: The most characters that W&B takes.
LONGEST_TAG = 64
LONGEST_NAME = 128


def cell_key(model: str, task: str) -> str:
    """The prefix in W&B of the names of all numbers for a model and task. A workspace's
    panels select numbers by their names, and not by their runs."""
    return f"cells/{model}/{task}"


def describe_run(run: Run, run_id: str, provenance: Provenance) -> dict[str, Any]:
    """The arguments of wandb.init that describe a run. As in published records, no path
    of this machine is in them."""
    config = run.config
    cell = run.cell
    tags = [run.row, run.model, cell["task"], config["method"]["kind"], run.experiment]
    if is_trial_or_stopped(config):  # no table shows either of them
        tags.append("trial")
    settings: dict[str, Any] = {**config_without_paths(config)}
    settings |= {"cell": cell, "run_id": run_id, "recipe_name": run.recipe}
    settings |= provenance_of(provenance)
    job = "train"
    if config["task"].get("holdout") is not None:
        job = "tune"  # `vera-bench tune` scores its trials on held-out training rows
    elif config["method"]["kind"] == "none":
        job = "eval"
    return {
        "job_type": job,
        "name": run.label[:LONGEST_NAME],
        "group": f"{run.row}@{run.model}@{cell['task']}"[:LONGEST_NAME],
        "tags": [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags) if tag],
        "config": settings,
    }


def provenance_of(source: Provenance | Record) -> dict[str, object]:
    """The code, versions and device of a run, as keys of its configuration in W&B.
    source: its record, or these parts of it."""
    return {
        "commit": source["code"]["commit"],
        "dirty": source["code"]["dirty"],
        "versions": source["versions"],
        "device_name": source["device"]["name"],
    }


def epoch_points(curve: Curve, metric: str, cell: str) -> list[dict[str, object]]:
    """What W&B gets of each evaluation of a record's curve, numbers by their names.
    metric: the name of the curve's metric. cell: the prefix that `cell_key` returns."""
    all_columns = cast(Mapping[str, Sequence[object]], curve)
    columns: dict[str, Sequence[object]] = {
        "epoch": curve["epoch"],
        "step": curve["step"],
        "train/loss": curve["train_loss"],
        f"dev/{metric}": curve["metric"],
        f"{cell}/dev": curve["metric"],
    }
    # W&B gets the columns of training by reward under TRL's names
    for key in set(all_columns) - set(CURVE_COLUMNS):
        # these two are scores of sampled answers to dev rows
        is_of_dev = key == "sampled_exact_match" or key.startswith("pass@")
        prefix = "dev" if is_of_dev else "train"
        columns[f"{prefix}/{key}"] = all_columns[key]
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def summary_of(record: Record) -> dict[str, object]:
    """The summary of a finished run in W&B, values by their names: status, result,
    parameters, cost, and the scores of its texts. The numbers that tables show are there
    a second time, under the prefix of `cell_key`. What is None is left out."""
    result = record["result"]
    cost = record["cost"]
    numbers: dict[str, object] = {
        "status": record["status"],
        "error": hide_paths(record["error"] or ""),
        "metric": result["metric"],
        "select": result.get("select"),
        "best": result["best"],
        "best_epoch": result["best_epoch"],
        "last": result["last"],
    }
    for key, count in record["parameters"].items():
        numbers[f"parameters/{key}"] = count
    for key, spent in cost.items():
        numbers[f"cost/{key}"] = spent
    forgetting = result.get("forgetting")
    if forgetting:
        numbers["forgetting/before"] = forgetting["before"]
        numbers["forgetting/after"] = forgetting["after"]
    numbers_of_cell: dict[str, object] = {
        "best": result["best"],
        "last": result["last"],
        "train_seconds": cost["train_seconds"],
        "peak_memory_bytes": cost.get("peak_memory_bytes"),
    }
    for epoch, scores in _scores_of_texts(record).items():
        for key, score in scores.items():
            numbers[f"texts/{epoch}/{key}"] = score
        if epoch == "last":
            numbers_of_cell |= scores
    cell = cell_key(record["cell"]["model"], record["cell"]["task"])
    for key, value in numbers_of_cell.items():
        numbers[f"{cell}/{key}"] = value
    return {key: value for key, value in numbers.items() if value is not None}


def _scores_of_texts(record: Record) -> dict[str, dict[str, float]]:
    """The scores of a run's texts by their names, for the last epoch and, if it is another
    one and has texts, the best: under "last" and "best". Texts of the protocol's variant
    of decoding count, which is the first; other variants are left out."""
    texts = record.get("texts")
    entries = texts["scores"] if texts else []
    scores_of_epoch = dict[str, dict[str, float]]()
    for entry in entries:
        if entry["variant"] != entries[0]["variant"]:
            continue
        scores = dict[str, float]()
        for key, value in entry.items():
            # the other values describe the texts: names, hashes, a number of an epoch
            if isinstance(value, float) and key != "epoch":
                scores[key] = value
        for part, score in (entry.get("parts") or {}).items():
            scores[f"parts/{part}"] = score
        scores_of_epoch[entry["which"]] = scores
    return scores_of_epoch
