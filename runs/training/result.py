"""The record of a run, built at its end."""

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any

import torch

import tasks
import vera
from runs.record.cell import (
    from_recipe,
    hash_of,
    lora_scaling,
    row_label,
)
from runs.record.derived import derived
from runs.record.keys import COMPUTING, KEYS, names_with_role
from runs.record.schema import SCHEMA, Record
from runs.run.definition import Run
from runs.run.identity import data_content, functions_content, model_content, start_id
from runs.run.methods import BASES, rates_of
from runs.run.provenance import made_with
from runs.training.context import count, flags
from runs.training.loop import Training


def build_record(training: Training, texts: dict[str, Any] | None) -> Record:
    """The record of a run that is done or has diverged; runs/record/schema.py explains
    its keys.

    texts: the decoded texts' scores, where the task decodes."""
    run, config, state = training.run, training.config, training.state
    measured = _measured(training, texts)
    known = derived(measured)
    if known["id"] != training.run_id:
        raise RuntimeError(
            f"the record's id is {known['id']}, the run's {training.run_id}: "
            "its model or data changed while it ran"
        )
    result = known["result"]
    if training.forgetting:
        result["forgetting"] = training.forgetting
    predictions = state.predictions
    return {
        "schema": SCHEMA,
        "id": known["id"],
        "status": state.status,
        "error": state.error,
        "tries": training.attempt.ended,
        "cell": known["cell"],
        "label": known["label"],
        "overrides": run.names["overrides"],
        "start": measured["start"],
        "config": config,
        "config_hash": hash_of(config)[:16],
        "recipe": known["recipe"],
        "seeds": known["seeds"],
        **made_with(training.code, training.accelerator.device),
        "determinism": _determinism(training),
        "model": measured["model"],
        "protocol": measured["protocol"],
        "data": measured["data"],
        **({"functions": measured["functions"]} if measured["functions"] else {}),
        "parameters": _parameters(training),
        "groups": _groups(training),
        "effective_batch": known["effective_batch"],
        "micro_batch": known["micro_batch"],
        "steps": state.step,
        **({"reach": state.reach} if state.reach else {}),
        "curve": state.curve,
        "result": result,
        "texts": texts,
        "cost": _cost(training, decoded=bool(texts)),
        "predictions": {
            "best": predictions[training.best()] if predictions else None,
            "last": predictions[-1] if predictions else None,
        },
        **({"right": state.right} if state.right else {}),
        "deviations": [
            *deviations(run, training.task.notes),
            *training.notes,
            *training.attempt.deviations,
        ],
        "cell_id": known["cell_id"],
    }


def _measured(training: Training, texts: dict[str, Any] | None) -> Record:
    """What the record's other keys are derived from."""
    run, config, metric = training.run, training.config, training.metric
    start = None
    if config["init_from"]:
        start = {"from": config["init_from"], "id": start_id(run)}
    return {
        "status": training.state.status,
        "cell": run.names["cell"],
        "config": config,
        "recipe": {"name": run.recipe},
        "start": start,
        "model": model_content(config["model"]),
        "protocol": tasks.protocol(config["task"]),
        "data": _data(training),
        "functions": functions_content(config),
        "curve": training.state.curve,
        "result": {
            "metric": metric.name,
            "higher_is_better": metric.higher_is_better,
            "scale": metric.scale,
            "reported": training.task.reported,
        },
        "texts": texts,
    }


def _data(training: Training) -> dict[str, Any]:
    task = training.task
    data: dict[str, Any] = {
        "content": data_content(training.config["task"]),
        "train_rows": len(training.lengths),
        "dev_rows": len(task.lengths("dev")),
    }
    if task.selection:
        data["selection"] = task.selection
    if task.scaling:
        mean, spread = task.scaling
        data["labels"] = {"mean": mean, "spread": spread}
    return data


def _determinism(training: Training) -> dict[str, Any]:
    accelerator = training.accelerator
    conditions = {
        **flags(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
    }
    if training.state.resumed:
        conditions["resumed"] = training.state.resumed
    return conditions


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


def _groups(training: Training) -> list[dict[str, Any]]:
    """The optimizer's groups; none where nothing trains."""
    groups = []
    for group in training.optimizer.param_groups if training.groups else []:
        parameters = sum(parameter.numel() for parameter in group["params"])
        groups.append(
            {
                "name": group["name"],
                "lr": group["initial_lr"],
                "weight_decay": group["weight_decay"],
                "parameters": parameters,
            }
        )
    return groups


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
    settings = {**run.config["method"], **train, **run.config.get("reward", {})}
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
    covered = {
        "method.label",
        "method.scaling",
        "train.max_steps",
        "train.objective",  # the row says it
        "reward.permuted",
    }
    for key in run.recipe_keys:
        covered |= {f"train.{key}", f"method.{key}", f"reward.{key}"}
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
