"""Tied-LoRA: h = W0 x + (alpha / r) v * (B (u * (A x))), with one pair A and B for all adapted matrices,
which trains, and vectors u and v of each (Renduchintala et al. 2023, arXiv 2311.09578; there "vBuA", all of
it trained).

Between LoRA, whose pairs are not shared, and VeRA, whose pair is not trained. A matrix that is narrower than
the pair takes its leading slice, as VeRA's do (the paper adapts matrices of one shape). The start is this
project's choice: A as LoRA's, B zero, u and v one, so that without u and v it is LoRA with one pair."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.contract import Method
from vera.methods.layers import Change, adapted_layers, adapter_dtype, changes, widest, wrap
from vera.methods.settings import check_rank
from vera.sites import find_sites


class TiedPair(nn.Module):
    """The shared A (rank, in), Kaiming uniform with a = sqrt(5), and B (out, rank), zeros; both train."""

    def __init__(self, rank: int, inputs: int, outputs: int, at: dict[str, Any]) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs, **at))
        self.B = nn.Parameter(torch.zeros(outputs, rank, **at))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


class TiedChange(Change):
    """One matrix's own u (rank) and v (out), and its slices A[:, :in] and B[:out] of the pair."""

    def __init__(self, base: Any, inputs: int, outputs: int, pair: TiedPair, method: "TiedLoRA") -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self._shared = (pair,)  # in a tuple, so that the pair has one parent
        at: Any = {"device": base.weight.device, "dtype": adapter_dtype(base)}
        self.u = nn.Parameter(torch.ones(method.rank, **at))
        self.v = nn.Parameter(torch.ones(outputs, **at))
        self.scale = method.alpha / method.rank
        self.dropout = nn.Dropout(method.dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        """This matrix's slices of A and B."""
        (pair,) = self._shared
        return pair.A[:, : self.inputs], pair.B[: self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.factors()
        return self.scale * (self.v * F.linear(self.u * F.linear(self.dropout(x), a), b))

    def weight(self) -> Tensor:
        a, b = self.factors()
        return self.scale * (self.v[:, None] * b @ (self.u[:, None] * a))


@dataclass(frozen=True)
class TiedLoRA(Method, kind="tied_lora"):
    """Trains one pair of low-rank matrices for all adapted matrices, and two vectors for each.

    alpha: the change is scaled by alpha / rank. dropout: on the input of the adapter.
    """

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    dropout: float = 0.0

    def install(self, model: nn.Module) -> None:
        targets = find_sites(model, self.sites)
        shape = widest(model, targets)
        check_rank("rank", self.rank, max(shape))
        first: Any = model.get_submodule(next(iter(targets)))
        at = {"device": first.weight.device, "dtype": adapter_dtype(first)}
        pair = TiedPair(self.rank, *shape, at)
        wrap(model, targets, lambda path, block, base, n, out: TiedChange(base, n, out, pair, self))
        next(adapted_layers(model)).add_module("tied", pair)  # leaves with that layer

    def count(self, model: nn.Module) -> int:
        """rank * (in + out) of the widest, once, and the sum of (rank + out) over the adapted matrices."""
        of_model = list(changes(model))
        pair = max(change.inputs for change in of_model) + max(change.outputs for change in of_model)
        return self.rank * pair + sum(self.rank + change.outputs for change in of_model)
