"""What W&B gets of a run, as plain data: its settings and names, a point for each epoch,
and the summary of its record. Never a local path."""

from collections.abc import Mapping, Sequence
from typing import Any

from runs.record.cell import is_trial
from runs.record.redaction import hide_paths, without_paths
from runs.record.schema import CURVE_COLUMNS, Record
from runs.run.definition import Run

#: W&B's limits.
LONGEST_TAG, LONGEST_NAME = 64, 128


def cell_key(model: str, task: str) -> str:
    """The prefix of the names of a cell's numbers. A panel of a workspace selects by
    name, not by run."""
    return f"cells/{model}/{task}"


def about_run(run: Run, run_id: str, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """A run at its beginning, without this machine's paths, as in published records."""
    config, cell = run.config, run.names["cell"]
    trial = "trial" if is_trial(config) else None
    tags = [
        run.row,
        run.model,
        cell["task"],
        config["method"]["kind"],
        run.experiment,
        trial,
    ]
    start = {"from": config["init_from"]} if config["init_from"] else None
    settings = without_paths({"config": config, "start": start})["config"]
    settings |= {"cell": cell, "run_id": run_id, "recipe_name": run.recipe}
    settings |= provenance_of(made_with)
    job = "train"
    if config["task"].get("holdout") is not None:
        job = "tune"
    elif config["method"]["kind"] == "none":
        job = "eval"
    return {
        "job_type": job,
        "name": run.label[:LONGEST_NAME],
        "group": f"{run.row}@{run.model}@{cell['task']}"[:LONGEST_NAME],
        "tags": [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags) if tag],
        "config": settings,
    }


def provenance_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was made, as keys of its configuration in W&B. source: its record, or
    these parts of it."""
    code = {key: source["code"][key] for key in ("commit", "dirty")}
    return code | {
        "versions": source["versions"],
        "device_name": source["device"]["name"],
    }


def points(
    curve: Mapping[str, Sequence[Any]], metric: str, cell: str
) -> list[dict[str, Any]]:
    """A point for each epoch of a record's curve. metric: its name. cell: of
    cell_key."""
    columns = {
        "epoch": curve["epoch"],
        "step": curve["step"],
        "train/loss": curve["train_loss"],
        f"dev/{metric}": curve["metric"],
        f"{cell}/dev": curve["metric"],
    }
    # W&B gets the columns of training by reward under TRL's names
    for key in set(curve) - set(CURVE_COLUMNS):
        part = "dev" if key == "sampled_exact_match" else "train"
        columns[f"{part}/{key}"] = curve[key]
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def summary_of(record: Record) -> dict[str, Any]:
    """The summary of a finished run: status, result, parameters, cost, and the scores
    of its texts by the protocol. The numbers of tables are there twice: once more under
    the name of the cell."""
    result = record["result"]
    cost = record["cost"]
    numbers = {"status": record["status"], "error": hide_paths(record["error"]) or ""}
    for key in ("metric", "select", "best", "best_epoch", "last"):
        numbers[key] = result.get(key)
    for key, value in record["parameters"].items():
        numbers[f"parameters/{key}"] = value
    for key, value in cost.items():
        numbers[f"cost/{key}"] = value
    for key in ("before", "after"):
        numbers[f"forgetting/{key}"] = (result.get("forgetting") or {}).get(key)
    numbers_of_cell = {key: result.get(key) for key in ("best", "last")}
    for key in ("train_seconds", "peak_memory_bytes"):
        numbers_of_cell[key] = cost.get(key)
    # of the last epoch, and of the best one where it is another
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
    """The scores of the texts by the protocol's variant, the first, by epoch: last or
    best."""
    entries = (record.get("texts") or {}).get("scores") or []
    scores_of_epoch = dict[str, dict[str, float]]()
    for entry in entries:
        if entry["variant"] != entries[0]["variant"]:
            continue
        scores = dict[str, float]()
        for key, value in entry.items():
            if isinstance(value, float) and key != "epoch":
                scores[key] = value
        for part, value in (entry.get("parts") or {}).items():
            scores[f"parts/{part}"] = value
        scores_of_epoch[entry["which"]] = scores
    return scores_of_epoch
