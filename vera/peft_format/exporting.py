"""Writes an adapted model's adapter and head as peft does."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods import Method
from vera.methods.adapted import adaptation, unmerged_for_block
from vera.methods.lora import LoRA
from vera.methods.peft import Peft
from vera.methods.peft_install import installed
from vera.methods.vera import VeRA
from vera.peft_format.folder import Config, write_folder
from vera.peft_format.layout import (
    PAIR_A,
    PAIR_B,
    PROJECTION_KEY,
    layout_of,
    projection_key,
)


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as peft has it, without the head."""

    config: Config
    tensors: dict[str, Tensor]


def export_peft(
    model: nn.Module,
    folder: str | Path,
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Writes an adapted model's adapter and head in peft's format.

    `peft.PeftModel.from_pretrained(base, folder)` reads the folder. It also loads
    beside other VeRA adapters of the same A and B on one PeftModel; peft refuses those
    of another pair.

    Args:
        model: A model that VeRA, LoRA or a method of peft has adapted. It stays as it
            is.
        folder: Where adapter_config.json and adapter_model.safetensors go.
        base: The base model's name on the hub, for adapter_config.json. Without it, the
            name that the model was loaded by; of a local folder only the last part.
        revision: The base model's revision on the hub.

    Raises:
        AdapterError: peft has no such adapter, such as bottlenecks, several pairs of
            projections, or a method without an adapter.
    """
    method = exported_method(model)
    described = describe_for_peft(model, method)
    settings = method.settings()
    write_folder(
        model, folder, described.config, described.tensors, base, revision, settings
    )


def exported_method(model: nn.Module) -> Method:
    """The method on a model. Raises AdapterError where peft's format has no place for
    it."""
    adapted = adaptation(model)
    kind = adapted.method.kind if adapted else "none"
    if adapted is None or not isinstance(adapted.method, VeRA | LoRA | Peft):
        raise AdapterError(
            f"peft's format has no place for method {kind}: only vera, lora and peft's own"
        )
    return adapted.method


def describe_for_peft(model: nn.Module, method: Method) -> PeftAdapter:
    """Describes an adapted model as peft does.

    Args:
        model: The adapted model.
        method: The method on it: VeRA, LoRA or one of peft's.

    Returns:
        The configuration and the tensors, without the head.

    Raises:
        AdapterError: peft has no such adapter.
    """
    if isinstance(method, Peft):
        return _describe_peft(model)
    layout = layout_of(model, method)
    tensors = {name: tensor.assemble() for name, tensor in layout.tensors.items()}
    if isinstance(method, VeRA):
        layout.config[PROJECTION_KEY] = projection_key(
            method, layout.slice_count, tensors[PAIR_A], tensors[PAIR_B]
        )
    return PeftAdapter(layout.config, tensors)


def _describe_peft(model: nn.Module) -> PeftAdapter:
    """As `describe_for_peft`, for a model that one of peft's own methods has adapted."""
    import peft

    adapted = adaptation(model)
    assert adapted is not None
    with unmerged_for_block(model, adapted):
        wrapper = installed(model).wrapper
        tensors = peft.get_peft_model_state_dict(wrapper, save_embedding_layers=False)
        copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    return PeftAdapter(plain_config(wrapper.peft_config["default"].to_dict()), copies)


def plain_config(settings: Mapping[str, object]) -> Config:
    """A configuration of peft with values that JSON has."""
    config: Config = {}
    for key, value in settings.items():
        if isinstance(value, set):
            config[key] = sorted(value)
        elif isinstance(value, Enum):
            config[key] = value.value
        else:
            config[key] = value
    return config
