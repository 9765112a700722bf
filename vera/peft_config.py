"""adapter_config.json of huggingface/peft: what of it decides about an adapter."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vera.errors import AdapterError
from vera.methods.peft_settings import rewrites_base
from vera.sites import head_parameters, head_prefixes

CONFIG = "adapter_config.json"
#: Settings of peft's LoRA that make it another method than the one here, where they are set.
OTHER_LORA = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "megatron_config", "trainable_token_indices"),
    *("target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
    *("arrow_config", "kasa_config", "velora_config", "monteclora_config", "loftq_config", "corda_config"),
    "lora_ga_config",
)
#: Others that change which layers are adapted, or how far, and that are never set here.
UNSET = (*OTHER_LORA, "use_rslora", "layers_to_transform", "exclude_modules")
#: Heads that peft adds to modules_to_save for a classifier, whatever the model has.
ADDED = {"classifier", "score"}


def head_modules(model: nn.Module) -> list[str] | None:
    """The modules of a model's head, as modules_to_save has them."""
    head = head_parameters(model)
    return [p[:-1] for p in head_prefixes(model) if any(name.startswith(p) for name in head)] or None


def check_config(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], model: nn.Module) -> None:
    """Raises AdapterError where a folder's adapter_config.json, which peft obeys, describes another adapter
    than `ours`, which is written for the weights' metadata. model: the base model."""
    wanted = dict.fromkeys(UNSET) | dict(ours) | {"modules_to_save": head_modules(model)}
    del wanted["fan_in_fan_out"]  # peft corrects it
    if rewrites_base(theirs.get("init_lora_weights")):
        wanted["init_lora_weights"] = True
    for key, value in wanted.items():
        if not _agree(key, theirs.get(key), value, model):
            found, own = map(reprlib.repr, (theirs.get(key), value))
            raise AdapterError(
                f"{folder}: its {CONFIG} says {key}={found}, its weights {own}. Export it again"
            )


def _agree(key: str, theirs: Any, ours: Any, model: nn.Module) -> bool:
    """Whether peft takes two values of a key for the same."""
    if ours is None:
        return theirs in (None, [], {}) or theirs is False
    if isinstance(ours, list) and isinstance(theirs, list) and all(isinstance(name, str) for name in theirs):
        names = set(theirs)
        if key == "modules_to_save":
            return names - ADDED <= set(ours) <= names
        # peft keeps the shortest ends of many names that no other module has
        adapted = {path for path, _ in model.named_modules() if names & _ends(path)}
        return adapted == set(ours)
    return bool(theirs == ours) and isinstance(theirs, bool) == isinstance(ours, bool)


def _ends(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}
