"""LoRA: h = W0 x + (alpha / rank) B A x (Hu et al. 2022, equation 3), and LoRA-FA (Zhang et al. 2023), which
freezes A."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vera.methods.adapted import frozen_extra
from vera.methods.contract import Method
from vera.methods.layers import changes
from vera.methods.low_rank import LowRankChange, place, wrap_sites


class LoRAChange(LowRankChange):
    """One matrix's A (rank, in), Kaiming uniform with a = sqrt(5) as in loralib, and B (out, rank), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "LoRA") -> None:
        super().__init__(inputs, outputs, method.alpha / method.rank, method.dropout)
        at = place(base)
        self.A = nn.Parameter(torch.empty(method.rank, inputs, **at), requires_grad=not method.freeze_a)
        self.B = nn.Parameter(torch.zeros(outputs, method.rank, **at))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, ...]:
        return self.A, self.B


@dataclass(frozen=True)
class LoRA(Method, kind="lora"):
    """Trains a low-rank pair of matrices for each adapted matrix, and for each block of a fused one.

    alpha: the change is scaled by alpha / rank. dropout: on the input of the adapter. freeze_a: LoRA-FA, only
    B trains; the adapter file holds A too.
    """

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
        """Sum of rank * (in + out) over the adapted matrices; of rank * out where A is frozen."""
        inputs = 0 if self.freeze_a else 1
        return sum(self.rank * (change.outputs + inputs * change.inputs) for change in changes(model))
