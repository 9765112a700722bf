"""Whether an adapter can be folded into the weights, asked before the first of them changes."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError, first_line
from vera.methods.layers import AdaptedLinear
from vera.sites import is_linear, size


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
    """Raises AdapterError where the `forward` of a Change is not x @ weight().T, in evaluation mode: it is
    asked for both, at a random x and at 0."""
    sites = [(layer, name, rows) for layer in layers for name, rows in layer.blocks.items()]
    for layer, name, rows in sites:
        change: Any = layer.changes[name]
        inputs, outputs, of = size(layer.base)[0], rows.stop - rows.start, type(change).__name__
        x = random_rows(inputs, change.dtype, next(change.parameters()).device)
        training = change.training
        weight, update, at_zero = change.eval().weight(), change(x), change(torch.zeros_like(x))
        change.train(training)
        layer.require(name, "weight", weight, (outputs, inputs))
        layer.require(name, "forward", update, (*x.shape[:-1], outputs))
        shift, difference = float(at_zero.abs().max()), off_by(update, x @ weight.T)
        if shift or difference:
            why = f"at x = 0 it is {shift:.2g}" if shift else f"at a random x it is {difference}"
            raise AdapterError(f"{of}.forward is not x @ weight().T, which a merge adds: {why}")


@torch.no_grad()
def check_layers(config_class: str, layers: Iterable[Any]) -> None:
    """Raises AdapterError where a layer of peft's cannot be merged, or answers otherwise then: a copy of each
    is merged, of linear layers and norms; in float32 at least."""
    for layer in layers:
        base = layer.base_layer
        if not is_linear(base) and "norm" not in type(base).__name__.lower():
            continue
        trial = copy.deepcopy(layer).eval()
        if base.weight.dtype in (torch.float16, torch.bfloat16):
            trial.float()
        inputs, weight = size(base)[0] if is_linear(base) else base.weight.shape[-1], trial.base_layer.weight
        x = random_rows(inputs, weight.dtype, weight.device)
        try:
            before = trial(x)
            trial.merge()
            difference = off_by(trial(x), before)
        except Exception as error:
            raise AdapterError(f"peft cannot merge {config_class}: {first_line(error)}") from None
        if difference:
            raise AdapterError(f"peft cannot merge {config_class}: it is {difference}")


def off_by(one: Tensor, other: Tensor) -> str:
    """How far two results of one computation lie apart, in words; "" where that is rounding: the root of the
    dtype's, relative to the largest value, 3.5e-4 in float32, and at least 1e-5 (peft's C3A and DEFT compute
    in float32 over float64, too)."""
    off, largest = float((one - other).abs().max()), float(one.abs().max())
    near = max(torch.finfo(one.dtype).eps ** 0.5, 1e-5)
    return "" if off <= near * largest else f"off by {off:.2g}, of {largest:.2g}"


def random_rows(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, 3, width), the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, width, generator=generator).to(device, dtype)
