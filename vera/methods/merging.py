"""Whether an adapter can be folded into the weights, asked before the first of them
changes."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError, first_line
from vera.sites import is_linear, size

#: How far two results in float64 may lie apart, relative to the change; of peft's
#: layers, to the output: some (C3A, DEFT) compute in float32 all the same and are off
#: by 1e-7; and a float32 weight rounds below that.
NEAR = 1e-5


def check_mergeable(model: nn.Module, layers: Iterable[tuple[nn.Module, bool]]) -> None:
    """Raises AdapterError unless a change can be folded into the weight of each of
    these layers of a model. With each layer: whether its adapter is switched on."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        names[id(p)].append(name)
    for layer, enabled in layers:
        if not enabled:
            raise AdapterError(
                "this adapter is switched off: vera.disable(model, False) comes first"
            )
        if not layer.weight.is_floating_point():  # type: ignore[operator]
            raise AdapterError(
                "a quantised base cannot be merged into: load it unquantised"
            )
        if len(shared := names[id(layer.weight)]) > 1:
            raise AdapterError(
                f"an adapted layer shares its weight ({' and '.join(shared)}): not merged"
            )


@torch.no_grad()
def try_merges(owner: str, layers: Iterable[Any]) -> None:
    """Raises AdapterError where a linear layer or norm of ours (AdaptedLinear) or
    peft's cannot be merged, or answers otherwise then: a copy of each in float64 is
    merged. owner: the method, for the refusal."""
    for trial in map(in_float64, layers):
        ours = hasattr(trial, "changes")
        base = trial.base if ours else trial.base_layer
        if not is_linear(base) and "norm" not in type(base).__name__.lower():
            continue
        width = size(base)[0] if is_linear(base) else base.weight.shape[-1]
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, width, generator=generator).to(base.weight)
        try:
            of_base, before = base(x) if ours else 0, trial(x)
            trial.merge()
            off, largest = (
                float(y.abs().max()) for y in (trial(x) - before, before - of_base)
            )
        except Exception as error:
            raise AdapterError(
                f"{owner} cannot be merged: {first_line(error)}"
            ) from None
        if off > NEAR * largest + 1e-12 * float(before.abs().max()):
            why = (
                "its forward is not x @ weight().T" if ours else "it answers otherwise"
            )
            raise AdapterError(
                f"{owner} cannot be merged: {why} (off by {off:.2g}, of {largest:.2g})"
            )


def in_float64(module: nn.Module) -> Any:
    """A copy of a module in float64, in evaluation mode, with tensors beside its own,
    such as a pair in a tuple, and dtypes that it remembers; without other layers that
    it computes with."""
    beside: dict[int, Any] = {
        id(d): torch.float64 for d in (torch.float16, torch.bfloat16, torch.float32)
    }
    if group := getattr(module, "group", None):
        beside[id(group)] = None
    copied = copy.deepcopy(module, beside)
    for tensor in _tensors(copied, set()):
        if tensor.is_floating_point() or tensor.is_complex():
            # Apple's GPUs have no float64
            device = "cpu" if tensor.device.type == "mps" else tensor.device
            tensor.data = tensor.data.to(
                device, torch.promote_types(tensor.dtype, torch.float64)
            )
    return copied.eval()


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors that a module, or what it refers to, has."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    parts = vars(thing) if isinstance(thing, nn.Module) else thing
    parts = list(parts.values()) if isinstance(parts, dict) else parts
    for part in parts if isinstance(parts, list | tuple) else ():
        yield from _tensors(part, seen)
