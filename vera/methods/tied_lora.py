"""Tied-LoRA: h = W0 x + (alpha / r) v * (B (u * (A x))), with one pair A and B for all
adapted matrices, which trains, and vectors u and v of each (Renduchintala et al. 2023,
arXiv 2311.09578; there "vBuA", all of it trained).

Between LoRA, whose pairs are not shared, and VeRA, whose pair is not trained. A matrix
that is narrower than the pair takes its leading slice, as VeRA's do (the paper adapts
matrices of one shape). The start is this project's choice: A as LoRA's, B zero, u and v
one, so that without u and v it is LoRA with one pair."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.contract import Method
from vera.methods.layers import layer_changes
from vera.methods.lora import LowRankChange, Placement, placement_of, wrap_sites


class TiedPair(nn.Module):
    """The shared A (rank, in), Kaiming uniform with a = sqrt(5), and B (out, rank),
    zeros; both train."""

    def __init__(
        self, method: "TiedLoRA", inputs: int, outputs: int, placement: Placement
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(method.rank, inputs, **placement))
        self.B = nn.Parameter(torch.zeros(outputs, method.rank, **placement))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


class TiedChange(LowRankChange):
    """One matrix's own u (rank) and v (out), and its slices A[:, :in] and B[:out] of
    the pair."""

    def __init__(
        self, base: Any, inputs: int, outputs: int, pair: TiedPair, method: "TiedLoRA"
    ) -> None:
        super().__init__(inputs, outputs, method.alpha / method.rank, method.dropout)
        # In a tuple, so that the pair has one parent
        self._shared = (pair,)
        placement = placement_of(base)
        self.u = nn.Parameter(torch.ones(method.rank, **placement))
        self.v = nn.Parameter(torch.ones(outputs, **placement))

    def factors(self) -> tuple[Tensor, Tensor]:
        (pair,) = self._shared
        return pair.A[:, : self.inputs], pair.B[: self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        shared_a, shared_b = self.factors()
        down = self.u * F.linear(self.dropout(x), shared_a)
        return self.scale * (self.v * F.linear(down, shared_b))

    def weight(self) -> Tensor:
        shared_a, shared_b = self.factors()
        scaled_b = self.v[:, None] * shared_b
        return self.scale * (scaled_b @ (self.u[:, None] * shared_a))


@dataclass(frozen=True)
class TiedLoRA(Method, kind="tied_lora"):
    """Trains one pair of low-rank matrices for all adapted matrices, and two vectors
    for each.

    alpha: the change is scaled by alpha / rank. dropout: on the input of the adapter.
    """

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    dropout: float = 0.0

    def install(self, model: nn.Module) -> None:
        wrap_sites(model, self, TiedChange, ("tied", TiedPair), rank=self.rank)

    def count(self, model: nn.Module) -> int:
        """rank * (in + out) of the widest matrices, once for the pair, and the sum of
        (rank + out) over all adapted matrices for the vectors."""
        adapted = list(layer_changes(model))
        inputs = max(change.inputs for change in adapted)
        outputs = max(change.outputs for change in adapted)
        pair = self.rank * (inputs + outputs)
        vectors = sum(self.rank + change.outputs for change in adapted)
        return pair + vectors
