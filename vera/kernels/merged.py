"""Through the merged weight W = W0 + (b * B) (d * A): the weight, and gradients."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vera.base_weights import sample
from vera.kernels.cost import Plan
from vera.kernels.onednn import product
from vera.sites import WHOLE

#: A methods.layers.AdaptedLinear whose changes are VeRA's. Not imported: its files import this one.
Layer = Any


class Merged(torch.autograd.Function):
    """y = x W^T + bias for each layer, and the gradients of x, b and d. W itself gets none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: Sequence[Layer],
        merged: Sequence[Tensor],
        plan: Plan,
        dtype: torch.dtype,
        *vectors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.layers, ctx.plan, ctx.dtype, ctx.x_dtype = layers, plan, dtype, x.dtype
        x = x.to(dtype)
        weights: Sequence[Tensor] = []
        if ctx.needs_input_grad[0]:  # not in the first block of a model with frozen embeddings
            weights = merged if plan.keep else [layer.weight() for layer in layers]
        ctx.save_for_backward(x, *vectors, *weights)
        ctx.set_materialize_grads(False)
        return tuple(product(x, w, bias(layer, dtype)) for layer, w in zip(layers, merged, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gys: Tensor | None) -> tuple[Any, ...]:
        """The gradients of the input and of each vector, from those of the outputs (None: not used)."""
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        x, *saved = ctx.saved_tensors
        vectors, weights = saved[: len(needs)], saved[len(needs) :]
        grads: list[Tensor | None] = [None] * len(needs)
        flat = x.reshape(-1, x.shape[-1])
        gx: Tensor | None = None
        downs: dict[int, Tensor] = {}
        first = 0  # index of the layer's first vector: each of its changes has a b and a d
        with without_autocast(x.device.type):
            for i, (layer, gy) in enumerate(zip(ctx.layers, gys, strict=True)):
                own = range(first, first + 2 * len(layer.changes), 2)
                first = own.stop
                if gy is None:
                    continue
                gy = gy.reshape(-1, gy.shape[-1])
                if needs_x:
                    w = (
                        weights[i]
                        if ctx.plan.keep
                        else merge(layer, ctx.dtype, weights[i], vectors[own.start : own.stop])
                    )
                    gx = product(gy, w.T) if gx is None else gx.add_(product(gy, w.T))
                for at, (name, change) in zip(own, layer.changes.items(), strict=True):
                    if not (needs[at] or needs[at + 1]):
                        continue
                    b, d, rows = vectors[at], vectors[at + 1], gy[:, layer.blocks[name]]
                    if ctx.plan.path == "hybrid":
                        if id(change.pair) not in downs:
                            downs[id(change.pair)] = product(flat, change.A.to(flat.dtype))
                        # Float16 would overflow
                        wide = change.dtype if ctx.dtype == torch.float16 else ctx.dtype
                        c = (rows.T.to(wide) @ downs[id(change.pair)].to(wide)).to(change.dtype)
                    else:
                        c = product((rows.T @ flat).to(change.dtype), change.A)
                    c.mul_(change.B)
                    if needs[at]:
                        grads[at] = c.sum(1) if d is None else c @ d
                    if needs[at + 1]:
                        grads[at + 1] = c.sum(0) if b is None else b @ c
        return None if gx is None else gx.view(x.shape).to(ctx.x_dtype), None, None, None, None, *grads


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off on a kind of device; torch knows none for meta."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


@torch.no_grad()
def merge(layer: Layer, dtype: torch.dtype, weight: Tensor, vectors: Sequence[Tensor | None]) -> Tensor:
    """weight + (b * B) (d * A) in each of the layer's blocks, (out, in); computed in the adapter's
    precision."""
    whole = WHOLE in layer.changes
    merged = weight if whole else weight.clone()
    for i, (name, change) in enumerate(layer.changes.items()):
        b, d = vectors[2 * i : 2 * i + 2]
        delta = product(change.B, (change.A if d is None else d[:, None] * change.A).T)
        scale = torch.ones_like(delta[:, :1]) if b is None else b[:, None]
        if whole:
            merged = torch.addcmul(weight, scale, delta)
        else:
            merged[layer.blocks[name]].addcmul_(scale, delta)
    return merged.to(dtype)


def bias(layer: Layer, dtype: torch.dtype) -> Tensor | None:
    """A layer's bias in the dtype of the computation."""
    return None if layer.base.bias is None else layer.base.bias.to(dtype)


def vectors_of(*layers: Layer) -> list[Tensor | None]:
    """b and d of each change of these layers."""
    changes = [change for layer in layers for change in layer.changes.values()]
    return [vector for change in changes for vector in (change.b, change.d)]


def mark(x: Tensor) -> float:
    """A number that changes when a tensor is changed in place: its version, or a sample of its values for an
    inference tensor, which has no version."""
    return sample(x) if x.is_inference() else x._version


def merged_weight(layer: Layer, dtype: torch.dtype, kept: dict[Any, Tensor] | None = None) -> Tensor:
    """The layer's merged weight, (out, in); with `kept`, that of an earlier call."""
    key = (layer, dtype, torch.is_inference_mode_enabled())  # such a tensor cannot be saved for a gradient
    weight = None if kept is None else kept.get(key)
    if weight is None:
        weight = merge(layer, dtype, layer.weight(), vectors_of(layer))
        if kept is not None:
            kept[key] = weight
    return weight
