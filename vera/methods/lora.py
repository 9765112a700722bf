"""LoRA: h = W0 x + (alpha / rank) B A x (Hu et al. 2022, equation 3)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.base import AdaptedLinear, Method, adapted_layers, replace
from vera.sites import find_sites


class LoRALinear(AdaptedLinear):
    """One adapted matrix: its own A (rank, in), Kaiming uniform with a = sqrt(5) as in loralib, and B (out, rank), zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        at: Any = {"device": base.weight.device, "dtype": self.adapter_dtype}
        self.A = nn.Parameter(torch.empty(rank, base.in_features, **at))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, **at))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)

    def change(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(self.dropout(x), self.A), self.B)

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ self.A)


@dataclass(frozen=True)
class LoRA(Method, kind="lora"):
    """Trains a low-rank pair of matrices for each adapted matrix.

    alpha: the change is scaled by alpha / rank. dropout: on the input of the adapter.
    """

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    dropout: float = 0.0

    def install(self, model: nn.Module) -> None:
        for path, base in find_sites(model, self.sites).items():
            replace(model, path, LoRALinear(base, self.rank, self.alpha, self.dropout))

    def count(self, model: nn.Module) -> int:
        """Sum over the adapted matrices of rank * (in + out)."""
        return sum(self.rank * (m.base.in_features + m.base.out_features) for m in adapted_layers(model))
