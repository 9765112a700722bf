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
    widest,
    wrap,
)
from vera.sites import find_sites


class Placement(TypedDict):
    """Device and dtype of what a method adds to a layer, as torch's functions take
    them."""

    device: torch.device
    dtype: torch.dtype


def place(base: Any) -> Placement:
    """Where what a method adds to a layer belongs."""
    return {"device": base.weight.device, "dtype": adapter_dtype(base)}


class LowRankChange(Change):
    """The scaled product of some matrices, with dropout on the input. Subclasses:
    `factors`."""

    def __init__(self, inputs: int, outputs: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.inputs, self.outputs, self.scale = inputs, outputs, scale
        self.dropout = nn.Dropout(dropout)

    def factors(self) -> tuple[Tensor, ...]:
        """The matrices, that of the input first: (r, inputs), (r, r) and so on,
        (outputs, r)."""
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
        method: With `sites`.
        make: Called as `make(base, inputs, outputs, method)`; returns the Change of one
            matrix.
        shared: A name, and what makes the module that all changes share from (method,
            inputs, outputs, placement) of the widest matrices; `make` gets it before
            the method. It is a child of the first layer, so that it moves between
            devices with the model and leaves with the layer.
        ranks: By their names, to be checked by `check_rank`.
    """
    targets = find_sites(model, method.sites)
    shape = widest(model, targets)
    for name, rank in ranks.items():
        check_rank(name, rank, max(shape))
    common = []
    if shared:
        _, make_shared = shared
        first = model.get_submodule(next(iter(targets)))
        common.append(make_shared(method, *shape, place(first)))

    def make_change(
        path: str, part: str, base: nn.Module, inputs: int, outputs: int
    ) -> Change:
        return make(base, inputs, outputs, *common, method)

    wrap(model, targets, make_change)
    if shared:
        next(adapted_layers(model)).add_module(shared[0], common[0])


class LoRAChange(LowRankChange):
    """One matrix's A (rank, in), Kaiming uniform with a = sqrt(5) as in loralib, and B
    (out, rank), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "LoRA") -> None:
        super().__init__(inputs, outputs, method.alpha / method.rank, method.dropout)
        placement = place(base)
        empty = torch.empty(method.rank, inputs, **placement)
        self.A = nn.Parameter(empty, requires_grad=not method.freeze_a)
        self.B = nn.Parameter(torch.zeros(outputs, method.rank, **placement))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, ...]:
        return self.A, self.B

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None:
            return super().forward(x)
        factors = self.of_samples(len(x)).values()
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
        widths = 0
        for change in layer_changes(model):
            widths += change.outputs
            if not self.freeze_a:
                widths += change.inputs
        return self.rank * widths
