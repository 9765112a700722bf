"""The data of a run for W&B."""

import re
from typing import Any

from runs.record import Record, hide_paths, is_trial, without_paths
from runs.run import Run
from runs.tracking.account import cell_key

#: W&B's limits.
LONGEST_TAG, LONGEST_NAME = 64, 128


def about(run: Run, run_id: str) -> dict[str, Any]:
    """The data of a run at its beginning, without this machine's paths, as in published records."""
    config, cell = run.config, run.names["cell"]
    tags = [run.row, run.model, cell["task"], config["method"]["kind"], run.experiment]
    tags += ["trial"] if is_trial(config) else []
    start = {"from": config["init_from"]} if config["init_from"] else None
    known = {"cell": cell, "run_id": run_id, "recipe_name": run.recipe}
    return {
        "id": run_id,
        "job_type": job_type(config),
        "name": run.label[:LONGEST_NAME],
        "group": f"{run.row}@{run.model}@{cell['task']}"[:LONGEST_NAME],
        "tags": [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags) if tag],
        "config": without_paths({"config": config, "start": start})["config"] | known,
    }


def job_type(config: dict[str, Any]) -> str:
    """W&B's usual words: tune for a search, which evaluates on a part of the training rows; eval where
    nothing trains; else train."""
    if config["task"].get("holdout") is not None:
        return "tune"
    return "eval" if config["method"]["kind"] == "none" else "train"


def provenance_of(source: dict[str, Any]) -> dict[str, Any]:
    """How a run was made, as keys of its configuration in W&B. source: a record, or the first event of a
    run's process. Empty for the record of a failed run, which does not have this."""
    if not {"code", "versions", "device"} <= source.keys():
        return {}
    code, device = source["code"], source["device"]
    return {
        "commit": code["commit"],
        "dirty": code["dirty"],
        "versions": source["versions"],
        "device_name": device["name"],
    }


def artifact_of(record: Record) -> tuple[str, dict[str, Any]]:
    """The name and the metadata of a finished run's adapter as an artifact."""
    cell, result = record["cell"], record["result"]
    name = "-".join(str(cell[key]) for key in ("row", "model", "task", "seed"))
    about = {key: result.get(key) for key in ("metric", "best", "best_epoch", "last")}
    about |= {"run_id": record["id"], "cell": cell, "method": record["config"]["method"]}
    about |= {"keep": record["config"]["keep"], "parameters": record["parameters"]}
    return re.sub(r"[^\w.-]", "_", name)[:LONGEST_NAME], about | provenance_of(record)


def point_of(event: dict[str, Any], cell: str) -> dict[str, Any]:
    """The point of an evaluated epoch's event. cell: of cell_key."""
    return _point(cell, event["metric_name"], *(event[key] for key in ("epoch", "step", "loss", "metric")))


def points_of(record: Record) -> list[dict[str, Any]]:
    """All points of a record's curve. A failed run has none."""
    curve, cell = record.get("curve"), cell_key(record["cell"]["model"], record["cell"]["task"])
    columns = [curve[key] for key in ("epoch", "step", "train_loss", "metric")] if curve else []
    return [_point(cell, record["result"]["metric"], *values) for values in zip(*columns, strict=True)]


def _point(
    cell: str, name: str, epoch: float, step: int, loss: float, metric: float | None
) -> dict[str, Any]:
    point = {"epoch": epoch, "step": step, "train/loss": loss, f"dev/{name}": metric, f"{cell}/dev": metric}
    return {key: value for key, value in point.items() if value is not None}


def summary_of(record: Record) -> dict[str, Any]:
    """The summary of a finished run: status, result, parameters, cost, and the scores of its texts by the
    protocol. The numbers of tables are there twice: once more under the name of the cell."""
    result, cost, texts = record.get("result") or {}, record.get("cost") or {}, record.get("texts") or {}
    numbers = {"status": record["status"], "error": hide_paths(record["error"])}
    numbers |= {key: result.get(key) for key in ("metric", "select", "best", "best_epoch", "last")}
    numbers |= {f"parameters/{key}": value for key, value in (record.get("parameters") or {}).items()}
    numbers |= {f"cost/{key}": value for key, value in cost.items()}
    of_cell = {key: result.get(key) for key in ("best", "last")}
    of_cell |= {key: cost.get(key) for key in ("train_seconds", "peak_memory_bytes")}
    numbers |= {f"forgetting/{key}": (result.get("forgetting") or {}).get(key) for key in ("before", "after")}
    for entry in texts.get("scores") or []:  # of the last epoch, and of the best one where it is another
        if entry["variant"] == texts["scores"][0]["variant"]:
            scores = {
                key: value for key, value in entry.items() if isinstance(value, float) and key != "epoch"
            }
            numbers |= {f"texts/{entry['which']}/{key}": value for key, value in scores.items()}
            of_cell |= scores if entry["which"] == "last" else {}
    cell = cell_key(record["cell"]["model"], record["cell"]["task"])
    numbers |= {f"{cell}/{key}": value for key, value in of_cell.items()}
    return {key: value for key, value in numbers.items() if value is not None}
