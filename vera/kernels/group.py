"""The adapted layers that read one input compute together, on the path that the cost
model chooses: by their factors, or through the merged weight W = W0 + (b * B) (d * A)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vera.base_weights import sampled_sum
from vera.errors import AdapterError
from vera.kernels.merged import (
    KernelPlan,
    Layer,
    Merged,
    Weights,
    cast_bias,
    frozen_linear,
    is_traced,
    linear_no_grad,
    merged_weight,
    onednn_computes,
    vectors_of,
    without_autocast,
)
from vera.sites import is_transposed, layer_widths


class _Call(NamedTuple):
    """A call of the module that a group computes in.

    Attributes:
        x: The module's input.
        stamp: Its `change_stamp` when the outputs were computed.
        outputs: The outputs that no layer has taken yet.
    """

    x: Tensor
    stamp: float
    outputs: dict[Layer, Tensor]


class Group:
    """The adapted layers that read the same input: they compute together, once for each
    call of their module.

    `begin` and `end` are hooks of that module (an attention). `begin` computes the
    outputs, and each layer takes its own. `end` drops those that no layer took: a layer
    that got another input (the values of a cross-attention) has computed alone.

    Attributes:
        layers: The layers.
        path: The setting `path` of VeRA.
        weights: The setting `weights` of VeRA.
        call: The call in progress; None between calls.
        kept_weights: The layers' merged weights within `unchanged`; None outside of it,
            where each call merges anew.
    """

    def __init__(self, layers: Sequence[Layer], path: str, weights: str) -> None:
        self.layers = list(layers)
        self.path = path
        self.weights = weights
        self.call: _Call | None = None
        self.kept_weights: Weights | None = None
        for layer in self.layers:
            layer.group = self

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model has outputs and kept weights of its own.
        return self.__dict__ | {"call": None, "kept_weights": None}

    def attach(self, reader: nn.Module) -> None:
        """Registers the group's hooks with `reader`, the module whose input the layers
        read."""
        reader.register_forward_pre_hook(self.begin, with_kwargs=True)
        reader.register_forward_hook(self.end, always_call=True)

    def begin(
        self,
        reader: nn.Module,
        arguments: tuple[object, ...],
        keywords: dict[str, object],
    ) -> None:
        """The module's forward pre-hook: computes the outputs of all layers that read its
        input, where these are two or more. One layer alone computes when it is called."""
        x = keywords.get("hidden_states", keywords.get("x"))  # transformers', timm's
        if arguments:
            x = arguments[0]
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
            return
        if is_traced():  # no trace can hold an output that was computed earlier
            return
        layers = []
        for layer in self.layers:
            inputs, _ = layer_widths(layer.base)
            reads_x = inputs == x.shape[-1]
            if layer.enabled and not layer.merged and reads_x:
                layers.append(layer)
        # An input on another device may be moved before a layer gets it
        if len(layers) > 1 and x.device == layers[0].base.weight.device:
            stamp = change_stamp(x)
            outputs = self.compute(layers, x)
            self.call = _Call(x, stamp, dict(zip(layers, outputs, strict=True)))

    def end(self, reader: nn.Module, arguments: object, result: object) -> None:
        """The module's forward hook: drops the outputs that no layer took."""
        self.call = None

    def output(self, layer: Layer, x: Tensor) -> Tensor:
        """A layer's output for x, (..., inputs) -> (..., outputs): what `begin` computed,
        if that was for this x with these values."""
        call = self.call
        if call is not None and layer in call.outputs:
            is_same_input = x is call.x and change_stamp(x) == call.stamp
            if is_same_input:
                return call.outputs.pop(layer)
        return self.compute([layer], x)[0]

    def reason_for_factors(self, layers: Sequence[Layer]) -> str | None:
        """Why these layers cannot be merged and so need the factor path; None where they
        can. Raises AdapterError where they cannot but `path` forces a merge."""
        for layer in layers:
            reason = _reason_against_merging(layer)
            if reason is None:
                continue
            if self.path not in ("auto", "factor"):
                raise AdapterError(
                    f"path={self.path} merges the weights, but {reason}: path=auto or path=factor"
                )
            return reason
        return None

    def compute(self, layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
        """The outputs of layers that read x, by the cheapest plan that they can take.

        Args:
            layers: Layers of the group.
            x: (..., inputs).

        Returns:
            (..., outputs) for each layer.
        """
        changes: list[Any] = []
        needs_gradients = x.requires_grad
        for layer in layers:
            changes += layer.changes.values()
        for change in changes:
            needs_gradients |= any(p.requires_grad for p in change.parameters())
        training = needs_gradients and torch.is_grad_enabled()
        autocast = _is_autocast(x)
        plan = self._plan(layers, changes, x, training, autocast)
        if plan.path == "factor":
            return _outputs_by_factors(layers, x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        kept_weights = self.kept_weights if plan.keep else None
        with without_autocast(device):
            merged = [merged_weight(layer, dtype, kept_weights) for layer in layers]
            if training:
                vectors = vectors_of(layers)
                outputs = Merged.apply(x, layers, merged, plan, dtype, *vectors)  # type: ignore[no-untyped-call]
                return list(outputs)
            x = x.to(dtype)
            results = []
            for layer, weight in zip(layers, merged, strict=True):
                results.append(linear_no_grad(x, weight, cast_bias(layer, dtype)))
            return results

    def _plan(
        self,
        layers: Sequence[Layer],
        changes: Sequence[Any],
        x: Tensor,
        training: bool,
        autocast: bool,
    ) -> KernelPlan:
        """The cheapest way of computing these layers' changes for x.

        changes: of all these layers together. training: whether gradients are
        computed. autocast: whether products are in autocast's dtype."""
        cannot_merge = self.reason_for_factors(layers) is not None
        # The factor path takes plain operations of torch, also for an empty input
        needs_factors = cannot_merge or not x.numel() or is_traced()
        first_change = changes[0]  # all have its inputs and its rank
        work = Workload(
            tokens=x.numel() // x.shape[-1] if x.numel() else 0,
            inputs=first_change.inputs,
            outputs=sum(change.outputs for change in changes),
            rank=first_change.pair.spec.rank,
            pairs=len({id(change.pair) for change in changes}),
            training=training,
            merge_slowdown=float32_slowdown(x.device, autocast),
        )
        path = "factor" if needs_factors else self.path
        return choose_plan(work, path, self.weights)


def change_stamp(x: Tensor) -> float:
    """A number that changes when a tensor is changed in place: its version, or a sample
    of its values for an inference tensor, which has no version."""
    return sampled_sum(x) if x.is_inference() else x._version


def _is_autocast(x: Tensor) -> bool:
    """Whether products of x are computed in autocast's dtype."""
    device = x.device.type
    # torch has no autocast for meta, and it leaves float64 as it is
    if device == "meta" or x.dtype == torch.float64:
        return False
    return torch.is_autocast_enabled(device)


def float32_slowdown(device: torch.device, autocast: bool) -> int:
    """How many times as long a product takes in float32 as in the dtype of the
    activations.

    On a GPU under autocast it is 8, by data sheets (an H100: 50 and 500 TFLOP/s, of
    which small products reach less), unless products of float32 are computed in TF32."""
    if not autocast or device.type != "cuda":
        return 1
    return 1 if torch.backends.cuda.matmul.allow_tf32 else 8


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """In this context each layer merges its weight once, and not in each call. The caller
    promises that no value of the model changes meanwhile. It is for micro-batches
    between two optimizer steps, and for an evaluation.

    It is a promise, since a check would have to wait for the device in every layer, and
    torch's version counter misses what a fused optimizer or `.data` writes."""
    groups = []
    for module in model.modules():
        group = getattr(module, "group", None)
        if isinstance(group, Group) and group.kept_weights is None:
            group.kept_weights = {}
            groups.append(group)
    try:
        yield
    finally:
        for group in groups:
            group.kept_weights = None


# --- the factor path, and the layers that need it


def _reason_against_merging(layer: Layer) -> str | None:
    """Why a layer cannot go through a merged weight; None where it can."""
    weight = layer.base.weight
    changes = list(layer.changes.values())
    if not weight.is_floating_point():
        return "the base is quantised"
    if weight.dtype != changes[0].dtype:
        dtype = str(weight.dtype).removeprefix("torch.")
        return f"small updates would round away in base weights of {dtype}"
    if any(change.sample_parameters is not None for change in changes):
        return "each sample has an adapter of its own"
    if any(map(_has_dropout, changes)):
        return "there is dropout on the adapter's input"
    return _reason_against_plain_linear(layer.base)


def _has_dropout(change: Any) -> bool:
    """Whether dropout acts on a change's input now."""
    return bool(change.training and change.dropout.p > 0)


def _reason_against_plain_linear(base: nn.Module) -> str | None:
    """Why x W^T + bias may not stand for a base layer's own forward pass; None where it
    may."""
    is_plain = type(base) is nn.Linear or is_transposed(base)
    if not is_plain or "forward" in base.__dict__:
        return (
            f"the base layer is a {type(base).__name__} with a forward pass of its own"
        )
    if base._forward_hooks or base._forward_pre_hooks:
        return "the base layer has hooks"
    if base._backward_hooks or base._backward_pre_hooks:
        return "the base layer has hooks"
    if any(p.requires_grad for p in base.parameters()):
        return "the base layer trains"
    return None


def _outputs_by_factors(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """The layers' outputs by plain autograd. Layers with the same A share A x, except
    under dropout, which drops other entries of x for each matrix."""
    projected_inputs: dict[int, Tensor] = {}  # A x, by the id of A's pair
    outputs = []
    for layer in layers:
        updates = {}
        for name, change in layer.changes.items():
            pair_id = id(change.pair)
            if _has_dropout(change):
                updates[name] = change(x.to(change.dtype))
                continue
            if pair_id not in projected_inputs:
                projected_inputs[pair_id] = change.project_down(x.to(change.dtype))
            updates[name] = change.project_up(projected_inputs[pair_id])
        outputs.append(layer.add(_base_output(layer, x), updates))
    return outputs


def _base_output(layer: Layer, x: Tensor) -> Tensor:
    """The base layer's output, in training from oneDNN's kernel where that computes the
    same. Without gradients torch's own layer computes: models that were served through
    oneDNN took 3 to 9% longer on an Intel processor."""
    base = layer.base
    if (
        torch.is_grad_enabled()
        and _reason_against_plain_linear(base) is None
        and onednn_computes(x, base.weight)
    ):
        y = frozen_linear(x, layer.weight())
        return y if base.bias is None else y + base.bias
    output: Tensor = base(x)
    return output


# --- the cost model: the cheapest plan by shapes alone (the table of
# vera/kernels/__init__.py)


@dataclass(frozen=True)
class Workload:
    """What one call of a group computes.

    Attributes:
        tokens: Rows of the input.
        inputs: Columns of the input.
        outputs: Columns of the output, all matrices of the group together.
        rank: Rank of the changes.
        pairs: How many different A the matrices have: A x is computed once for each.
        training: Whether gradients are computed, too.
        merge_slowdown: How many times the FLOPs of a merge count, since a merge computes
            in float32 whatever the dtype of the input is.
    """

    tokens: int
    inputs: int
    outputs: int
    rank: int
    pairs: int = 1
    training: bool = True
    merge_slowdown: int = 1


def added_flops(plan: KernelPlan, work: Workload) -> int:
    """FLOPs beyond those of the frozen layers: in training by the table of
    vera/kernels/__init__.py, without gradients those of the forward pass alone.

    Args:
        plan: How the group computes.
        work: What it computes.

    Returns:
        The number of FLOPs.
    """
    factors = 2 * work.tokens * work.rank * (work.outputs + work.inputs * work.pairs)
    if plan.path == "factor":
        return 2 * factors if work.training else factors
    weight_size = work.outputs * work.inputs
    merge = 2 * weight_size * work.rank * work.merge_slowdown
    if not work.training:
        return merge
    merges = merge if plan.keep else 2 * merge
    if plan.path == "hybrid":
        return merges + factors
    # G = gy^T x, and G A^T, which takes as much as a merge
    return merges + 2 * work.tokens * weight_size + merge


def choose_plan(
    work: Workload, path: str = "auto", weights: str = "auto"
) -> KernelPlan:
    """The cheapest plan by `added_flops`.

    Nothing but the arguments decides: a resumed run takes the same paths as a straight
    one, and its results have the same bits.

    Args:
        work: What the group computes.
        path: Forces a path, unless it is "auto".
        weights: "keep" keeps merged weights for the backward pass, "recompute" does
            not. "auto" keeps them where they take no more memory than the factor path
            would.

    Returns:
        The plan.
    """
    keep = weights == "keep"
    if weights == "auto":
        size_of_factor_path = work.tokens * (work.rank * work.pairs + work.outputs)
        keep = work.inputs * work.outputs <= size_of_factor_path
    # min takes the first of equals: a merged path passes over activations less often
    paths = ("hybrid", "materialised", "factor") if path == "auto" else (path,)
    plans = [KernelPlan(name, keep) for name in paths]
    return min(plans, key=lambda plan: added_flops(plan, work))
