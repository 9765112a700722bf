"""Names and values on the command line, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

#: Settings of a method by peft's names.
ALIASES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "sites"}

#: Keys by the names that they have in transformers' TrainingArguments and elsewhere.
HABITS = {
    "learning_rate": "train.lr",
    "batch_size": "train.effective_batch",
    "train_batch_size": "train.effective_batch",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "micro_batch",
    "per_device_eval_batch_size": "eval_batch",
    "num_train_epochs": "train.epochs",
    "max_seq_length": "train.max_length",
    "lr_scheduler_type": "train.schedule",
    "max_grad_norm": "train.clip",
    "output_dir": "output",
    "dataset": "task",
    "wandb": "tracking",
}


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence with the nearest right name or, for a key of a group, with the keys of the group; else
    empty."""
    # "lr" for "train.lr": the last part right, the group wrong or left out
    group, _, last = name.rpartition(".")
    known_as = f"{group}.{ALIASES.get(last, last)}" if group else last
    if (exact := {k.lower(): k for k in known}.get(known_as.lower())) is not None:
        return f" Did you mean {exact}?"
    if HABITS.get(last) in known:
        return f" Did you mean {HABITS[last]}?"
    close = [k for k in known if k.startswith(f"{name}_")][:4] or [
        k for k in known if k.endswith(f".{last}")
    ][:1]
    close = close or difflib.get_close_matches(name, known, 1, 0.75)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    members = [key.rpartition(".")[2] for key in known if group and key.rpartition(".")[0] == group]
    return f" {group} has: {', '.join(members)}" if members else ""


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, those of mappings too."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
