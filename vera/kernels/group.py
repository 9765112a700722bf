"""The adapted layers that read one input compute together, on the path that the cost model chooses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.kernels.cost import choose
from vera.kernels.merged import Layer, Merged, bias, mark, merged_weight, vectors_of, without_autocast
from vera.kernels.onednn import frozen_linear, product, traced, usable
from vera.sites import is_transposed, size


class Group:
    """The adapted layers that read the same input: they compute together, once for each call of their module.

    `begin` and `end` are hooks of that module (an attention). `begin` computes the outputs, the layers take
    them, and `end` drops what is left. A layer that gets another input (the values of a cross-attention)
    computes alone, and leaves the group."""

    def __init__(self, layers: Sequence[Layer], path: str, weights: str) -> None:
        self.layers, self.path, self.weights = list(layers), path, weights
        #: The input of the call, its `mark`, and the outputs that no layer has taken yet.
        self.call: tuple[Tensor, float, dict[Layer, Tensor]] | None = None
        self.elsewhere: list[Layer] = []
        #: The layers' merged weights, within `unchanged`; else None, and each call merges.
        self.kept: dict[Any, Tensor] | None = None
        for layer in self.layers:
            layer.group = self

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model has outputs and kept weights of its own.
        return {"layers": self.layers, "path": self.path, "weights": self.weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "call": None, "elsewhere": [], "kept": None}

    def attach(self, reader: nn.Module) -> None:
        """Makes the module whose input the layers read compute the group."""
        reader.register_forward_pre_hook(self.begin, with_kwargs=True)
        reader.register_forward_hook(self.end, always_call=True)

    def begin(self, reader: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x = arguments[0] if arguments else keywords.get("hidden_states", keywords.get("x"))
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim() or traced():
            return
        layers = [m for m in self.layers if m.enabled and not m.merged and size(m.base)[0] == x.shape[-1]]
        if len(layers) > 1 and x.device == layers[0].base.weight.device:
            self.call = (x, mark(x), dict(zip(layers, self.compute(layers, x), strict=True)))

    def end(self, reader: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        for layer in self.elsewhere:
            self.layers.remove(layer)
            Group([layer], self.path, self.weights)
        self.call, self.elsewhere = None, []

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer's output for x, (..., in) -> (..., out)."""
        if self.call:
            read, stamp, outputs = self.call
            if x is read and mark(x) == stamp and layer in outputs:
                return outputs.pop(layer)
            if layer in outputs:
                self.elsewhere.append(layer)
                del outputs[layer]
        return self.compute([layer], x)[0]

    def check(self, layers: Sequence[Layer]) -> str | None:
        """Why these layers need the factor path; None where they do not. Raises AdapterError where `path`
        forces another one."""
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
        device = x.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64
        path = "factor" if self.check(layers) or not x.numel() or traced() else self.path
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
            merged = [merged_weight(layer, dtype, self.kept if plan.keep else None) for layer in layers]
            if training:
                return list(Merged.apply(x, layers, merged, plan, dtype, *vectors_of(*layers)))  # type: ignore[no-untyped-call]
            x = x.to(dtype)
            return [product(x, w, bias(layer, dtype)) for layer, w in zip(layers, merged, strict=True)]


def slower_merge(device: torch.device, autocast: bool) -> int:
    """How many times as long a product takes in float32 as in the dtype of the activations. On a GPU under
    autocast: 8, by data sheets (an H100: 50 and 500 TFLOP/s, of which small products reach less)."""
    return 8 if autocast and device.type == "cuda" and not torch.backends.cuda.matmul.allow_tf32 else 1


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The caller's promise that no value of the model changes within: each layer then merges its weight once,
    and not in each call. For micro-batches between two optimizer steps, and for an evaluation.

    A promise, since to find out would be to wait for the device in every layer, and torch's version counter
    misses what a fused optimizer or `.data` writes."""
    layers = (getattr(module, "group", None) for module in model.modules())
    groups = [group for group in layers if isinstance(group, Group) and group.kept is None]
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
    """Why x W^T + bias may not stand for a base layer's own forward pass; None where it may."""
    if not (type(base) is nn.Linear or is_transposed(base)) or "forward" in base.__dict__:
        return f"the base layer is a {type(base).__name__} with a forward pass of its own"
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return "the base layer has hooks"
    if any(p.requires_grad for p in base.parameters()):
        return "the base layer trains"
    return None


def _factor(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """Plain autograd. A x is computed once for each A; with dropout, each matrix has an input of its own."""
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
    if not torch.is_grad_enabled() or _unusual(layer.base) or not usable(x, layer.base.weight):
        return layer.base(x)
    y = frozen_linear(x, layer.weight())
    return y if layer.base.bias is None else y + layer.base.bias
