"""What low-rank methods share: a change that is a product of matrices, and how one gets onto every matrix of
the sites."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.methods.layers import Change, adapted_layers, adapter_dtype, widest, wrap
from vera.methods.settings import check_rank
from vera.sites import find_sites


def place(base: Any) -> dict[str, Any]:
    """Device and dtype of what a method adds to a layer, as torch's functions take them."""
    return {"device": base.weight.device, "dtype": adapter_dtype(base)}


class LowRankChange(Change):
    """The scaled product of some matrices, with dropout on the input. Subclasses: `factors`."""

    def __init__(self, inputs: int, outputs: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.inputs, self.outputs, self.scale = inputs, outputs, scale
        self.dropout = nn.Dropout(dropout)

    def factors(self) -> tuple[Tensor, ...]:
        """The matrices, that of the input first: (r, inputs), (r, r) and so on, (outputs, r)."""
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
    """Puts make(base, inputs, outputs, method) onto each matrix that method.sites names.

    shared: a name, and what makes the module that all changes share from (method, inputs, outputs, place) of
    the widest matrices; `make` gets it before the method. It is a child of the first layer, so that it moves
    between devices with the model and leaves with the layer. ranks: by their names, to be checked by
    `check_rank`."""
    targets = find_sites(model, method.sites)
    shape = widest(model, targets)
    for name, rank in ranks.items():
        check_rank(name, rank, max(shape))
    first = model.get_submodule(next(iter(targets)))
    common = [shared[1](method, *shape, place(first))] if shared else []
    wrap(model, targets, lambda path, block, base, *sizes: make(base, *sizes, *common, method))
    if shared:
        next(adapted_layers(model)).add_module(shared[0], common[0])
