"""LoRA: h = W0 x + (alpha / rank) B A x (Hu et al. 2022, equation 3), and LoRA-FA (Zhang et al. 2023), which
freezes A."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.adapted import frozen_extra
from vera.methods.contract import Method
from vera.methods.layers import Change, adapter_dtype, changes, widest, wrap
from vera.methods.settings import check_rank
from vera.sites import find_sites


class LoRAChange(Change):
    """One matrix's A (rank, in), Kaiming uniform with a = sqrt(5) as in loralib, and B (out, rank), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "LoRA") -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        at: Any = {"device": base.weight.device, "dtype": adapter_dtype(base)}
        self.A = nn.Parameter(torch.empty(method.rank, inputs, **at), requires_grad=not method.freeze_a)
        self.B = nn.Parameter(torch.zeros(outputs, method.rank, **at))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = method.alpha / method.rank
        self.dropout = nn.Dropout(method.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(self.dropout(x), self.A), self.B)

    def weight(self) -> Tensor:
        return self.scale * (self.B @ self.A)


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
        targets = find_sites(model, self.sites)
        check_rank("rank", self.rank, max(widest(model, targets)))
        wrap(model, targets, lambda path, block, base, inputs, out: LoRAChange(base, inputs, out, self))

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        return {**self.adapter_parameters(model), **frozen_extra(model)}

    def count(self, model: nn.Module) -> int:
        """Sum of rank * (in + out) over the adapted matrices; of rank * out where A is frozen."""
        inputs = 0 if self.freeze_a else 1
        return sum(self.rank * (change.outputs + inputs * change.inputs) for change in changes(model))
