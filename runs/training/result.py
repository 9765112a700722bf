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
from runs.record.cell import (
    from_recipe,
    hash_of,
    lora_scaling,
    row_label,
)
from runs.record.derived import derived_keys
from runs.record.keys import COMPUTING, KEYS, names_with_role
from runs.record.schema import (
    SCHEMA,
    Cost,
    Data,
    Determinism,
    MeasuredRecord,
    OptimizerGroup,
    Parameters,
    Record,
    Start,
    Texts,
)
from runs.run.definition import Run
from runs.run.identity import data_content, functions_content, model_content, start_id
from runs.run.methods import MULTIPLIED_SETTINGS, read_rates
from runs.run.provenance import describe_device, versions
from runs.training.context import number_of_parameters
from runs.training.determinism import determinism
from runs.training.loop import Training


def build_record(training: Training, texts: Texts | None) -> Record:
    """The record of a run that is done or has diverged; runs/record/schema.py explains
    its keys. texts: the scores of the decoded texts, if the task decodes."""
    run = training.run
    config = training.config
    state = training.state
    # The values below are computed from what was measured alone, so that `publish check`
    # can compute them again from a record.
    measured = _measured(training)
    values = derived_keys(measured)
    if values["id"] != training.run_id:
        raise RuntimeError(
            f"the record's id is {values['id']}, the run's {training.run_id}: "
            "its model or data changed while it ran"
        )
    device = training.accelerator.device
    record: Record = {
        "schema": SCHEMA,
        "id": values["id"],
        "status": state.status,
        "error": state.error,
        "tries": training.attempt.ended,
        # what was run
        "cell": values["cell"],
        "label": values["label"],
        "overrides": run.recorded_overrides,
        "start": measured["start"],
        "config": config,
        "config_hash": hash_of(config)[:16],
        "recipe": values["recipe"],
        "seeds": values["seeds"],
        "code": training.code,
        "versions": {**versions()},
        "device": describe_device(device),
        "determinism": _determinism(training),
        # what it read
        "model": measured["model"],
        "protocol": measured["protocol"],
        "data": measured["data"],
        # what trained
        "parameters": _parameters(training),
        "groups": _groups(training),
        "effective_batch": values["effective_batch"],
        "micro_batch": values["micro_batch"],
        "steps": state.step,
        # what came out
        "curve": measured["curve"],
        "result": values["result"],
        "texts": texts,
        "cost": _cost(training, decoded=bool(texts)),
        "predictions": _prediction_hashes(training),
        "deviations": [
            *deviations(run, training.task.notes),
            *training.notes,
            *training.attempt.deviations,
        ],
        "cell_id": values["cell_id"],
    }
    if measured["functions"]:
        record["functions"] = measured["functions"]
    if state.reach:
        record["reach"] = state.reach
    if training.forgetting:
        record["result"]["forgetting"] = training.forgetting
    if state.right:
        record["right"] = state.right
    return record


def _measured(training: Training) -> MeasuredRecord:
    """The part of the record that its derived keys, such as id and result, are computed
    from."""
    run = training.run
    config = training.config
    metric = training.metric
    start: Start | None = None
    if config["init_from"]:
        start = {"from": config["init_from"], "id": str(start_id(run))}
    return {
        "status": training.state.status,
        "cell": run.cell,
        "config": config,
        "recipe": {"name": run.recipe},
        "start": start,
        "model": str(model_content(config["model"])),
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
    }


def _prediction_hashes(training: Training) -> dict[str, str | None]:
    """The record's `predictions`: the hashes of what the best evaluation and the last
    one predicted; None without an evaluation."""
    hashes = training.state.predictions
    if not hashes:
        return {"best": None, "last": None}
    return {"best": hashes[training.best_evaluation()], "last": hashes[-1]}


def _data(training: Training) -> Data:
    """The record's `data`: the hash of the rows, and how many there are."""
    task = training.task
    data: Data = {
        "content": str(data_content(training.config["task"])),
        "train_rows": len(training.lengths),
        "dev_rows": len(task.lengths("dev")),
    }
    if task.selection:
        data["selection"] = task.selection
    if task.scaling:
        mean, spread = task.scaling
        data["labels"] = {"mean": mean, "spread": spread}
    return data


def _determinism(training: Training) -> Determinism:
    """The record's `determinism`: how the process computes, the number of processes, and
    where the run was resumed under other conditions."""
    accelerator = training.accelerator
    conditions = determinism(accelerator.device)
    conditions["processes"] = accelerator.num_processes
    if training.state.resumed:
        conditions["resumed"] = training.state.resumed
    return conditions


def _parameters(training: Training) -> Parameters:
    """The record's `parameters`, numbers of values. formula: what the method says that
    it trains without the head."""
    model = training.raw_model
    method = training.method
    groups = method.parameter_groups(model)
    return {
        "adapter": _elements(groups["adapter"]),
        "head": _elements(groups["head"]),
        "frozen_extra": _elements(vera.frozen_extra(model)),
        "total": number_of_parameters(model),
        "formula": method.count(model),
    }


def _elements(tensors: Mapping[str, torch.Tensor]) -> int:
    """The number of values in all these tensors."""
    return sum(tensor.numel() for tensor in tensors.values())


def _groups(training: Training) -> list[OptimizerGroup]:
    """The record's `groups`, those of the optimizer; none where nothing trains."""
    if not training.groups:
        return []
    groups = list[OptimizerGroup]()
    for group in training.optimizer.param_groups:
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


def _cost(training: Training, decoded: bool) -> Cost:
    """The record's `cost`. decoded: whether the run decoded texts."""
    state = training.state
    device = training.accelerator.device
    train_seconds = state.seconds["train"]
    cost: Cost = {
        "train_seconds": round(train_seconds, 3),
        "evaluate_seconds": round(state.seconds["evaluate"], 3),
        "adapter_bytes": _adapter_bytes(training),
    }
    if decoded:
        cost["decode_seconds"] = round(training.attempt.decoding, 3)
    speed = round(state.units / max(train_seconds, 1e-9), 1)
    if training.task.unit == "img":
        cost["images_per_second"] = speed
    else:
        cost["tokens_per_second"] = speed
    if device.type == "cuda":
        cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    else:
        cost["peak_memory_bytes"] = peak_memory()
    return cost


def _adapter_bytes(training: Training) -> int:
    """The bytes of the adapter's file or, where the run keeps none, of the trained
    values."""
    file = training.folder / "adapter.safetensors"
    if file.is_file():
        return file.stat().st_size
    trained = training.method.adapter_parameters(training.raw_model).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in trained)


def deviations(run: Run, notes: list[str]) -> list[str]:
    """What differs from the recipe and the usual protocol, a sentence each. notes: what
    the task says of its data."""
    trains = run.method["kind"] != "none"
    sentences = list(notes)
    if run.recipe_gap:
        sentences.append(run.recipe_gap)
    sentences += _differences_from_recipe(run, trains)
    if trains:
        sentences += _difference_in_batches(run)
    sentences += _other_overrides(run, trains)
    max_steps = run.config["train"]["max_steps"]
    if max_steps is not None and trains:
        sentences.append(f"stopped after {max_steps} steps")
    return sentences


def _differences_from_recipe(run: Run, trains: bool) -> list[str]:
    """Sentences on the settings of method and training that differ from the recipe's.
    Where nothing trains, only settings that affect evaluation count."""
    train: Mapping[str, Any] = run.config["train"]
    reward: Mapping[str, Any] = run.config.get("reward") or {}
    settings = {**run.config["method"], **train, **reward}
    if not trains:
        settings = {key: train[key] for key in _evaluation_settings()}
    sentences = []
    for key in sorted(run.recipe_keys & set(settings)):
        expected = from_recipe(run.config, key)
        if key in MULTIPLIED_SETTINGS:
            # the recipe may have factors of another setting, such as 16x train.lr
            expected = read_rates(expected, train[MULTIPLIED_SETTINGS[key]], key)
        if key == "alpha" and lora_scaling(run.config) == "proportional":
            # Differs even where the values are equal, since the recipe's is a constant.
            # A row's label ends with it, such as "LoRA r=2, alpha=r".
            alpha = row_label(run.config).rpartition(", ")[2]
            sentences.append(
                f"alpha follows the rank ({alpha}), the recipe's is constant {expected}"
            )
        elif settings[key] != expected:
            sentences.append(
                f"{key} {settings[key]} instead of the recipe's {expected}"
            )
    return sentences


def _difference_in_batches(run: Run) -> list[str]:
    """A sentence if task.length_grouped differs from what the recipe says, or from True
    where it does not say. Only for the families that sorted batches by length before
    there was this key."""
    task = run.config["task"]
    # how the key was added to the configuration
    added = KEYS["task.length_grouped"].added
    if added is None or task["family"] not in (added.families or ()):
        return []
    is_grouped = task.get("length_grouped", True)
    expected = from_recipe(run.config, "length_grouped", True)
    if is_grouped == expected:
        return []
    kinds = {True: "of like lengths", False: "random"}
    source = "harness" if run.recipe == "defaults" else "recipe"
    return [f"batches are {kinds[is_grouped]}; the {source}'s are {kinds[expected]}"]


def _other_overrides(run: Run, trains: bool) -> list[str]:
    """Sentences on the overrides of keys that no other sentence and no recipe has, except
    of those that name the row or do not change the result."""
    covered = {
        "method.label",
        "method.scaling",
        "train.max_steps",
        "train.objective",  # the row says it
        "reward.permuted",
        "reward.expected",
    }
    for key in run.recipe_keys:
        covered |= {f"train.{key}", f"method.{key}", f"reward.{key}"}
    covered |= {f"method.{name}" for name in names_with_role(COMPUTING, "method")}
    # such a row is made by them, and named after the class
    if run.row.startswith("peft_"):
        covered |= {"method.config_class", "method.config"}
    if not trains:
        unused = set(run.config["train"]) - _evaluation_settings()
        covered |= {f"train.{key}" for key in unused}
    return [
        f"{override} given" for override in run.changed if override.key not in covered
    ]


def _evaluation_settings() -> set[str]:
    """The settings of training that also affect evaluation."""
    keys = (key for key in KEYS.values() if key.also_evaluation)
    return {key.name.removeprefix("train.") for key in keys}


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    # On Linux getrusage also counts the process that started this one, so read /proc.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
