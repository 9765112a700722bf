"""A run's record at its end, from what it has learnt."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import tasks
import vera
from runs.config import Run
from runs.identity import data_content, hash_of, model_content, start_id
from runs.record import (
    COMPUTED,
    READS_LENGTH_GROUPED,
    SCHEMA,
    Metric,
    Record,
    cell_id,
    crossfit,
    from_recipe,
    lora_scaling,
    row_label,
)
from runs.training.context import Context
from runs.training.flags import flags, not_deterministic
from runs.training.provenance import machine, versions
from runs.training.state import State

#: What a record says of VeRA's A and B, by method.redrawn.
DRAWS = {
    False: (
        "one draw of A and B for all seeds: the spread over seeds leaves out what another draw would change"
    ),
    True: "A and B are drawn anew for each seed: the spread over seeds holds what another draw changes",
}


def build_record(
    context: Context,
    state: State,
    texts: dict[str, Any] | None,
    attempts: Mapping[str, Any],
    code: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    features: Mapping[str, float],
    notes: list[str],
) -> Record:
    """The record of a run that is done, or has diverged; runs/record/schema.py explains its keys.

    texts: what was decoded, and its scores. attempts: how earlier ones `ended`, and their `deviations`. code:
    what was run, as it was at the start. groups: the optimizer's. features: the seconds that a head's inputs
    took, by split. notes: beside the task's, for the deviations.
    """
    run, config, task, metric = context.run, context.config, context.task, context.metric
    dev_rows, predictions = len(task.lengths("dev")), state.predictions
    why = not_deterministic(run, context.accelerator.device)
    record = {
        "schema": SCHEMA,
        "id": context.run_id,
        "status": state.status,
        "error": state.error,
        "tries": attempts["ended"],
        **run.names,
        "start": {"from": config["init_from"], "id": start_id(run)} if config["init_from"] else None,
        "config": config,
        "config_hash": hash_of(config)[:16],
        "recipe": _recipe(run),
        "seeds": _seeds(config),
        "code": dict(code),
        "versions": versions(),
        "device": machine(context.accelerator.device),
        "determinism": {
            **flags(context.accelerator.device),
            "threads": torch.get_num_threads(),
            "processes": context.accelerator.num_processes,
        },
        "model": model_content(config["model"]),
        "protocol": tasks.protocol(config["task"]),
        "data": _data(context),
        "parameters": _parameters(context),
        "groups": [_group(group) for group in groups],
        "effective_batch": context.settings["effective_batch"],
        "micro_batch": config["micro_batch"],
        "steps": state.step,
        "curve": state.curve,
        "result": summarise(state.curve, dev_rows, metric, task.reported, config["select"]),
        "texts": texts,
        "cost": _cost(context, state, features, decoded=bool(texts)),
        "predictions": {
            "best": predictions[metric.best(state.curve["metric"])] if predictions else None,
            "last": predictions[-1] if predictions else None,
        },
        "deviations": [
            *deviations(run, task.notes),
            *notes,
            *([f"not the same to the bit in another run: {why}"] if why else []),
            *attempts["deviations"],
        ],
    }
    return record | {"cell_id": cell_id(record)}


def _recipe(run: Run) -> dict[str, Any]:
    recipe = run.config["recipe"]
    return {"name": run.recipe, "source": recipe.get("source"), "chosen": recipe.get("chosen", {})}


def _seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    method = config["method"]
    seeds = {"training": config["seed"], "data": config["data_seed"]}
    seeds["projection"] = method.get("projection_seed")
    return seeds | ({"projection_note": DRAWS[method["redrawn"]]} if "redrawn" in method else {})


def _data(context: Context) -> dict[str, Any]:
    task = context.task
    rows = {f"{split}_rows": len(task.lengths(split)) for split in ("train", "dev")}
    more = {"selection": task.selection, "unreadable": task.unreadable}
    found = {"content": data_content(context.config["task"]), **rows}
    return found | {key: value for key, value in more.items() if value}


def _parameters(context: Context) -> dict[str, Any]:
    model, method = context.raw_model, context.method
    trained = {
        name: sum(p.numel() for p in group.values()) for name, group in method.parameter_groups(model).items()
    }
    frozen = sum(tensor.numel() for tensor in vera.frozen_extra(model).values())
    return {**trained, "frozen_extra": frozen, "total": count(model), "formula": method.count(model)}


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    count = sum(p.numel() for p in group["params"])
    rates = {"lr": group["initial_lr"], "weight_decay": group["weight_decay"]}
    return {"name": group["name"], **rates, "parameters": count}


def _cost(context: Context, state: State, features: Mapping[str, float], decoded: bool) -> dict[str, Any]:
    device, adapter = context.accelerator.device, context.folder / "adapter.safetensors"
    trained = context.method.adapter_parameters(context.raw_model).values()
    # A head's inputs are computed by each start of the run, and counted once.
    train = state.seconds["train"] + features.get("train", 0.0)
    evaluate = state.seconds["evaluate"] + features.get("dev", 0.0)
    pace = {"tok": "tokens", "img": "images"}[context.task.unit]
    return {
        "train_seconds": round(train, 3),
        "evaluate_seconds": round(evaluate, 3),
        **({"decode_seconds": round(state.seconds["decode"], 3)} if decoded else {}),
        f"{pace}_per_second": round(state.units / max(train, 1e-9), 1),
        "peak_memory_bytes": (
            torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
        ),
        "adapter_bytes": (
            adapter.stat().st_size
            if adapter.is_file()
            else sum(p.numel() * p.element_size() for p in trained)
        ),
    }


def dev_halves(rows: int) -> tuple[Any, Any]:
    """Two halves of the dev rows, A and B, for cross-fitted selection: the same for every run, whatever its
    seed."""
    order = np.random.Generator(np.random.Philox(key=[0, rows])).permutation(rows)
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def summarise(
    curve: dict[str, list[Any]], dev_rows: int, metric: Metric, reported: str, select: str
) -> dict[str, Any]:
    """The result by both protocols; `best` and `last` are the configured one's, best_epoch is the one that is
    kept.

    paper: the best epoch on the dev set, reported on the same rows, which flatters. crossfit: see
    runs.record.crossfit.
    reported: which of the two numbers the table of the task has.
    """
    direction = {"higher_is_better": metric.higher_is_better, "scale": metric.scale}
    of_table = {"metric": metric.name, **direction, "reported": reported, "select": select}
    if not curve["metric"]:
        return {**of_table, "best": None, "best_epoch": None, "last": None}
    chosen = metric.best(curve["metric"])
    paper = {
        "best": curve["metric"][chosen],
        "best_epoch": curve["epoch"][chosen],
        "last": curve["metric"][-1],
    }
    protocols = {"paper": paper, "crossfit": crossfit(curve, dev_rows, metric) or {}}
    of = protocols[select]
    told = {"best": of.get("best"), "best_epoch": paper["best_epoch"], "last": of.get("last")}
    return {**of_table, **told, "protocols": protocols}


#: The settings of training that a model is evaluated by.
READS = ("max_length", "precision")


def deviations(run: Run, notes: list[str]) -> list[str]:
    """What differs from the recipe, in words."""
    recipe, train, task = run.config["recipe"], run.config["train"], run.config["task"]["name"]
    words, trains = list(notes), run.method["kind"] != "none"
    if run.recipe == "defaults" and trains:
        words.append("no recipe for this method and model: the harness's defaults")
    # Where nothing trains, how the model reads and computes is left.
    settings = {**train, **run.config["method"]} if trains else {key: train[key] for key in READS}
    of_tasks = {
        key: values for key, values in (recipe.get("by_task") or {}).items() if task in (values or {})
    }
    for key in sorted({*recipe, *of_tasks} & set(settings)):
        wanted = of_tasks[key][task] if key in of_tasks else recipe[key]
        if key == "alpha" and lora_scaling(run.config) == "proportional":
            alpha = row_label(run.config).rpartition(", ")[2]
            words.append(f"alpha follows the rank ({alpha}), the recipe's is constant {wanted}")
        elif settings[key] != wanted:
            words.append(f"{key} {settings[key]} instead of the recipe's {wanted}")
    if trains and run.config["task"]["family"] in READS_LENGTH_GROUPED:
        grouped, wanted = (
            run.config["task"].get("length_grouped", True),
            from_recipe(run.config, "length_grouped", True),
        )
        if grouped != wanted:
            kinds, whose = (
                {True: "of like lengths", False: "random"},
                "harness" if run.recipe == "defaults" else "recipe",
            )
            words.append(f"batches are {kinds[grouped]}; the {whose}'s are {kinds[wanted]}")
    # Said above or by the row, or of no weight.
    told = {
        *recipe,
        *of_tasks,
        "label",
        "max_steps",
        "config_class",
        "config",
        "scaling",
        *COMPUTED,
        *(() if trains else set(train) - set(READS)),
    }
    words += [
        f"{line} given" for line in run.changed if line.partition("=")[0].rpartition(".")[2] not in told
    ]
    if train["max_steps"] is not None and trains:
        words.append(f"stopped after {train['max_steps']} steps")
    return words


#: A method that trains a larger share of the model is none that a table of small adapters should hold without
#: a word.
LARGE_SHARE = 0.05


def count(model: nn.Module) -> int:
    """A model's parameters; of those in 4 bit a byte holds two."""
    return sum(p.numel() * (1 if p.is_floating_point() else 2) for p in model.parameters())


def large_share(method: vera.Method, model: nn.Module) -> list[str]:
    """A sentence where a method other than full fine-tuning trains much of the model (head apart)."""
    trained = sum(p.numel() for p in method.adapter_parameters(model).values())
    share = trained / count(model)
    if method.kind == "full" or share <= LARGE_SHARE:
        return []
    return [f"trains {100 * share:.1f}% of the model's parameters ({trained:,}), as no small adapter does"]


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    with contextlib.suppress(
        OSError
    ):  # Linux: getrusage would count what came before exec, in the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
