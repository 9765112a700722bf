"""LoRA: h = W0 x + (alpha / rank) B A x (Hu et al. 2022, equation 3), and LoRA-FA
(Zhang et al. 2023), which freezes A; and what low-rank methods share: a change that is
a product of matrices, and how one gets onto every matrix of the sites."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.adapted import frozen_extra
from vera.methods.contract import Method, check_rank
from vera.methods.layers import (
    Change,
    adapted_layers,
    adapter_dtype,
    layer_changes,
    widest_shape,
    wrap,
)
from vera.sites import find_sites


class Placement(TypedDict):
    """Device and dtype of what a method adds to a layer, as torch's functions take
    them."""

    device: torch.device
    dtype: torch.dtype


def placement_of(base: Any) -> Placement:
    """The placement of what a method adds to this base layer."""
    return {"device": base.weight.device, "dtype": adapter_dtype(base)}


class LowRankChange(Change):
    """The scaled product of some matrices, with dropout on the input. Subclasses define
    `factors`."""

    def __init__(self, inputs: int, outputs: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.inputs, self.outputs, self.scale = inputs, outputs, scale
        self.dropout = nn.Dropout(dropout)

    def factors(self) -> tuple[Tensor, ...]:
        """The matrices in the order in which x passes them: (r, inputs), any number of
        (r, r), and (outputs, r)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * reduce(F.linear, self.factors(), self.dropout(x))

    def weight(self) -> Tensor:
        return self.scale * reduce(torch.matmul, reversed(self.factors()))


def wrap_sites(
    model: nn.Module,
    method: Any,
    make: Callable[..., Change],
    shared: tuple[str, Callable[..., nn.Module]] | None = None,
    **ranks: int,
) -> None:
    """Puts a change onto each matrix that a method's sites name.

    Args:
        model: The model.
        method: The method, whose setting `sites` names the matrices.
        make: Called as `make(base, inputs, outputs, method)`; returns the Change of one
            matrix.
        shared: The name of a module that all changes share, and a function that makes
            it, called as `make_shared(method, inputs, outputs, placement)` with the
            widest shape. `make` gets the module before the method. The module is a
            child of the first layer, so that it moves between devices with the model
            and leaves with the layer.
        ranks: Settings by their names, which `check_rank` checks.
    """
    targets = find_sites(model, method.sites)
    shape = widest_shape(model, targets)
    for name, rank in ranks.items():
        check_rank(name, rank, max(shape))
    shared_modules: dict[str, nn.Module] = {}
    if shared:
        shared_name, make_shared = shared
        first_layer = model.get_submodule(next(iter(targets)))
        placement = placement_of(first_layer)
        shared_modules[shared_name] = make_shared(method, *shape, placement)

    def make_change(
        path: str, part: str, base: nn.Module, inputs: int, outputs: int
    ) -> Change:
        return make(base, inputs, outputs, *shared_modules.values(), method)

    wrap(model, targets, make_change)
    for shared_name, module in shared_modules.items():
        next(adapted_layers(model)).add_module(shared_name, module)


class LoRAChange(LowRankChange):
    """One matrix's A (rank, in), Kaiming uniform with a = sqrt(5) as in loralib, and B
    (out, rank), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "LoRA") -> None:
        super().__init__(inputs, outputs, method.alpha / method.rank, method.dropout)
        placement = placement_of(base)
        empty = torch.empty(method.rank, inputs, **placement)
        self.A = nn.Parameter(empty, requires_grad=not method.freeze_a)
        self.B = nn.Parameter(torch.zeros(outputs, method.rank, **placement))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, ...]:
        return self.A, self.B

    def forward(self, x: Tensor) -> Tensor:
        if self.sample_parameters is None:
            return super().forward(x)
        # A (samples, rank, inputs) and B (samples, outputs, rank), in this order
        factors = self.parameters_of_samples(len(x)).values()
        x = self.dropout(x)
        return self.scale * torch.einsum("s...i,sri,sor->s...o", x, *factors)


@dataclass(frozen=True)
class LoRA(Method, kind="lora"):
    """Trains a low-rank pair of matrices for each adapted matrix, and for each slice of
    a fused one.

    alpha: the change is scaled by alpha / rank. dropout: on the input of the adapter.
    freeze_a: LoRA-FA, only B trains; the adapter file holds A too."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    dropout: float = 0.0
    freeze_a: bool = False

    def install(self, model: nn.Module) -> None:
        wrap_sites(model, self, LoRAChange, rank=self.rank)

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        return {**self.adapter_parameters(model), **frozen_extra(model)}

    def count(self, model: nn.Module) -> int:
        """Sum of rank * (in + out) over the adapted matrices; of rank * out where A is
        frozen."""
        total_width = 0
        for change in layer_changes(model):
            total_width += change.outputs
            if not self.freeze_a:
                total_width += change.inputs
        return self.rank * total_width
