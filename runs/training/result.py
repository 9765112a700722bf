"""The record of a run, built at its end."""

import contextlib
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import tasks
import vera
from runs.identity import data_content, model_content, start_id
from runs.methods import BASES, rates_of
from runs.provenance import made_with
from runs.record import SCHEMA, Metric, Record, cell_id, crossfit, hash_of
from runs.record.cell import (
    from_recipe,
    lora_scaling,
    row_label,
)
from runs.record.keys import COMPUTING, KEYS, names_with_role
from runs.run import Run
from runs.training.context import count, flags
from runs.training.loop import Training

#: A record's note on VeRA's A and B, by method.redrawn.
DRAWS = {
    False: (
        "one draw of A and B for all seeds: the spread over seeds leaves out what another draw would change"
    ),
    True: "A and B are drawn anew for each seed: the spread over seeds holds what another draw changes",
}


def build_record(training: Training, texts: dict[str, Any] | None) -> Record:
    """The record of a run that is done or has diverged; runs/record/schema.py explains
    its keys.

    texts: the decoded texts' scores, where the task decodes."""
    run, config, task, state = (
        training.run,
        training.config,
        training.task,
        training.state,
    )
    method, recipe, accelerator = (
        config["method"],
        config["recipe"],
        training.accelerator,
    )
    predictions, dev_rows = state.predictions, len(task.lengths("dev"))
    groups, parameters = (
        training.optimizer.param_groups if training.groups else [],
        _parameters(training),
    )
    seeds = {"training": config["seed"], "data": config["data_seed"]}
    seeds["projection"] = method.get("projection_seed")
    here: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }
    here |= {"resumed": state.resumed} if state.resumed else {}
    record = {
        "schema": SCHEMA,
        "id": training.run_id,
        "status": state.status,
        "error": state.error,
        "tries": training.attempt.ended,
        **run.names,
        "start": {"from": config["init_from"], "id": start_id(run)}
        if config["init_from"]
        else None,
        "config": config,
        "config_hash": hash_of(config)[:16],
        "recipe": {
            "name": run.recipe,
            "source": recipe.get("source"),
            "chosen": recipe.get("chosen", {}),
        },
        "seeds": seeds
        | (
            {"projection_note": DRAWS[method["redrawn"]]} if "redrawn" in method else {}
        ),
        **made_with(training.code, accelerator.device),
        "determinism": flags(accelerator.device) | here,
        "model": model_content(config["model"]),
        "protocol": tasks.protocol(config["task"]),
        "data": {
            "content": data_content(config["task"]),
            "train_rows": len(training.lengths),
            "dev_rows": dev_rows,
            **({"selection": task.selection} if task.selection else {}),
            **(
                {"labels": dict(zip(("mean", "spread"), task.scaling, strict=True))}
                if task.scaling
                else {}
            ),
        },
        "parameters": parameters,
        "groups": [_group(group) for group in groups],
        "effective_batch": training.settings["effective_batch"],
        "micro_batch": config["micro_batch"],
        "steps": state.step,
        "curve": state.curve,
        "result": summarise(
            state.curve, dev_rows, training.metric, task.reported, config["select"]
        )
        | ({"forgetting": training.forgetting} if training.forgetting else {}),
        "texts": texts,
        "cost": _cost(training, decoded=bool(texts)),
        "predictions": {
            "best": predictions[training.best()] if predictions else None,
            "last": predictions[-1] if predictions else None,
        },
        **({"right": state.right} if state.right else {}),
        "deviations": deviations(run, task.notes)
        + training.notes
        + training.attempt.deviations,
    }
    return record | {"cell_id": cell_id(record)}


def _parameters(training: Training) -> dict[str, Any]:
    model, method = training.raw_model, training.method
    groups = method.parameter_groups(model).items()
    trained = {
        name: sum(p.numel() for p in parameters.values()) for name, parameters in groups
    }
    frozen = sum(tensor.numel() for tensor in vera.frozen_extra(model).values())
    return {
        **trained,
        "frozen_extra": frozen,
        "total": count(model),
        "formula": method.count(model),
    }


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    rates = {"lr": group["initial_lr"], "weight_decay": group["weight_decay"]}
    return {
        "name": group["name"],
        **rates,
        "parameters": sum(p.numel() for p in group["params"]),
    }


def _cost(training: Training, decoded: bool) -> dict[str, Any]:
    device, file = training.accelerator.device, training.folder / "adapter.safetensors"
    trained = training.method.adapter_parameters(training.raw_model).values()
    seconds = training.state.seconds
    pace = {"tok": "tokens", "img": "images"}[training.task.unit]
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else peak_memory()
    )
    values = sum(p.numel() * p.element_size() for p in trained)
    return {
        "train_seconds": round(seconds["train"], 3),
        "evaluate_seconds": round(seconds["evaluate"], 3),
        **({"decode_seconds": round(training.attempt.decoding, 3)} if decoded else {}),
        f"{pace}_per_second": round(
            training.state.units / max(seconds["train"], 1e-9), 1
        ),
        "peak_memory_bytes": memory,
        "adapter_bytes": file.stat().st_size if file.is_file() else values,
    }


def summarise(
    curve: dict[str, list[Any]],
    dev_rows: int,
    metric: Metric,
    reported: str,
    select: str,
) -> dict[str, Any]:
    """The result by both protocols; `best` and `last` by `select`, best_epoch as its
    adapter is kept.

    paper: the best epoch on the dev set, reported on the same rows, which is
    optimistic. crossfit: see runs.record.crossfit. reported: "best" or "last",
    whichever the task's table shows."""
    direction = {"higher_is_better": metric.higher_is_better, "scale": metric.scale}
    of_table = {
        "metric": metric.name,
        **direction,
        "reported": reported,
        "select": select,
    }
    if not curve["metric"]:
        return {**of_table, "best": None, "best_epoch": None, "last": None}
    values, chosen = curve["metric"], metric.best(curve["metric"])
    paper = {
        "best": values[chosen],
        "best_epoch": curve["epoch"][chosen],
        "last": values[-1],
    }
    protocols = {"paper": paper, "crossfit": crossfit(curve, dev_rows, metric) or {}}
    selected = {key: protocols[select].get(key) for key in ("best", "last")}
    return {**of_table, **paper, **selected, "protocols": protocols}


def deviations(run: Run, notes: list[str]) -> list[str]:
    """The task's notes, and what differs from the recipe, in words."""
    trains = run.method["kind"] != "none"
    words = list(notes)
    if run.recipe_gap:
        words.append(run.recipe_gap)
    words += _differences_from_recipe(run, trains)
    if trains:
        words += _difference_in_batches(run)
    words += _other_overrides(run, trains)
    max_steps = run.config["train"]["max_steps"]
    if max_steps is not None and trains:
        words.append(f"stopped after {max_steps} steps")
    return words


def _differences_from_recipe(run: Run, trains: bool) -> list[str]:
    """The recipe's settings of method and training that the run has otherwise. Where
    nothing trains, only what affects evaluation counts."""
    train = run.config["train"]
    settings = {**run.config["method"], **train}
    if not trains:
        settings = {key: train[key] for key in _evaluation_settings()}
    words = []
    for key in sorted(run.recipe_keys & set(settings)):
        wanted = from_recipe(run.config, key)
        if key in BASES:
            wanted = rates_of(wanted, train[BASES[key]], key)
        if key == "alpha" and lora_scaling(run.config) == "proportional":
            alpha = row_label(run.config).rpartition(", ")[2]
            words.append(
                f"alpha follows the rank ({alpha}), the recipe's is constant {wanted}"
            )
        elif settings[key] != wanted:
            words.append(f"{key} {settings[key]} instead of the recipe's {wanted}")
    return words


def _difference_in_batches(run: Run) -> list[str]:
    """Whether batches of rows of like lengths are made otherwise than the recipe says;
    only for families that had no choice before there was the key."""
    task = run.config["task"]
    added = KEYS["task.length_grouped"].added
    if added is None or task["family"] not in (added.families or ()):
        return []
    grouped = task.get("length_grouped", True)
    wanted = from_recipe(run.config, "length_grouped", True)
    if grouped == wanted:
        return []
    kinds = {True: "of like lengths", False: "random"}
    whose = "harness" if run.recipe == "defaults" else "recipe"
    return [f"batches are {kinds[grouped]}; the {whose}'s are {kinds[wanted]}"]


def _other_overrides(run: Run, trains: bool) -> list[str]:
    """The overrides of keys that the recipe does not have, except those that name the
    row or do not change the result."""
    covered = {"method.label", "method.scaling", "train.max_steps"}
    for key in run.recipe_keys:
        covered |= {f"train.{key}", f"method.{key}"}
    covered |= {f"method.{name}" for name in names_with_role(COMPUTING, "method")}
    if run.row.startswith("peft_"):
        covered |= {"method.config_class", "method.config"}
    if not trains:
        training_alone = set(run.config["train"]) - _evaluation_settings()
        covered |= {f"train.{key}" for key in training_alone}
    changed = run.changed
    return [f"{override} given" for override in changed if override.key not in covered]


def _evaluation_settings() -> set[str]:
    """The settings of training that also affect evaluation."""
    keys = (key for key in KEYS.values() if key.also_evaluation)
    return {key.name.removeprefix("train.") for key in keys}


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    # Linux. getrusage would include the process that started this one, before exec.
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
