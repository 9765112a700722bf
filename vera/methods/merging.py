"""Whether an adapter can be folded into the weights, asked before the first of them
changes."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError, first_line
from vera.sites import is_linear, layer_widths

#: How far two results in float64 may lie apart, relative to the change of the output;
#: with peft's layers, relative to the output itself. Some of these (C3A, DEFT) compute
#: in float32 all the same and are off by 1e-7, and a float32 weight rounds below that.
MERGE_TOLERANCE = 1e-5
#: How far rounding in float64 may move them apart, relative to the output.
FLOAT64_TOLERANCE = 1e-12


def check_mergeable(model: nn.Module, layers: Iterable[tuple[nn.Module, bool]]) -> None:
    """Raises AdapterError unless a change can be folded into the weight of each of
    these layers of a model.

    layers: each with whether its adapter is switched on."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    for layer, enabled in layers:
        if not enabled:
            raise AdapterError(
                "this adapter is switched off: vera.disable(model, False) comes first"
            )
        if not layer.weight.is_floating_point():  # type: ignore[operator]
            raise AdapterError(
                "a quantised base cannot be merged into: load it unquantised"
            )
        names_of_weight = names[id(layer.weight)]
        if len(names_of_weight) > 1:
            raise AdapterError(
                f"an adapted layer shares its weight ({' and '.join(names_of_weight)}):"
                " not merged"
            )


@torch.no_grad()
def try_merges(owner: str, layers: Iterable[Any]) -> None:
    """Merges a copy of each layer in float64, and compares its outputs for random inputs
    before and after.

    Args:
        owner: What the error message calls the method.
        layers: Linear layers and norms of ours (AdaptedLinear) or peft's; others are
            left out.

    Raises:
        AdapterError: A layer cannot be merged, or its outputs are different then.
    """
    for layer in layers:
        trial = in_float64(layer)
        is_ours = hasattr(trial, "changes")
        base = trial.base if is_ours else trial.base_layer
        if is_linear(base):
            width, _ = layer_widths(base)
        elif "norm" in type(base).__name__.lower():
            width = base.weight.shape[-1]
        else:
            continue
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, width, generator=generator).to(base.weight)
        try:
            before = trial(x)
            # What MERGE_TOLERANCE is relative to: the output, or the change of it
            reference = before
            if is_ours:
                reference = before - base(x)
            trial.merge()
            distance = float((trial(x) - before).abs().max())
        except Exception as error:  # a layer of somebody else's may raise anything
            raise AdapterError(
                f"{owner} cannot be merged: {first_line(error)}"
            ) from None
        largest = float(reference.abs().max())
        rounding = FLOAT64_TOLERANCE * float(before.abs().max())
        if distance > MERGE_TOLERANCE * largest + rounding:
            reason = "its outputs are different then"
            if is_ours:
                reason = "its forward is not x @ weight().T"
            raise AdapterError(
                f"{owner} cannot be merged: {reason} (off by {distance:.2g}, of {largest:.2g})"
            )


def in_float64(module: nn.Module) -> Any:
    """A copy of a module in float64, in evaluation mode.

    Tensors that are neither parameters nor buffers (a pair in a tuple) are cast too, and
    so are dtypes that the module keeps as attributes. The copy has no `group`, and so
    computes without other layers."""
    # deepcopy's memo: for the id of an object, what stands in for its copy
    replacements: dict[int, object] = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        replacements[id(dtype)] = torch.float64
    group = getattr(module, "group", None)
    if group is not None:
        replacements[id(group)] = None
    copied = copy.deepcopy(module, replacements)
    for tensor in _tensors(copied, set()):
        if tensor.is_floating_point() or tensor.is_complex():
            # Apple's GPUs have no float64
            device = "cpu" if tensor.device.type == "mps" else tensor.device
            dtype = torch.promote_types(tensor.dtype, torch.float64)
            tensor.data = tensor.data.to(device, dtype)
    return copied.eval()


def _tensors(value: object, visited_ids: set[int]) -> Iterator[Tensor]:
    """Every tensor that a value contains: a module in its attributes, a dict, list or
    tuple in its elements. visited_ids: the ids of the values that were searched."""
    if id(value) in visited_ids:
        return
    visited_ids.add(id(value))
    if isinstance(value, Tensor):
        yield value
    children: Iterable[object] = ()
    if isinstance(value, nn.Module):
        children = list(vars(value).values())
    elif isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list | tuple):
        children = value
    for child in children:
        yield from _tensors(child, visited_ids)
