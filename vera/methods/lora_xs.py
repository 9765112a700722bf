"""LoRA-XS: h = W0 x + (alpha / r) B R A x, where only R (r, r) trains (Balazy et al.
2024, arXiv 2405.17604).

A and B are frozen, from the base weight's own singular vectors. The paper writes h = x
W + x A R B with A = U_r S_r and B = V_r^T, of W = U S V^T as (in, out). Of W0 as (out,
in) = U S V^T that is

    A = S_r V_r^T  (r, in)      B = U_r  (out, r)

as in MohammadrezaBanaei/LoRA-XS, utils/initialization_utils.py, which takes the SVD of
the transposed weight: a randomised one (scikit-learn's TruncatedSVD, commit dd41829),
or torch's (24efae6). Here it is exact. R starts from N(0, 1e-5^2), so the model starts
next to the base model, and not on it."""

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.adapted import frozen_extra
from vera.methods.contract import Method
from vera.methods.layers import base_weight, layer_changes, wrap
from vera.methods.lora import LowRankChange, placement_of
from vera.sites import find_sites

#: The grid that A and B are rounded to before they are hashed, relative to the largest
#: singular value: far above what processors differ by, and far below what would change
#: an adapter's effect.
GRID = 2.0**-20


def singular_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading singular vectors of a weight, computed in float64 on the CPU.

    The sign of a singular vector is arbitrary. Here the entry of each row of A that is
    largest in absolute value is positive.

    Args:
        weight: (outputs, inputs).
        rank: How many vectors.

    Returns:
        A (rank, inputs), which holds the singular values, and B (outputs, rank).
    """
    u, s, vh = torch.linalg.svd(
        weight.detach().to("cpu", torch.float64), full_matrices=False
    )
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    sign = vh.gather(1, vh.abs().argmax(1, keepdim=True)).sign()
    return s[:, None] * sign * vh, u * sign.T


def rounded_hash(matrix: Tensor, largest: float) -> str:
    """A hash (16 hex digits) of a float64 matrix, whose entries are rounded to multiples of
    GRID * largest. largest: what no entry exceeds."""
    steps = (matrix / (largest * GRID)).round().to(torch.int64).contiguous()
    return hashlib.sha256(steps.numpy().astype("<i8").data).hexdigest()[:16]


class XSChange(LowRankChange):
    """One matrix's R (r, r), which trains, and its frozen A (r, in) and B (out, r)."""

    A: Tensor
    B: Tensor

    def __init__(self, base: Any, weight: Tensor, method: "LoRAXS") -> None:
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, method.alpha / method.rank, method.dropout)
        #: The fingerprints of A and B; empty on the meta device.
        self.hashes = ("", "")
        if weight.is_meta:
            frozen_a = weight.new_empty(method.rank, inputs)
            frozen_b = weight.new_empty(outputs, method.rank)
        else:
            frozen_a, frozen_b = singular_factors(weight, method.rank)
            # The largest singular value; above 0 also for a weight of zeros
            largest = max(float(frozen_a.norm(dim=1).max()), 1e-300)
            self.hashes = rounded_hash(frozen_a, largest), rounded_hash(frozen_b, 1.0)
        placement = placement_of(base)
        self.register_buffer("A", frozen_a.to(**placement), persistent=False)
        self.register_buffer("B", frozen_b.to(**placement), persistent=False)
        start = torch.empty(method.rank, method.rank, **placement)
        self.R = nn.Parameter(start.normal_(std=method.init_std))

    def factors(self) -> tuple[Tensor, ...]:
        return self.A, self.R, self.B


@dataclass(frozen=True)
class LoRAXS(Method, kind="lora_xs"):
    """Trains an r x r matrix between the leading singular vectors of each adapted
    weight.

    alpha: the change is scaled by alpha / rank; 16 is that of the published code.
    init_std: of R. store: the adapter file holds A and B, too. Without it, it holds R
    and the fingerprints of A and B, and loads where the same base weights give the same
    A and B."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 16.0
    init_std: float = 1e-5
    dropout: float = 0.0
    store: bool = False

    hint: ClassVar[str] = (
        "Other base weights, or another SVD's: with store=true the file keeps A and B"
    )

    def install(self, model: nn.Module) -> None:
        targets = find_sites(model, self.sites)

        def make_change(
            path: str, part: str, base: Any, inputs: int, outputs: int
        ) -> XSChange:
            if not base.weight.is_floating_point():
                raise AdapterError(
                    "LoRA-XS needs whole weights: load the base model unquantised"
                )
            if self.rank > min(inputs, outputs):
                raise AdapterError(
                    f"rank {self.rank} is above that of {path}, {outputs} x {inputs}"
                )
            return XSChange(base, base_weight(base, targets[path][part]), self)

        wrap(model, targets, make_change)

    def count(self, model: nn.Module) -> int:
        """rank^2 for each adapted matrix."""
        return sum(self.rank**2 for _ in layer_changes(model))

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(self.adapter_parameters(model))
        if self.store:
            tensors |= frozen_extra(model)
        return tensors

    @property
    def reads_weights(self) -> bool:
        return not self.store

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """One fingerprint of all A and one of all B together; none if the file holds
        them."""
        if self.store:
            return {}
        hashes_of_a, hashes_of_b = "", ""
        for change in layer_changes(model):
            hash_of_a, hash_of_b = change.hashes
            hashes_of_a += hash_of_a
            hashes_of_b += hash_of_b
        return {
            "A": hashlib.sha256(hashes_of_a.encode()).hexdigest()[:16],
            "B": hashlib.sha256(hashes_of_b.encode()).hexdigest()[:16],
        }
