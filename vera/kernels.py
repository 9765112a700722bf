"""VeRA's fast paths, in plain torch, and the cost model that chooses between them.

For T tokens x (T, n) and matrices of M outputs in all that read it, the change b * (B (d * (A x))) can be
computed

    factor        as it is written; A x is shared by the matrices that read x hybrid        through W = W0 +
    (b * B) (d * A), as if it were a plain layer; the gradients of b and d through A x materialised  through W
    likewise; the gradients through G = gy^T x, so that nothing of size T x rank ever exists

Both gradients come from one matrix C = B * (gy^T x A^T): grad_b = C d and grad_d = C^T b. Beyond the frozen
layers a training step costs, in FLOPs, and keeps for the backward pass, in elements:

    factor        4 T r (M + n)              T (r + M)
    hybrid        2 M n r + 2 T r (M + n)    T n + M n (W kept), or T n and 2 M n r more (W recomputed)
    materialised  4 M n r + 2 T M n          the same
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vera.errors import AdapterError
from vera.sites import WHOLE, is_transposed, size

#: A methods.base.AdaptedLinear whose changes are VeRA's. Those files import this one.
Layer = Any

PATHS = ("auto", "factor", "hybrid", "materialised")
WEIGHTS = ("auto", "keep", "recompute")
#: Elements of an input from which oneDNN is worth its overhead.
SMALLEST = 2**14


# --- the cost model


@dataclass(frozen=True)
class Plan:
    """How a group computes: the path, and whether its merged weights are kept for the backward pass."""

    path: str
    keep: bool = True


def flops(
    plan: Plan, tokens: int, inputs: int, outputs: int, rank: int, training: bool = True, pairs: int = 1
) -> int:
    """FLOPs beyond the frozen layers. outputs: of all matrices of the group; pairs: how many different A they
    have."""
    factor, merge = 2 * tokens * rank * (outputs + inputs * pairs), 2 * outputs * inputs * rank
    if not training:
        return factor if plan.path == "factor" else merge
    if plan.path == "factor":
        return 2 * factor
    gradients = factor if plan.path == "hybrid" else merge + 2 * tokens * outputs * inputs
    return merge * (1 if plan.keep else 2) + gradients


def choose(
    tokens: int,
    inputs: int,
    outputs: int,
    rank: int,
    training: bool = True,
    pairs: int = 1,
    path: str = "auto",
    weights: str = "auto",
) -> Plan:
    """The cheapest plan; `path` and `weights` force one.

    Merged weights are kept where they take no more memory than the factor path would. Nothing but the
    arguments decides: a resumed run takes the same paths as a straight one, and its results have the same
    bits."""
    fits = inputs * outputs <= tokens * (rank * pairs + outputs)
    keep = fits if weights == "auto" else weights == "keep"
    # Of equals, a merged path: it passes over activations less often.
    plans = [Plan(name, keep) for name in ("hybrid", "materialised", "factor") if path in ("auto", name)]
    return min(plans, key=lambda plan: flops(plan, tokens, inputs, outputs, rank, training, pairs))


# --- a group


class Group:
    """The adapted layers that read the same input. They compute together, once for each call of the module
    they are in.

    `begin` and `end` are hooks of that module (an attention): between the two, and only there, the outputs
    wait for the layers to take them. A layer that is then given another input (the values of a
    cross-attention) computes alone, and leaves the group."""

    def __init__(self, layers: Sequence[Layer], path: str = "auto", weights: str = "auto") -> None:
        self.layers, self.path, self.weights = list(layers), path, weights
        #: The input of the call, its version, and the outputs that no layer has taken yet.
        self.call: tuple[Tensor, float, dict[Layer, Tensor]] | None = None
        self.elsewhere: list[Layer] = []
        self.kept: WeakKeyDictionary[Layer, _Kept] = WeakKeyDictionary()
        for layer in self.layers:
            layer.group = self

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model computes for itself.
        return {"layers": self.layers, "path": self.path, "weights": self.weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "call": None, "elsewhere": [], "kept": WeakKeyDictionary()}

    def attach(self, reader: nn.Module) -> None:
        """Makes the module whose input the layers read compute the group."""
        reader.register_forward_pre_hook(self.begin, with_kwargs=True)
        reader.register_forward_hook(self.end, always_call=True)

    def begin(self, reader: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x = arguments[0] if arguments else keywords.get("hidden_states", keywords.get("x"))
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim() or _traced():
            return
        layers = [m for m in self.layers if m.enabled and not m.merged and size(m.base)[0] == x.shape[-1]]
        if len(layers) > 1 and x.device == layers[0].base.weight.device:
            self.call = (x, _mark(x), dict(zip(layers, self.compute(layers, x), strict=True)))

    def end(self, reader: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        for layer in self.elsewhere:
            self.layers.remove(layer)
            Group([layer], self.path, self.weights)
        self.call, self.elsewhere = None, []

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer's output for x, (..., in) -> (..., out)."""
        if self.call:
            read, mark, outputs = self.call
            if x is read and _mark(x) == mark and layer in outputs:
                return outputs.pop(layer)
            if layer in outputs:
                self.elsewhere.append(layer)
                del outputs[layer]
        return self.compute([layer], x)[0]

    def check(self, layers: Sequence[Layer]) -> str | None:
        """Why these layers need the factor path; None where they are free. AdapterError where another one is
        forced."""
        obstacle = next(filter(None, map(_obstacle, layers)), None)
        if obstacle and self.path not in ("auto", "factor"):
            raise AdapterError(
                f"path={self.path} merges the weights, but {obstacle}: path=auto or path=factor"
            )
        return obstacle

    def compute(self, layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
        """The outputs of layers that read x."""
        changes = [change for layer in layers for change in layer.changes.values()]
        trains = x.requires_grad or any(p.requires_grad for change in changes for p in change.parameters())
        training = trains and torch.is_grad_enabled()
        path = "factor" if self.check(layers) or not x.numel() or _traced() else self.path
        plan = choose(
            x.numel() // x.shape[-1] if x.numel() else 0,
            changes[0].inputs,
            sum(change.outputs for change in changes),
            changes[0].rank,
            training,
            len({id(change.pair) for change in changes}),
            path,
            self.weights,
        )
        if plan.path == "factor":
            return _factor(layers, x)
        device = x.device.type
        autocast = torch.is_autocast_enabled(device) and x.dtype != torch.float64
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        with torch.autocast(device, enabled=False):
            merged = [self._merged(layer, dtype, plan.keep) for layer in layers]
            if training:
                vectors = [vector for change in changes for vector in (change.b, change.d)]
                return list(_Merged.apply(x, layers, merged, plan, dtype, *vectors))  # type: ignore[no-untyped-call]
            x = x.to(dtype)
            return [product(x, w, _bias(layer, dtype)) for layer, w in zip(layers, merged, strict=True)]

    def _merged(self, layer: Layer, dtype: torch.dtype, keep: bool) -> Tensor:
        """The layer's merged weight; that of an earlier call as long as nothing that it was made from has
        changed."""
        if not keep:
            return _merge(layer, dtype, layer.weight(), _vectors(layer))
        base, stamp, vectors = _source(layer, dtype)
        kept = self.kept.get(layer)
        if kept is None or kept.stamp != stamp or not torch.equal(kept.vectors, vectors):
            kept = self.kept[layer] = _Kept(
                base, stamp, vectors, _merge(layer, dtype, layer.weight(), _vectors(layer))
            )
        return kept.weight


@dataclass(frozen=True)
class _Kept:
    """A merged weight and what it was made from: micro-batches between two optimizer steps make it once.

    b and d are compared by value, the frozen base by a sample of its values too: torch's version counter does
    not see what is written through `.data`. base holds on to the memory, whose address would else come again
    with other values."""

    base: Tensor
    stamp: tuple[Any, ...]
    vectors: Tensor
    weight: Tensor


def _source(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, tuple[Any, ...], Tensor]:
    base = layer.base.weight.detach()
    pairs = [
        _version(matrix) for change in layer.changes.values() for matrix in (change.pair.A, change.pair.B)
    ]
    stamp = (
        base.data_ptr(),
        _version(base),
        _sample(base),
        base.device,
        dtype,
        torch.is_inference_mode_enabled(),
        *pairs,
    )
    return base, stamp, torch.cat([vector.detach() for vector in _vectors(layer) if vector is not None])


def _vectors(layer: Layer) -> list[Tensor | None]:
    """b and d of each of the layer's changes."""
    return [vector for change in layer.changes.values() for vector in (change.b, change.d)]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> float:
    flat = tensor.detach().reshape(-1)
    return float(flat[:: max(1, len(flat) // 64)].double().sum())


def _mark(x: Tensor) -> float:
    """What tells that a tensor was changed in place: its version, or of an inference tensor, which has none,
    a sample."""
    return _sample(x) if x.is_inference() else x._version


def _traced() -> bool:
    """Whether torch.compile or a transform of torch.func follows along: both want plain operations."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _obstacle(layer: Layer) -> str | None:
    """Why a layer cannot go through a merged weight; None where it can."""
    weight, change = layer.base.weight, next(iter(layer.changes.values()))
    if not weight.is_floating_point():
        return "the base is quantised"
    if weight.dtype != change.dtype:
        return f"small updates would round away in base weights of {str(weight.dtype).removeprefix('torch.')}"
    if any(change.rows is not None for change in layer.changes.values()):
        return "each sample has an adapter of its own"
    if any(change.training and change.dropout.p > 0 for change in layer.changes.values()):
        return "there is dropout on the adapter's input"
    return _unusual(layer.base)


def _unusual(base: nn.Module) -> str | None:
    """Why x W^T + bias may not stand for a base layer's own forward pass; None where it may."""
    if not (type(base) is nn.Linear or is_transposed(base)) or "forward" in base.__dict__:
        return f"the base layer is a {type(base).__name__} with a forward pass of its own"
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return "the base layer has hooks"
    if any(p.requires_grad for p in base.parameters()):
        return "the base layer trains"
    return None


# --- the paths


def _factor(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """Plain autograd. A x is computed once for each A, but where dropout gives each matrix an input of its
    own."""
    downs: dict[int, Tensor] = {}
    outputs = []
    for layer in layers:
        updates = {}
        for name, change in layer.changes.items():
            if change.training and change.dropout.p > 0:
                updates[name] = change(x.to(change.dtype))
                continue
            if id(change.pair) not in downs:
                downs[id(change.pair)] = change.down(x.to(change.dtype))
            updates[name] = change.up(downs[id(change.pair)])
        outputs.append(layer.add(_base(layer, x), updates))
    return outputs


def _base(layer: Layer, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or _unusual(layer.base) or not _onednn(x, layer.base.weight):
        return cast(Tensor, layer.base(x))
    y = frozen_linear(x, layer.weight())
    return y if layer.base.bias is None else y + layer.base.bias


class _Merged(torch.autograd.Function):
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
        if ctx.needs_input_grad[0]:  # not so in the first block of a model with frozen embeddings
            weights = merged if plan.keep else [layer.weight() for layer in layers]
        ctx.save_for_backward(x, *vectors, *weights)
        ctx.set_materialize_grads(False)
        return tuple(product(x, w, _bias(layer, dtype)) for layer, w in zip(layers, merged, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gys: Tensor | None) -> tuple[Any, ...]:
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[5:]
        x, *saved = ctx.saved_tensors
        vectors, weights = saved[: len(needs)], saved[len(needs) :]
        grads: list[Tensor | None] = [None] * len(needs)
        flat = x.reshape(-1, x.shape[-1])
        gx: Tensor | None = None
        downs: dict[int, Tensor] = {}
        first = 0  # place of the layer's first vector: each of its changes has a b and a d
        with torch.autocast(x.device.type, enabled=False):
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
                        else _merge(layer, ctx.dtype, weights[i], vectors[own.start : own.stop])
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


@torch.no_grad()
def _merge(layer: Layer, dtype: torch.dtype, weight: Tensor, vectors: Sequence[Tensor | None]) -> Tensor:
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


def _bias(layer: Layer, dtype: torch.dtype) -> Tensor | None:
    return None if layer.base.bias is None else layer.base.bias.to(dtype)


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
    return _FrozenLinear.apply(x, weight) if _onednn(x, weight) else F.linear(x, weight)  # type: ignore[no-untyped-call]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear without autograd, by the quickest kernel there is."""
    if _onednn(x, weight):
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    return F.linear(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes a product: float32 on a CPU, by the operator that torch.compile uses there.

    torch itself takes MKL, which was a quarter slower on an AMD processor. Of a slice such as A[:, :in],
    oneDNN has no fast kernel: it took a thousand times as long."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() >= SMALLEST
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not _traced()
        and not torch.is_autocast_enabled("cpu")
    )
