"""A run as a result file of peft's method comparison
(https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA), which it
can join. `vera-bench table leaderboard=FOLDER` reads such files, too."""

import datetime
from typing import Any

from runs.command.errors import UserError
from runs.models.load import computing_precision
from runs.record.configuration import MethodConfig
from runs.record.schema import Record

#: The number of test questions of GSM8K.
QUESTIONS = 1319
#: Keys of a method's configuration that are no settings of the adapter, or that the file
#: has under another name.
KEYS_LEFT_OUT = {"kind", "label", "keep", "recipe", "sites", "config", "config_class"}


def result_file(record: Record) -> dict[str, Any]:
    """The content of the file. Its date is that of the export, since records have none.

    Raises UserError for a run that was not scored on all of GSM8K's test questions."""
    share = gsm8k_share(record)
    return {
        "run_info": run_info(record),
        "train_info": train_info(record, share),
        "meta_info": meta_info(record),
    }


def run_info(record: Record) -> dict[str, Any]:
    """The part of the file that says how the run was set up."""
    cell = record["cell"]
    created_at = datetime.datetime.now(datetime.UTC)
    return {
        "created_at": created_at.isoformat("T", "seconds"),
        "experiment_name": f"{cell['row']}/{cell['model']}-{record['id']}",
        "train_config": train_config(record),
        "peft_config": adapter_config(record["config"]["method"]),
        "error_msg": "",
    }


def train_info(record: Record, share: float) -> dict[str, Any]:
    """The part of the file with results and costs. share: as `gsm8k_share` returns it."""
    cost = record["cost"]
    parameters = record["parameters"]
    last = {
        "step": record["steps"],
        "test accuracy": share,
        "train loss": record["curve"]["train_loss"][-1],
        "forgetting": loss_rise(record),
    }
    return {
        "accelerator_memory_max": cost.get("peak_memory_bytes") or 0,
        "train_time": cost["train_seconds"],
        "file_size": cost.get("adapter_bytes") or 0,
        "num_trainable_params": parameters["adapter"] + parameters["head"],
        "num_total_params": parameters["total"],
        "status": "success",
        "metrics": [last],
    }


def meta_info(record: Record) -> dict[str, Any]:
    """The part of the file with versions, the machine and the run's id."""
    versions = record["versions"]
    packages = {f"{name}-version": version for name, version in versions.items()}
    return {
        "package_info": packages,
        "system_info": record["device"],
        "vera_bench_run": record["id"],
    }


def gsm8k_share(record: Record) -> float:
    """The share, from 0 to 1, of GSM8K's test questions that the last epoch answers right.
    Raises UserError where the run was not scored on all of them."""
    run = f"run {record['id']} ({record['label']['row']}, {record['label']['task']})"
    texts = record.get("texts")
    percents = []
    for scores in texts["scores"] if texts else []:
        parts = scores.get("parts") or {}
        if scores["which"] == "last" and parts.get("gsm8k") is not None:
            percents.append(parts["gsm8k"])
    if not percents:
        raise UserError(f"{run} has no score on GSM8K, which leaderboard= is for")
    correct = round(percents[0] / 100 * QUESTIONS)
    if abs(100 * correct / QUESTIONS - percents[0]) > 1e-6:
        raise UserError(
            f"{run} was not scored on all of GSM8K's {QUESTIONS:,} test questions "
            "(task.items)"
        )
    return correct / QUESTIONS


def train_config(record: Record) -> dict[str, Any]:
    """How the run was trained and decoded, under that benchmark's names."""
    config = record["config"]
    train = config["train"]
    task = config["task"]
    return {
        "model_id": config["model"].get("hub") or record["cell"]["model"],
        "dtype": computing_precision(config),
        "max_seq_length": train.get("max_length"),
        "batch_size": record["effective_batch"],
        "max_steps": record["steps"],
        "seed": config["seed"],
        "grad_norm_clip": train.get("clip"),
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {
            "lr": train["lr"],
            "weight_decay": train.get("weight_decay"),
        },
        "lr_scheduler": train.get("schedule"),
        "query_template": task.get("prompt"),
        "generation_kwargs": {
            "max_new_tokens": task.get("max_new_tokens"),
            "num_beams": task.get("beams"),
            "do_sample": False,
        },
    }


def adapter_config(method: MethodConfig) -> dict[str, Any] | None:
    """The method's own settings, under peft's names; None for full fine-tuning, as that
    benchmark has it."""
    if method["kind"] == "full":
        return None
    kind = method.get("config_class", method["kind"]).removesuffix("Config")
    settings = {key: value for key, value in method.items() if key not in KEYS_LEFT_OUT}
    return {
        "peft_type": kind.upper(),
        "target_modules": method.get("sites"),
        **settings,
        **(method.get("config") or {}),
    }


def loss_rise(record: Record) -> float | None:
    """By how much the loss on a fixed text rose in training; None where it was not
    measured."""
    measured = record["result"].get("forgetting")
    if not measured or measured["after"] is None or measured["before"] is None:
        return None
    return float(measured["after"] - measured["before"])
