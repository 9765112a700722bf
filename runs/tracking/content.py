"""What W&B gets of a run, as plain data: its settings and names, a point for each epoch,
and the summary of its record. Never a local path."""

from collections.abc import Mapping, Sequence
from typing import Any

from runs.record.cell import is_trial
from runs.record.redaction import hide_paths, without_paths
from runs.record.schema import Record
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
    known = {"cell": cell, "run_id": run_id, "recipe_name": run.recipe} | provenance_of(
        made_with
    )
    job = "eval" if config["method"]["kind"] == "none" else "train"
    return {
        "job_type": job if config["task"].get("holdout") is None else "tune",
        "name": run.label[:LONGEST_NAME],
        "group": f"{run.row}@{run.model}@{cell['task']}"[:LONGEST_NAME],
        "tags": [tag[:LONGEST_TAG] for tag in dict.fromkeys(tags) if tag],
        "config": without_paths({"config": config, "start": start})["config"] | known,
    }


def provenance_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was made, as keys of its configuration in W&B. source: its record, or
    these parts of it."""
    code = {key: source["code"][key] for key in ("commit", "dirty")}
    return code | {
        "versions": source["versions"],
        "device_name": source["device"]["name"],
    }


#: The columns of every curve. Others are of training by reward, whose names are TRL's:
#: W&B gets them under these.
PLAIN_COLUMNS = frozenset(
    {
        "epoch",
        "step",
        "train_loss",
        "dev_loss",
        "metric",
        "metric_select",
        "metric_report",
        "lr",
    }
)


def points(
    curve: Mapping[str, Sequence[Any]], metric: str, cell: str
) -> list[dict[str, Any]]:
    """A point for each epoch of a record's curve. metric: its name. cell: of
    cell_key."""
    columns = [
        curve[key] for key in ("epoch", "step", "train_loss", "metric", "metric")
    ]
    names = ["epoch", "step", "train/loss", f"dev/{metric}", f"{cell}/dev"]
    for key in set(curve) - PLAIN_COLUMNS:
        part = "dev" if key == "sampled_exact_match" else "train"
        columns.append(curve[key])
        names.append(f"{part}/{key}")
    return [
        dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)
    ]


def summary_of(record: Record) -> dict[str, Any]:
    """The summary of a finished run: status, result, parameters, cost, and the scores
    of its texts by the protocol. The numbers of tables are there twice: once more under
    the name of the cell."""
    result, cost, texts = record["result"], record["cost"], record.get("texts") or {}
    numbers = {"status": record["status"], "error": hide_paths(record["error"]) or ""}
    numbers |= {
        key: result.get(key)
        for key in ("metric", "select", "best", "best_epoch", "last")
    }
    numbers |= {
        f"parameters/{key}": value for key, value in record["parameters"].items()
    }
    numbers |= {f"cost/{key}": value for key, value in cost.items()}
    of_cell = {key: result.get(key) for key in ("best", "last")}
    of_cell |= {key: cost.get(key) for key in ("train_seconds", "peak_memory_bytes")}
    numbers |= {
        f"forgetting/{key}": (result.get("forgetting") or {}).get(key)
        for key in ("before", "after")
    }
    # of the last epoch, and of the best one where it is another
    for entry in texts.get("scores") or []:
        if entry["variant"] == texts["scores"][0]["variant"]:
            scores = {
                k: v for k, v in entry.items() if isinstance(v, float) and k != "epoch"
            }
            scores |= {
                f"parts/{part}": value
                for part, value in (entry.get("parts") or {}).items()
            }
            numbers |= {
                f"texts/{entry['which']}/{key}": value for key, value in scores.items()
            }
            of_cell |= scores if entry["which"] == "last" else {}
    cell = cell_key(record["cell"]["model"], record["cell"]["task"])
    numbers |= {f"{cell}/{key}": value for key, value in of_cell.items()}
    return {key: value for key, value in numbers.items() if value is not None}
