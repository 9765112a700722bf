"""An adapted model: what it remembers, and how it becomes one and the base model again."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.layers import AdaptedLinear, remove_hooks
from vera.sites import WHOLE, head_parameters


@dataclass(frozen=True)
class Adaptation:
    """What an adapted model remembers: the method; of the base model the names of its parameters and buffers,
    of those of its head, and of those that were trainable; and the names of what the method trains, head
    apart."""

    method: Any  # a contract.Method
    base_names: frozenset[str]
    head: frozenset[str]
    trainable: frozenset[str]
    trained: frozenset[str]

    def base_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's parameters by the base model's names."""
        plain = plain_names(model)
        return {plain[name]: p for name, p in model.named_parameters()}

    def left_alone(self, model: nn.Module) -> set[str]:
        """The names of the base weights that are neither the head's nor trained in place."""
        plain = plain_names(model)
        return set(self.base_names) - self.head - {plain[name] for name in self.trained}


def adaptation(model: nn.Module) -> Adaptation | None:
    """How a model is adapted; None for a base model."""
    return cast("Adaptation | None", getattr(model, "_adaptation", None))


def adapt_with(model: nn.Module, method: Any) -> None:
    """See `Method.adapt`."""
    if adaptation(model):
        raise AdapterError(
            "this model is adapted already: start from a fresh copy of the base model, or unload it"
        )
    if any("base_layer" in m._modules for m in model.modules()):
        raise AdapterError("this model carries an adapter of peft's: take it out first (peft_model.unload())")
    # What the base model is, to be remembered, and to be put back where the method refuses half way.
    names = frozenset(name for name, _ in [*model.named_parameters(), *model.named_buffers()])
    head = frozenset(head_parameters(model))
    trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    children = {module: dict(module._modules) for module in model.modules()}
    hooks = [(hooks, dict(hooks)) for m in children for hooks in (m._forward_hooks, m._forward_pre_hooks)]
    weights = [(m, n, p, p.data) for m in children for n, p in m._parameters.items() if p is not None]
    model.requires_grad_(False)
    try:
        method.install(model)
    except BaseException:
        for module, before in children.items():
            module._modules.clear()
            module._modules.update(before)
        for now, then in hooks:
            now.clear()
            now.update(then)
        # A method of peft may have put others in their place
        for module, name, parameter, data in weights:
            module._parameters[name] = parameter
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        raise
    for module in model.modules():
        if module not in children:
            module.training = model.training
    _keep_4bit_unpacked(model)
    for parameter in head_parameters(model).values():
        parameter.requires_grad_(True)
    trained = (
        frozenset(n for n, p in model.named_parameters() if p.requires_grad) - head_parameters(model).keys()
    )
    # A plain attribute: it is no part of the state dict, and is copied with the model.
    model._adaptation = Adaptation(method, names, head, trainable, trained)  # type: ignore[assignment]
    model.register_forward_pre_hook(_one_adapter, with_kwargs=True)


def unload(model: nn.Module, merge: bool = False) -> None:
    """Makes an adapted model the plain base model again, in place; with `merge`, the adapter stays in its
    weights.

    What was trainable before is so again. A merged model then saves as any model of its library does
    (`model.save_pretrained(folder)`).
    Raises AdapterError where the adapter cannot be merged.
    """
    refuse_many(model)
    adapted = adaptation(model)
    if adapted is None:
        return
    if merge:
        adapted.method.merge(model)
        adapted.method.forget_unmerged(model)
    adapted.method.remove(model)
    remove_hooks(model, _one_adapter)
    del model._adaptation
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapted.trainable)


def refuse_many(model: nn.Module) -> None:
    """Raises AdapterError for a model that vera.Adapters holds: what it carries changes from call to call."""
    if "_adapters" in model.__dict__:
        raise AdapterError("this model holds many adapters (vera.Adapters): their unload() comes first")


def _one_adapter(model: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
    """A forward pre-hook. transformers' models swallow keywords that they do not know: a choice among several
    adapters, as peft takes it, would be ignored in silence."""
    if "adapter_names" in keywords:
        raise AdapterError(
            "this model carries one adapter: adapter_names chooses among several (vera.Adapters holds them)"
        )


def _keep_4bit_unpacked(model: nn.Module) -> None:
    """On processors with avx512_bf16, bitsandbytes packs 4-bit weights anew in an evaluation, and no gradient
    passes through them from then on, without a word. Switched off here, and undone where it has happened."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks to save, in place


def frozen_extra(model: nn.Module) -> dict[str, Tensor]:
    """What a method added and does not train, such as VeRA's A and B: parameters and buffers by name."""
    adapted = adaptation(model)
    if adapted is None:
        return {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = plain_names(model)
    return {
        n: t for n, t in tensors.items() if n not in adapted.trained and plain[n] not in adapted.base_names
    }


def disable(model: nn.Module, disabled: bool = True) -> None:
    """Switches the adapter off (the base model answers; a merge is taken back) or on again. Values trained in
    place stay."""
    adapted = adaptation(model)
    if adapted is not None:
        adapted.method.disable(model, disabled)


def plain_names(model: nn.Module) -> dict[str, str]:
    """Every parameter's and buffer's name in the base model's own words, with what a method added behind:
    "...query.b"."""
    ours = {path for path, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    pefts = {path for path, m in model.named_modules() if "base_layer" in m._modules}
    names = {}
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        parts = name.split(".")
        inserted = set()
        for i in range(1, len(parts)):
            path = ".".join(parts[:i])
            if (path in ours and parts[i] in ("base", "changes")) or (
                path in pefts and parts[i] == "base_layer"
            ):
                inserted.add(i)
                if parts[i : i + 2] == ["changes", WHOLE]:
                    inserted.add(i + 1)
        names[name] = ".".join(part for i, part in enumerate(parts) if i not in inserted)
    return names
