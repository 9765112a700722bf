"""Whether an adapter can be folded into the weights, asked before the first of them changes."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError, first_line
from vera.methods.layers import AdaptedLinear
from vera.sites import is_linear, size

#: How far two results in float64 may lie apart, relative to the larger. A layer that computes in float32 all
#: the same (peft's C3A and DEFT) is off by some 1e-7; and a float32 weight rounds what is below it away.
NEAR = 1e-5


def check_mergeable(model: nn.Module, layers: Iterable[tuple[nn.Module, bool]]) -> None:
    """Raises AdapterError unless the model is adapted, and a change can be folded into the weight of each of
    these layers of it. With each layer: whether its adapter is switched on."""
    if getattr(model, "_adaptation", None) is None:
        raise AdapterError("this model carries no adapter: nothing to merge")
    names: dict[int, list[str]] = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        names[id(p)].append(name)
    for layer, enabled in layers:
        if not enabled:
            raise AdapterError("this adapter is switched off: vera.disable(model, False) comes first")
        if not layer.weight.is_floating_point():  # type: ignore[operator]
            raise AdapterError("a quantised base cannot be merged into: load it unquantised")
        if len(shared := names[id(layer.weight)]) > 1:
            raise AdapterError(f"an adapted layer shares its weight ({' and '.join(shared)}): not merged")


@torch.no_grad()
def check_changes(layers: Iterable[AdaptedLinear]) -> None:
    """Raises AdapterError where the `forward` of a Change is not x @ weight().T: a copy of it in float64 is
    asked for both, at a random x and at 0."""
    sites = [(layer, name, rows) for layer in layers for name, rows in layer.blocks.items()]
    copies = in_float64(layer.changes[name] for layer, name, _ in sites)
    for (layer, name, rows), trial in zip(sites, copies, strict=True):
        inputs, outputs, of = size(layer.base)[0], rows.stop - rows.start, type(trial).__name__
        x = random_rows(inputs, trial.dtype, next(trial.parameters()).device)
        try:
            weight, update, at_zero = trial.weight(), trial(x), trial(torch.zeros_like(x))
        except RuntimeError as error:
            raise AdapterError(f"{of} cannot be merged: it fails in float64 ({first_line(error)})") from None
        layer.require(name, "weight", weight, (outputs, inputs))
        layer.require(name, "forward", update, (*x.shape[:-1], outputs))
        if (shift := float(at_zero.abs().max())) > 0:
            why = f"at x = 0 it is {shift:.2g}"
        elif (off := float((update - x @ weight.T).abs().max())) > NEAR * (
            largest := float(update.abs().max())
        ):
            why = f"at a random x it is off by {off:.2g}, of {largest:.2g}"
        else:
            continue
        raise AdapterError(f"{of}.forward is not x @ weight().T, which a merge adds: {why}")


@torch.no_grad()
def check_layers(config_class: str, layers: Iterable[Any]) -> None:
    """Raises AdapterError where a layer of peft's cannot be merged, or answers otherwise then: a copy of each
    in float64 is merged, of linear layers and norms."""
    for trial in in_float64(layers):
        base = trial.base_layer
        if not is_linear(base) and "norm" not in type(base).__name__.lower():
            continue
        inputs = size(base)[0] if is_linear(base) else base.weight.shape[-1]
        x = random_rows(inputs, base.weight.dtype, base.weight.device)
        try:
            before = trial(x)
            trial.merge()
            off, largest = float((trial(x) - before).abs().max()), float(before.abs().max())
        except Exception as error:
            raise AdapterError(f"peft cannot merge {config_class}: {first_line(error)}") from None
        if off > NEAR * largest:
            raise AdapterError(f"peft cannot merge {config_class}: it is off by {off:.2g}, of {largest:.2g}")


def random_rows(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, 3, width), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, width, generator=generator).to(device, dtype)


def in_float64(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """A copy of each module in float64, in evaluation mode.

    Tensors beside its own, such as a pair in a tuple, are copied along; the next copy takes over those that
    it shares with the one before. A dtype that a module remembers becomes float64, too."""
    dtypes = {id(d): torch.float64 for d in (torch.float16, torch.bfloat16, torch.float32)}
    done: dict[int, Any] = {}
    for module in modules:
        done = {id(t): done[id(t)] if id(t) in done else _double(t) for t in _tensors(module, set())}
        yield copy.deepcopy(module, done | dtypes).eval()


def _tensors(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors that a module, or what it refers to, has."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    inside: Iterable[Any] = ()
    if isinstance(thing, nn.Module | dict):
        inside = (vars(thing) if isinstance(thing, nn.Module) else thing).values()
    elif isinstance(thing, list | tuple):
        inside = thing
    for part in inside:
        yield from _tensors(part, seen)


def _double(tensor: Tensor) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    device = "cpu" if tensor.device.type == "mps" else tensor.device  # Apple's GPUs have no float64
    double = tensor.detach().to(device, torch.promote_types(tensor.dtype, torch.float64), copy=True)
    return nn.Parameter(double, requires_grad=False) if isinstance(tensor, nn.Parameter) else double
