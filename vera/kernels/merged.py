"""Layers through their merged weights W = W0 + (b * B) (d * A), and the gradients of b
and d without one of W; and products with a frozen matrix, by the quickest kernel that
there is.

On a CPU, products of float32 are oneDNN's where torch takes MKL. One switch turns that
off everywhere: `torch.backends.mkldnn.enabled = False`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vera.sites import OutputSlices


@dataclass(frozen=True)
class KernelPlan:
    """How a group computes: the path, and whether its merged weights are kept for the
    backward pass."""

    path: str
    keep: bool = True


class Layer(Protocol):
    """What this package knows of a methods.layers.AdaptedLinear that VeRA has adapted:
    each of its `changes` has the b, d, A and B of one slice of the layer's outputs.

    It is a protocol, since the package `methods` imports this one."""

    base: Any
    changes: Any
    output_slices: OutputSlices
    enabled: bool
    merged: bool
    group: Any

    def weight(self) -> Tensor: ...

    def add(self, y: Tensor, updates: dict[str, Tensor]) -> Tensor: ...


#: How many inputs of `Merged.forward` come before the vectors.
FIRST_VECTOR_INDEX = 5
#: Merged weights that an earlier call computed, by layer, dtype, and whether that call
#: was in inference mode.
Weights = dict[tuple[Layer, torch.dtype, bool], Tensor]


@torch.no_grad()
def merge(
    layer: Layer, dtype: torch.dtype, weight: Tensor, vectors: Sequence[Tensor | None]
) -> Tensor:
    """Adds (b * B) (d * A) to a weight in each of the layer's slices.

    Args:
        layer: The layer.
        dtype: Of the result. The sum itself is computed in the adapter's precision.
        weight: The base weight, (outputs, inputs). It stays as it is.
        vectors: b and d of each change, as `vectors_of` returns them. None counts as
            ones.

    Returns:
        The merged weight, (outputs, inputs).
    """
    merged = weight.clone()
    for name, change, b, d in zip(
        layer.changes, layer.changes.values(), vectors[::2], vectors[1::2], strict=True
    ):
        scaled_a = change.A if d is None else d[:, None] * change.A
        delta = linear_no_grad(change.B, scaled_a.T)
        scale = torch.ones_like(delta[:, :1]) if b is None else b[:, None]
        # Adds scale * delta to these rows of the merged weight
        merged[layer.output_slices[name]].addcmul_(scale, delta)
    return merged.to(dtype)


def merged_weight(
    layer: Layer, dtype: torch.dtype, kept_weights: Weights | None = None
) -> Tensor:
    """The layer's merged weight, (outputs, inputs). It is taken from `kept_weights`, or
    put there, where these are given."""
    if kept_weights is None:
        return merge(layer, dtype, layer.weight(), vectors_of([layer]))
    # A tensor made in inference mode cannot be saved for a gradient
    key = (layer, dtype, torch.is_inference_mode_enabled())
    if key not in kept_weights:
        kept_weights[key] = merge(layer, dtype, layer.weight(), vectors_of([layer]))
    return kept_weights[key]


def vectors_of(layers: Sequence[Layer]) -> list[Tensor | None]:
    """b and d of each change of these layers, in order: [b, d, b, d, ...]. None stands
    for a vector that the method leaves out."""
    vectors = []
    for layer in layers:
        for change in layer.changes.values():
            vectors += [change.b, change.d]
    return vectors


def cast_bias(layer: Layer, dtype: torch.dtype) -> Tensor | None:
    """The base layer's bias in the dtype of the computation; None where it has none."""
    bias: Tensor | None = layer.base.bias
    return None if bias is None else bias.to(dtype)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context in which autocast is off on a type of device, such as "cuda". torch has no
    autocast for meta."""
    if device == "meta":
        return nullcontext()
    return torch.autocast(device, enabled=False)


class Merged(torch.autograd.Function):
    """y = x W^T + bias for each layer, and the gradients of x, b and d. W itself gets
    none."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: Sequence[Layer],
        merged: Sequence[Tensor],
        plan: KernelPlan,
        dtype: torch.dtype,
        *vectors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Computes the layers' outputs.

        Args:
            ctx: torch's.
            x: (..., inputs).
            layers: The layers that read x.
            merged: Their merged weights, (outputs, inputs) each.
            plan: How gradients are computed.
            dtype: Of the products.
            vectors: b and d of each change, None where there is none: they are inputs
                so that they get gradients.

        Returns:
            (..., outputs) for each layer.
        """
        ctx.layers = layers
        ctx.plan = plan
        ctx.dtype = dtype
        ctx.input_dtype = x.dtype
        x = x.to(dtype)
        weights: Sequence[Tensor] = []
        # x needs no gradient in the first block of a model with frozen embeddings
        if ctx.needs_input_grad[0]:
            weights = merged if plan.keep else [layer.weight() for layer in layers]
        ctx.save_for_backward(x, *vectors, *weights)
        ctx.set_materialize_grads(False)
        outputs = []
        for layer, weight in zip(layers, merged, strict=True):
            outputs.append(linear_no_grad(x, weight, cast_bias(layer, dtype)))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *output_gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs of `forward`, from those of its outputs, which
        are None where an output is not used."""
        x_needs_gradient = ctx.needs_input_grad[0]
        vector_needs_gradient = ctx.needs_input_grad[FIRST_VECTOR_INDEX:]
        vector_count = len(vector_needs_gradient)
        x, *saved = ctx.saved_tensors
        vectors = saved[:vector_count]
        weights = saved[vector_count:]
        vector_gradients: list[Tensor | None] = [None] * vector_count
        x_gradient: Tensor | None = None
        with without_autocast(x.device.type):
            products = _CommonProducts(x.reshape(-1, x.shape[-1]), ctx.plan, ctx.dtype)
            for layer_index, layer, b_indices in _layers_with_indices(ctx.layers):
                gradient = output_gradients[layer_index]
                if gradient is None:
                    continue
                gradient = gradient.reshape(-1, gradient.shape[-1])
                if x_needs_gradient:
                    weight = weights[layer_index]
                    if not ctx.plan.keep:
                        # `forward` saved the base weight: it is merged once more, with
                        # b and d of each change of this layer
                        own_vectors = vectors[b_indices.start : b_indices.stop]
                        weight = merge(layer, ctx.dtype, weight, own_vectors)
                    summand = linear_no_grad(gradient, weight.T)
                    if x_gradient is None:
                        x_gradient = summand
                    else:
                        x_gradient.add_(summand)
                for b_index, name in zip(b_indices, layer.changes, strict=True):
                    d_index = b_index + 1
                    b_needs_gradient = vector_needs_gradient[b_index]
                    d_needs_gradient = vector_needs_gradient[d_index]
                    if not b_needs_gradient and not d_needs_gradient:
                        continue
                    slice_gradient = gradient[:, layer.output_slices[name]]
                    common = products.for_change(layer.changes[name], slice_gradient)
                    b, d = vectors[b_index], vectors[d_index]
                    # With C = common, grad_b = C d and grad_d = C^T b. A vector that is
                    # None counts as ones, by which the product is a sum
                    if b_needs_gradient:
                        b_gradient = common.sum(1) if d is None else common @ d
                        vector_gradients[b_index] = b_gradient
                    if d_needs_gradient:
                        d_gradient = common.sum(0) if b is None else b @ common
                        vector_gradients[d_index] = d_gradient
        if x_gradient is not None:
            x_gradient = x_gradient.view(x.shape).to(ctx.input_dtype)
        # Nothing for layers, merged, plan and dtype
        return x_gradient, None, None, None, None, *vector_gradients


def _layers_with_indices(layers: Sequence[Layer]) -> Iterator[tuple[int, Layer, range]]:
    """Each layer with its index, and the indices that the b of each of its changes has
    among the vectors of all layers. The index of a change's d is one more."""
    start = 0
    for layer_index, layer in enumerate(layers):
        b_indices = range(start, start + 2 * len(layer.changes), 2)
        yield layer_index, layer, b_indices
        start = b_indices.stop


class _CommonProducts:
    """C = B * (gy^T x A^T) of each change: both gradients come from it, as grad_b = C d
    and grad_d = C^T b. x is (tokens, inputs)."""

    def __init__(self, x: Tensor, plan: KernelPlan, dtype: torch.dtype) -> None:
        self.x = x
        self.plan = plan
        self.dtype = dtype
        #: A x by the id of A's pair, which changes share.
        self.projected_inputs: dict[int, Tensor] = {}

    def for_change(self, change: Any, output_gradient: Tensor) -> Tensor:
        """C of one change, (outputs, rank). output_gradient: of the outputs that it
        changes, (tokens, outputs)."""
        if self.plan.path == "hybrid":
            projected = self._projected_input(change)
            # A sum over tokens would overflow in float16.
            sum_dtype = change.dtype if self.dtype == torch.float16 else self.dtype
            product = output_gradient.T.to(sum_dtype) @ projected.to(sum_dtype)
            common = product.to(change.dtype)
        else:  # materialised
            weight_gradient = (output_gradient.T @ self.x).to(change.dtype)
            common = linear_no_grad(weight_gradient, change.A)
        return common.mul_(change.B)

    def _projected_input(self, change: Any) -> Tensor:
        """A x of a change, (tokens, rank). Changes that share a pair share it."""
        pair_id = id(change.pair)
        if pair_id not in self.projected_inputs:
            weight = change.A.to(self.x.dtype)
            self.projected_inputs[pair_id] = linear_no_grad(self.x, weight)
        return self.projected_inputs[pair_id]


# --- products with a frozen matrix


#: Elements of an input from which oneDNN is worth its overhead.
MIN_ONEDNN_ELEMENTS = 2**14


class _FrozenLinear(torch.autograd.Function):
    """x W^T for a frozen W, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return linear_no_grad(x, weight)

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return frozen_linear(output_gradient, weight.T), None


def frozen_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear for a frozen weight.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs). It gets no gradient where oneDNN computes.

    Returns:
        x W^T, (..., outputs).
    """
    if onednn_computes(x, weight):
        return cast(Tensor, _FrozenLinear.apply(x, weight))  # type: ignore[no-untyped-call]
    return F.linear(x, weight)


def linear_no_grad(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear where no gradient is recorded, as in a torch.autograd.Function: oneDNN's
    operator has no backward pass.

    Args:
        x: (..., inputs).
        weight: (outputs, inputs).
        bias: (outputs,).

    Returns:
        x W^T + bias, (..., outputs).
    """
    if onednn_computes(x, weight):
        output = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return cast(Tensor, output)
    return F.linear(x, weight, bias)


def onednn_computes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes a product: float32 on a CPU, by the operator that
    torch.compile uses there.

    torch itself takes MKL, which was a quarter slower on an AMD processor. oneDNN has no
    fast kernel for a slice such as A[:, :inputs]: it took a thousand times as long. Under
    autocast the product is not to be in float32."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= MIN_ONEDNN_ELEMENTS
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not is_traced()
        and not torch.is_autocast_enabled("cpu")
    )


def is_traced() -> bool:
    """Whether torch.compile or a transform of torch.func records the operations, which
    must then be plain ones of torch."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
