"""What W&B is told of a run."""

import re
from typing import Any, Protocol

from runs.record import Record, is_trial, without_paths
from runs.tracking.account import cell_key

#: W&B's limits.
LONGEST_TAG, LONGEST_NAME = 64, 128


class Run(Protocol):
    """What is read of a run (runs.config.Run)."""

    @property
    def row(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def names(self) -> dict[str, Any]: ...
    @property
    def experiment(self) -> str | None: ...
    @property
    def label(self) -> str: ...
    @property
    def recipe(self) -> str: ...
    @property
    def start(self) -> Any: ...
    @property
    def config(self) -> dict[str, Any]: ...


def about(run: Run, run_id: str) -> dict[str, Any]:
    """What W&B is told of a run at its beginning. Where files lie on this machine is left out, as from
    published records."""
    config = run.config
    cell = run.names["cell"]
    tags = [
        run.row,
        run.model,
        cell["task"],
        config["method"]["kind"],
        run.experiment,
        "trial" if is_trial(config) else None,
    ]
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
    """W&B's usual words: train; tune where a part of the training rows is judged on, which is how settings
    are searched; eval where nothing trains."""
    if config["task"].get("holdout") is not None:
        return "tune"
    return "eval" if config["method"]["kind"] == "none" else "train"


def provenance_of(source: dict[str, Any]) -> dict[str, Any]:
    """What of a record, or of the event that a run's process begins with, says how it is made: keys of the
    run's configuration in W&B. A failed run's record has none of them."""
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
    """The name of a finished run's adapter as an artifact, and what is known of it."""
    cell, result = record["cell"], record["result"]
    name = "-".join(str(cell[key]) for key in ("row", "model", "task", "seed"))
    about = {key: result.get(key) for key in ("metric", "best", "best_epoch", "last")}
    about |= {"run_id": record["id"], "cell": cell, "method": record["config"]["method"]}
    about |= {"keep": record["config"]["keep"], "parameters": record["parameters"]}
    return re.sub(r"[^\w.-]", "_", name)[:LONGEST_NAME], about | provenance_of(record)


def point_of(event: dict[str, Any], cell: str) -> dict[str, Any]:
    """A point from the event of an evaluated epoch. cell: see cell_key."""
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
    """What W&B shows of a finished run: status, result, parameters, cost, and the scores of its texts by the
    protocol.

    What tables are made of stands there twice: once more under the name of the cell.
    """
    result, cost, texts = record.get("result") or {}, record.get("cost") or {}, record.get("texts") or {}
    found = {"status": record["status"], "error": record["error"]}
    found |= {key: result.get(key) for key in ("metric", "select", "best", "best_epoch", "last")}
    found |= {f"parameters/{key}": value for key, value in (record.get("parameters") or {}).items()}
    found |= {f"cost/{key}": value for key, value in cost.items()}
    shown = {key: result.get(key) for key in ("best", "last")}
    shown |= {key: cost.get(key) for key in ("train_seconds", "peak_memory_bytes")}
    for entry in texts.get("scores") or []:  # of the last epoch, and of the best one where it is another
        if entry["variant"] == texts["scores"][0]["variant"]:
            scores = {
                key: value for key, value in entry.items() if isinstance(value, float) and key != "epoch"
            }
            found |= {f"texts/{entry['which']}/{key}": value for key, value in scores.items()}
            shown |= scores if entry["which"] == "last" else {}
    cell = cell_key(record["cell"]["model"], record["cell"]["task"])
    found |= {f"{cell}/{key}": value for key, value in shown.items()}
    return {key: value for key, value in found.items() if value is not None}
