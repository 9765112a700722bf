"""The adapted layers that read one input compute together, on the path that the cost
model chooses: by their factors, or through the merged weight W = W0 + (b * B) (d * A).

On a CPU, products of float32 are oneDNN's where torch takes MKL. One switch turns that
off everywhere: `torch.backends.mkldnn.enabled = False`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vera.base_weights import sample
from vera.errors import AdapterError
from vera.kernels.cost import Plan, choose
from vera.sites import is_transposed, size

#: A methods.layers.AdaptedLinear whose changes are VeRA's. Not imported: its files
#: import this one.
Layer = Any
#: Elements of an input from which oneDNN is worth its overhead.
SMALLEST = 2**14


class Group:
    """The adapted layers that read the same input: they compute together, once for each
    call of their module.

    `begin` and `end` are hooks of that module (an attention). `begin` computes the
    outputs, the layers take them, and `end` drops what is left: that of a layer which
    got another input (the values of a cross-attention), and computed alone."""

    def __init__(self, layers: Sequence[Layer], path: str, weights: str) -> None:
        self.layers, self.path, self.weights = list(layers), path, weights
        #: The input of the call, its `mark`, and the outputs that no layer has taken
        #: yet.
        self.call: tuple[Tensor, float, dict[Layer, Tensor]] | None = None
        #: The layers' merged weights, within `unchanged`; else None, and each call
        #: merges.
        self.kept: dict[Any, Tensor] | None = None
        for layer in self.layers:
            layer.group = self

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model has outputs and kept weights of its own.
        return self.__dict__ | {"call": None, "kept": None}

    def attach(self, reader: nn.Module) -> None:
        """Makes the module whose input the layers read compute the group."""
        reader.register_forward_pre_hook(self.begin, with_kwargs=True)
        reader.register_forward_hook(self.end, always_call=True)

    def begin(
        self, reader: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        x = (
            arguments[0]
            if arguments
            else keywords.get("hidden_states", keywords.get("x"))
        )
        if (
            not isinstance(x, Tensor)
            or not x.is_floating_point()
            or not x.dim()
            or traced()
        ):
            return
        layers = [
            m
            for m in self.layers
            if m.enabled and not m.merged and size(m.base)[0] == x.shape[-1]
        ]
        if len(layers) > 1 and x.device == layers[0].base.weight.device:
            self.call = (
                x,
                mark(x),
                dict(zip(layers, self.compute(layers, x), strict=True)),
            )

    def end(self, reader: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        self.call = None

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer's output for x, (..., in) -> (..., out)."""
        if self.call:
            read, stamp, outputs = self.call
            if x is read and mark(x) == stamp and layer in outputs:
                return outputs.pop(layer)
        return self.compute([layer], x)[0]

    def check(self, layers: Sequence[Layer]) -> str | None:
        """Why these layers need the factor path; None where they do not. Raises
        AdapterError where `path` forces another one."""
        obstacle = next(filter(None, map(_obstacle, layers)), None)
        if obstacle and self.path not in ("auto", "factor"):
            raise AdapterError(
                f"path={self.path} merges the weights, but {obstacle}: path=auto or path=factor"
            )
        return obstacle

    def compute(self, layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
        """The outputs of layers that read x."""
        changes = [change for layer in layers for change in layer.changes.values()]
        trains = x.requires_grad or any(
            p.requires_grad for change in changes for p in change.parameters()
        )
        training = trains and torch.is_grad_enabled()
        device = x.device.type
        autocast = (
            device != "meta"
            and torch.is_autocast_enabled(device)
            and x.dtype != torch.float64
        )
        path = (
            "factor" if self.check(layers) or not x.numel() or traced() else self.path
        )
        plan = choose(
            x.numel() // x.shape[-1] if x.numel() else 0,
            changes[0].inputs,
            sum(change.outputs for change in changes),
            changes[0].pair.spec.rank,
            training,
            len({id(change.pair) for change in changes}),
            path,
            self.weights,
            slower_merge(x.device, autocast),
        )
        if plan.path == "factor":
            return _factor(layers, x)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        with without_autocast(device):
            merged = [
                merged_weight(layer, dtype, self.kept if plan.keep else None)
                for layer in layers
            ]
            if training:
                vectors = vectors_of(*layers)
                outputs = Merged.apply(x, layers, merged, plan, dtype, *vectors)  # type: ignore[no-untyped-call]
                return list(outputs)
            x = x.to(dtype)
            return [
                product(x, w, bias(layer, dtype))
                for layer, w in zip(layers, merged, strict=True)
            ]


def slower_merge(device: torch.device, autocast: bool) -> int:
    """How many times as long a product takes in float32 as in the dtype of the
    activations. On a GPU under autocast: 8, by data sheets (an H100: 50 and 500
    TFLOP/s, of which small products reach less)."""
    return (
        8
        if autocast
        and device.type == "cuda"
        and not torch.backends.cuda.matmul.allow_tf32
        else 1
    )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The caller's promise that no value of the model changes within: each layer then
    merges its weight once, and not in each call. For micro-batches between two
    optimizer steps, and for an evaluation.

    A promise, since to find out would be to wait for the device in every layer, and
    torch's version counter misses what a fused optimizer or `.data` writes."""
    layers = (getattr(module, "group", None) for module in model.modules())
    groups = [
        group for group in layers if isinstance(group, Group) and group.kept is None
    ]
    for group in groups:
        group.kept = {}
    try:
        yield
    finally:
        for group in groups:
            group.kept = None


def _obstacle(layer: Layer) -> str | None:
    """Why a layer cannot go through a merged weight; None where it can."""
    weight, change = layer.base.weight, next(iter(layer.changes.values()))
    if not weight.is_floating_point():
        return "the base is quantised"
    if weight.dtype != change.dtype:
        return f"small updates would round away in base weights of {str(weight.dtype).removeprefix('torch.')}"
    if any(change.rows is not None for change in layer.changes.values()):
        return "each sample has an adapter of its own"
    if any(map(_drops, layer.changes.values())):
        return "there is dropout on the adapter's input"
    return _unusual(layer.base)


def _drops(change: Any) -> bool:
    """Whether dropout is on."""
    return bool(change.training and change.dropout.p > 0)


def _unusual(base: nn.Module) -> str | None:
    """Why x W^T + bias may not stand for a base layer's own forward pass; None where it
    may."""
    if (
        not (type(base) is nn.Linear or is_transposed(base))
        or "forward" in base.__dict__
    ):
        return (
            f"the base layer is a {type(base).__name__} with a forward pass of its own"
        )
    if (
        base._forward_hooks
        or base._forward_pre_hooks
        or base._backward_hooks
        or base._backward_pre_hooks
    ):
        return "the base layer has hooks"
    if any(p.requires_grad for p in base.parameters()):
        return "the base layer trains"
    return None


def _factor(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """Plain autograd. A x is computed once for each A; with dropout, each matrix has an
    input of its own."""
    downs: dict[int, Tensor] = {}
    outputs = []
    for layer in layers:
        updates = {}
        for name, change in layer.changes.items():
            if _drops(change):
                updates[name] = change(x.to(change.dtype))
                continue
            if id(change.pair) not in downs:
                downs[id(change.pair)] = change.down(x.to(change.dtype))
            updates[name] = change.up(downs[id(change.pair)])
        outputs.append(layer.add(_base(layer, x), updates))
    return outputs


def _base(layer: Layer, x: Tensor) -> Tensor:
    """The base layer's output; by the faster kernel where that computes the same."""
    if (
        not torch.is_grad_enabled()
        or _unusual(layer.base)
        or not usable(x, layer.base.weight)
    ):
        return layer.base(x)
    y = frozen_linear(x, layer.weight())
    return y if layer.base.bias is None else y + layer.base.bias


# --- through the merged weight


class Merged(torch.autograd.Function):
    """y = x W^T + bias for each layer, and the gradients of x, b and d. W itself gets
    none."""

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
        # not in the first block of a model with frozen embeddings
        if ctx.needs_input_grad[0]:
            weights = merged if plan.keep else [layer.weight() for layer in layers]
        ctx.save_for_backward(x, *vectors, *weights)
        ctx.set_materialize_grads(False)
        return tuple(
            product(x, w, bias(layer, dtype))
            for layer, w in zip(layers, merged, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gys: Tensor | None) -> tuple[Any, ...]:
        """The gradients of the input and of each vector, from those of the outputs
        (None: not used)."""
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        x, *saved = ctx.saved_tensors
        vectors, weights = saved[: len(needs)], saved[len(needs) :]
        grads: list[Tensor | None] = [None] * len(needs)
        flat = x.reshape(-1, x.shape[-1])
        gx: Tensor | None = None
        downs: dict[int, Tensor] = {}
        # index of the layer's first vector: each of its changes has a b and a d
        first = 0
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
                        else merge(
                            layer, ctx.dtype, weights[i], vectors[own.start : own.stop]
                        )
                    )
                    gx = product(gy, w.T) if gx is None else gx.add_(product(gy, w.T))
                for at, (name, change) in zip(own, layer.changes.items(), strict=True):
                    if not (needs[at] or needs[at + 1]):
                        continue
                    b, d, rows = vectors[at], vectors[at + 1], gy[:, layer.blocks[name]]
                    if ctx.plan.path == "hybrid":
                        if id(change.pair) not in downs:
                            downs[id(change.pair)] = product(
                                flat, change.A.to(flat.dtype)
                            )
                        # Float16 would overflow
                        wide = change.dtype if ctx.dtype == torch.float16 else ctx.dtype
                        c = (rows.T.to(wide) @ downs[id(change.pair)].to(wide)).to(
                            change.dtype
                        )
                    else:
                        c = product((rows.T @ flat).to(change.dtype), change.A)
                    c.mul_(change.B)
                    if needs[at]:
                        grads[at] = c.sum(1) if d is None else c @ d
                    if needs[at + 1]:
                        grads[at + 1] = c.sum(0) if b is None else b @ c
        return (
            None if gx is None else gx.view(x.shape).to(ctx.x_dtype),
            None,
            None,
            None,
            None,
            *grads,
        )


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast off on a kind of device; torch knows none for meta."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


@torch.no_grad()
def merge(
    layer: Layer, dtype: torch.dtype, weight: Tensor, vectors: Sequence[Tensor | None]
) -> Tensor:
    """weight + (b * B) (d * A) in each of the layer's blocks, (out, in); computed in
    the adapter's precision."""
    merged = weight.clone()
    for i, (name, change) in enumerate(layer.changes.items()):
        b, d = vectors[2 * i : 2 * i + 2]
        delta = product(change.B, (change.A if d is None else d[:, None] * change.A).T)
        scale = torch.ones_like(delta[:, :1]) if b is None else b[:, None]
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
    """A number that changes when a tensor is changed in place: its version, or a sample
    of its values for an inference tensor, which has no version."""
    return sample(x) if x.is_inference() else x._version


def merged_weight(
    layer: Layer, dtype: torch.dtype, kept: dict[Any, Tensor] | None = None
) -> Tensor:
    """The layer's merged weight, (out, in); with `kept`, that of an earlier call."""
    # such a tensor cannot be saved for a gradient
    key = (layer, dtype, torch.is_inference_mode_enabled())
    kept = {} if kept is None else kept
    if key not in kept:
        kept[key] = merge(layer, dtype, layer.weight(), vectors_of(layer))
    return kept[key]


# --- products


class _FrozenLinear(torch.autograd.Function):
    """x W^T for a frozen W, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        return frozen_linear(gy, ctx.saved_tensors[0].T), None


def frozen_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear for a frozen weight, by the quickest kernel there is."""
    return _FrozenLinear.apply(x, weight) if usable(x, weight) else F.linear(x, weight)  # type: ignore[no-untyped-call]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear without autograd, by the quickest kernel there is."""
    if usable(x, weight):
        return cast(
            Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        )
    return F.linear(x, weight, bias)


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes a product: float32 on a CPU, by the operator that
    torch.compile uses there.

    torch itself takes MKL, which was a quarter slower on an AMD processor. Of a slice
    such as A[:, :in], oneDNN has no fast kernel: it took a thousand times as long."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= SMALLEST
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not traced()
        and not torch.is_autocast_enabled("cpu")
    )


def traced() -> bool:
    """Whether torch.compile or a transform of torch.func follows along: both want plain
    operations."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
