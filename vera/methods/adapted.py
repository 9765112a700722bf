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
    """What an adapted model remembers. Names are the base model's, except in `trained`
    and `weights_before_merge`, which have the adapted model's."""

    method: Any  # a contract.Method, whose file imports this one
    #: The names of the base model's parameters and buffers.
    base_names: frozenset[str]
    #: Those of the head's parameters.
    head: frozenset[str]
    #: Those of the parameters that were trainable before the model was adapted.
    trainable: frozenset[str]
    #: The names of the parameters that the method trains, without the head's.
    trained: frozenset[str]
    #: The keys of the forward hooks that adapting added (`hook_keys`): the method's, and
    #: that of `refuse_adapter_names`.
    hooks: set[int]
    #: Copies of the weights that a merge changes; empty while the model is not merged.
    weights_before_merge: dict[str, Tensor] = field(default_factory=dict)

    def base_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters by the base model's names."""
        plain = plain_names(model)
        return {plain[name]: p for name, p in model.named_parameters()}

    def untouched_base_names(self, model: nn.Module) -> set[str]:
        """The names of the base weights that are neither the head's nor trained in
        place."""
        plain = plain_names(model)
        return set(self.base_names) - self.head - {plain[name] for name in self.trained}


def adaptation(model: nn.Module) -> Adaptation | None:
    """How a model is adapted; None for a base model."""
    return getattr(model, "_adaptation", None)


def adapt_with(model: nn.Module, method: Any) -> None:
    """Adapts a model by a method, in place, as `Method.adapt` describes it."""
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
    base_modules = set(model.modules())
    base_hooks = hook_keys(model)
    with _restored_on_error(model):
        model.requires_grad_(False)
        method.install(model)
    for module in model.modules():
        if module not in base_modules:
            module.training = model.training
    _keep_4bit_unpacked(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    # The head trains with every method, and so does not count as the method's
    for name, parameter in head_parameters(model).items():
        parameter.requires_grad_(True)
        trained.discard(name)
    model.register_forward_pre_hook(refuse_adapter_names, with_kwargs=True)
    added_hooks = hook_keys(model) - base_hooks
    # A plain attribute: it is no part of the state dict, and is copied with the model.
    model._adaptation = Adaptation(
        method, base_names, head, trainable, frozenset(trained), added_hooks
    )  # type: ignore[assignment]


@contextlib.contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """Puts the model back as it was if the block raises: a method may refuse a model after
    it has changed a part of it."""
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
            # The method may have given the parameter other memory
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
    refuse_many_adapters(model)
    if not (adapted := adaptation(model)):
        return
    if merge:
        adapted.method.merge(model)
        # Without the weights from before, `remove` cannot take the merge back
        adapted.weights_before_merge.clear()
    adapted.method.remove(model)
    remove_hooks(model, adapted.hooks)
    del model._adaptation
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapted.trainable)


def refuse_many_adapters(model: nn.Module) -> None:
    """Raises AdapterError for a model that vera.Adapters holds: its adapters change
    from call to call."""
    if "_adapters" in model.__dict__:
        raise AdapterError(
            "this model holds many adapters (vera.Adapters): their unload() comes first"
        )


def refuse_adapter_names(
    model: nn.Module, arguments: object, keywords: dict[str, object]
) -> None:
    """A forward pre-hook that raises AdapterError for the keyword adapter_names, since
    transformers' models ignore unknown keywords.

    It is a hook of a model that carries one adapter, and of the backbone of a model that
    carries many, since only the whole model takes adapter_names."""
    if "adapter_names" in keywords:
        raise AdapterError(
            "adapter_names goes to the whole model, which vera.Adapters holds"
            " (for a part: with adapters.use(names))"
        )


def _keep_4bit_unpacked(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights in an evaluation, as it does on
    processors with avx512_bf16: no gradient passes through repacked weights, without an
    error. Weights that were repacked before are unpacked. Their scales stay rounded to
    bfloat16: only a fresh copy of the model has the exact ones."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            state = getattr(module.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks to save, in place


@contextlib.contextmanager
def unmerged_for_block(model: nn.Module, adapted: Adaptation) -> Iterator[None]:
    """Undoes the merge of a method of peft for the block, since some of its classes
    (LNTuning, DEFT) move a merged adapter into other tensors. Other methods stay
    merged."""
    must_unmerge = adapted.method.kind == "peft" and bool(adapted.weights_before_merge)
    if must_unmerge:
        adapted.method.unmerge(model)
    try:
        yield
    finally:
        if must_unmerge:
            adapted.method.merge(model)


def frozen_extra(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers, by name, that a method added and does not train, such as
    VeRA's A and B."""
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
    """The plain name of every parameter and buffer of an adapted model, by its full name.

    A plain name leaves out the modules that a method put between the base model's own:
    "...query.base.weight" becomes "...query.weight", the name in the base model, and
    "...query.changes.whole.b" becomes "...query.b"."""
    inserted_paths = set()
    for path, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            inserted_paths |= {
                f"{path}.base",
                f"{path}.changes",
                f"{path}.changes.{WHOLE}",
            }
        if "base_layer" in module._modules:  # a layer of peft's
            inserted_paths.add(f"{path}.base_layer")

    @cache
    def plain(name: str) -> str:
        """The plain name of a module, a parameter or a buffer."""
        parent, _, last_part = name.rpartition(".")
        plain_parent = plain(parent) if parent else ""
        if name in inserted_paths:
            return plain_parent
        if not plain_parent:
            return last_part
        return f"{plain_parent}.{last_part}"

    return {
        name: plain(name)
        for name, _ in [*model.named_parameters(), *model.named_buffers()]
    }


def hook_keys(model: nn.Module) -> set[int]:
    """The keys of all forward hooks. torch numbers the hooks of all modules by one
    counter, and unlike the handles of hooks their keys survive a copy of the model."""
    keys: set[int] = set()
    for module in model.modules():
        keys |= {*module._forward_hooks, *module._forward_pre_hooks}
    return keys


def remove_hooks(model: nn.Module, keys: set[int]) -> None:
    """Takes the forward hooks with these keys out."""
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
