"""An adapted model: what it remembers, and how it becomes one and the base model
again."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.layers import AdaptedLinear
from vera.sites import WHOLE, head_parameters


@dataclass(frozen=True)
class Adaptation:
    """What an adapted model remembers. Names are the base model's, but for
    `trained`."""

    method: Any  # a contract.Method
    base_names: frozenset[str]  # of the base model's parameters and buffers
    head: frozenset[str]  # of the head's parameters
    trainable: frozenset[str]  # of the parameters that were trainable before
    # of the adapted model's parameters: what the method trains, without the head
    trained: frozenset[str]
    hooks: set[int]  # the keys of the forward hooks that came with the method
    #: The weights before a merge, by the adapted model's names; empty where it is not
    #: merged.
    unmerged: dict[str, Tensor] = field(default_factory=dict)

    def base_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters by the base model's names."""
        plain = plain_names(model)
        return {plain[name]: p for name, p in model.named_parameters()}

    def left_alone(self, model: nn.Module) -> set[str]:
        """The names of the base weights that are neither the head's nor trained in
        place."""
        plain = plain_names(model)
        return set(self.base_names) - self.head - {plain[name] for name in self.trained}


def adaptation(model: nn.Module) -> Adaptation | None:
    """How a model is adapted; None for a base model."""
    return getattr(model, "_adaptation", None)


def adapt_with(model: nn.Module, method: Any) -> None:
    """See `Method.adapt`."""
    if adaptation(model):
        raise AdapterError(
            "this model is adapted already: unload it, or take a fresh copy of the base model"
        )
    if any("base_layer" in m._modules for m in model.modules()):
        raise AdapterError(
            "this model carries an adapter of peft's: take it out first (peft_model.unload())"
        )
    base_names = frozenset(
        name for name, _ in [*model.named_parameters(), *model.named_buffers()]
    )
    head = frozenset(head_parameters(model))
    trainable = frozenset(
        name for name, p in model.named_parameters() if p.requires_grad
    )
    base_modules, hooks = set(model.modules()), hook_keys(model)
    with _put_back(model):
        model.requires_grad_(False)
        method.install(model)
    for module in model.modules():
        if module not in base_modules:
            module.training = model.training
    _keep_4bit_unpacked(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in head_parameters(model).items():
        parameter.requires_grad_(True)
        trained.discard(name)
    model.register_forward_pre_hook(refuse_names, with_kwargs=True)
    hooks = hook_keys(model) - hooks
    # A plain attribute: it is no part of the state dict, and is copied with the model.
    model._adaptation = Adaptation(
        method, base_names, head, trainable, frozenset(trained), hooks
    )  # type: ignore[assignment]


@contextlib.contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Puts the model back as it was, where a method refuses half way."""
    # A method of peft may replace parameters, too
    tables: Any = []
    for module in model.modules():
        for table in (module._modules, module._parameters):
            tables.append((table, dict(table)))
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    hooks = hook_keys(model)
    try:
        yield
    except BaseException:
        for table, content in tables:
            table.clear()
            table.update(content)
        for parameter, data, trainable in parameters:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(trainable)
        remove_hooks(model, hook_keys(model) - hooks)
        raise


def unload(model: nn.Module, merge: bool = False) -> None:
    """Makes an adapted model the plain base model again.

    Parameters that were trainable before are so again. A merged model is then saved as
    any model of its library (`model.save_pretrained(folder)`).

    Args:
        model: The model. It is changed in place; a base model stays as it is.
        merge: Whether the adapter stays in the weights.

    Raises:
        AdapterError: The adapter cannot be merged.
    """
    refuse_many(model)
    if not (adapted := adaptation(model)):
        return
    if merge:
        adapted.method.merge(model)
        adapted.unmerged.clear()  # which makes it final
    adapted.method.remove(model)
    remove_hooks(model, adapted.hooks)
    del model._adaptation
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapted.trainable)


def refuse_many(model: nn.Module) -> None:
    """Raises AdapterError for a model that vera.Adapters holds: its adapters change
    from call to call."""
    if "_adapters" in model.__dict__:
        raise AdapterError(
            "this model holds many adapters (vera.Adapters): their unload() comes first"
        )


def refuse_names(
    model: nn.Module, arguments: object, keywords: dict[str, object]
) -> None:
    """A forward pre-hook of a model that carries one adapter, and of a part of a model
    that carries many: transformers' models ignore unknown keywords."""
    if "adapter_names" in keywords:
        raise AdapterError(
            "adapter_names goes to the whole model, which vera.Adapters holds"
            " (for a part: with adapters.use(names))"
        )


def _keep_4bit_unpacked(model: nn.Module) -> None:
    """On processors with avx512_bf16, bitsandbytes repacks 4-bit weights in an
    evaluation, and no gradient passes through them any more, without an error. Switched
    off here. Where it has happened the weights are unpacked; their scales stay as they
    were rounded, to bfloat16: a fresh copy has the base model's own."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks to save, in place


@contextlib.contextmanager
def unmerged_for_block(model: nn.Module, adapted: Adaptation) -> Iterator[None]:
    """Takes the merge of a method of peft back for a while: merged, some classes
    (LNTuning, DEFT) keep the adapter in other tensors."""
    merged = adapted.method.kind == "peft" and bool(adapted.unmerged)
    if merged:
        adapted.method.unmerge(model)
    try:
        yield
    finally:
        if merged:
            adapted.method.merge(model)


def frozen_extra(model: nn.Module) -> dict[str, Tensor]:
    """What a method added and does not train, such as VeRA's A and B: parameters and
    buffers by name."""
    adapted = adaptation(model)
    if adapted is None:
        return {}
    plain = plain_names(model)
    extra: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_base = plain[name] in adapted.base_names
        if not is_base and name not in adapted.trained:
            extra[name] = tensor
    return extra


def trained_in_place(model: nn.Module) -> list[str]:
    """The names of the base model's own parameters that train: the head's, and those
    that a method unfreezes. Empty for a base model."""
    adapted = adaptation(model)
    if adapted is None:
        return []
    plain = plain_names(model)
    return [
        plain[name]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and plain[name] in adapted.base_names
    ]


def disable(model: nn.Module, disabled: bool = True) -> None:
    """Switches a model's adapter off, or on again.

    Off, the model is the base model, and a merge is taken back. Values that were
    trained in place stay.

    Args:
        model: An adapted model. Nothing happens to a base model.
        disabled: Whether it is switched off.
    """
    if adapted := adaptation(model):
        adapted.method.disable(model, disabled)


def plain_names(model: nn.Module) -> dict[str, str]:
    """The plain name of every parameter and buffer: without the modules between the
    base model's own, such as "...query.weight" and "...query.b"."""
    between = set()
    for path, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            between |= {f"{path}.base", f"{path}.changes", f"{path}.changes.{WHOLE}"}
        if "base_layer" in module._modules:  # a layer of peft's
            between.add(f"{path}.base_layer")

    @cache
    def plain(name: str) -> str:
        above, _, last = name.rpartition(".")
        before = plain(above) if above else ""
        return before if name in between else f"{before}.{last}".lstrip(".")

    return {
        name: plain(name)
        for name, _ in [*model.named_parameters(), *model.named_buffers()]
    }


def hook_keys(model: nn.Module) -> set[int]:
    """The keys of all forward hooks, of one count: unlike handles, they survive a
    copy."""
    keys: set[int] = set()
    for module in model.modules():
        keys |= {*module._forward_hooks, *module._forward_pre_hooks}
    return keys


def remove_hooks(model: nn.Module, keys: set[int]) -> None:
    """Takes the hooks of these keys out."""
    for module in model.modules():
        tables: Any = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
        for table in tables:
            for key in keys & table.keys():
                del table[key]
