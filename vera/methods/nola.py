"""NoLA: LoRA whose A and B are linear combinations of random matrices; the coefficients
alone train (Koohpayegani et al. 2024, arXiv 2310.02556).

    h = W0 x + (alpha / r) B A x, A = A0 + sum_i a_i A_i / sqrt(k), B = sum_j b_j B_j /
    sqrt(k)

After UCDvision/NOLA, gpt/src/model_nola.py: the A_i and B_j are uniform on (-1, 1), A0
is LoRA's start of A, frozen, and all coefficients start at zero. There each matrix
draws bases of its own from torch's generator, anew in each pass. Here all of them share
one draw from a seed, by leading slices as in VeRA: it is made once, the same
everywhere, and no file holds it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vera.methods.contract import Method
from vera.methods.layers import layer_changes
from vera.methods.lora import LowRankChange, Placement, placement_of, wrap_sites
from vera.projections import SCHEME, Matrix, fingerprint, unit_uniform

#: The `matrix_key` of A0, the A_i and the B_j. VeRA's shared pair has 0 and 1
#: (vera/projections.py).
MATRIX_KEYS = (2, 3, 4)


class Bases(nn.Module):
    """The frozen A0 (r, in), A (k, r, in) and B (k, r, out, each transposed), on (-1,
    1), which all matrices share. Not part of the state dict: the seed brings them
    back."""

    A0: Tensor
    A: Tensor
    B: Tensor

    def __init__(
        self, method: "NoLA", inputs: int, outputs: int, placement: Placement
    ) -> None:
        super().__init__()
        self.method = method
        self.inputs = inputs
        self.outputs = outputs
        k, r = method.bases, method.rank
        self.shapes = {"A0": (r, inputs), "A": (k, r, inputs), "B": (k, r, outputs)}
        if placement["device"].type == "meta":
            shapes = self.shapes.values()
            drawn = [torch.empty(shape, device="meta") for shape in shapes]
        else:
            drawn = [torch.from_numpy(matrix) for matrix in self.draw()]
        for (name, shape), tensor in zip(self.shapes.items(), drawn, strict=True):
            buffer = tensor.view(shape).to(**placement)
            self.register_buffer(name, buffer, persistent=False)

    def draw(self) -> list[Matrix]:
        """A0, all A_i and all B_j, each as one matrix, of `inputs`, `inputs` and `outputs`
        columns."""
        matrices = []
        for key, shape in zip(MATRIX_KEYS, self.shapes.values(), strict=True):
            rows = math.prod(shape[:-1])
            matrices.append(unit_uniform(self.method.basis_seed, key, rows, shape[-1]))
        return matrices


class NoLAChange(LowRankChange):
    """One matrix's coefficients a (k) of A and b (k) of B, and its slices of the shared
    bases."""

    def __init__(
        self, base: Any, inputs: int, outputs: int, bases: Bases, method: "NoLA"
    ) -> None:
        super().__init__(inputs, outputs, method.alpha / method.rank, method.dropout)
        # In a tuple, so that the bases have one parent
        self._shared = (bases,)
        placement = placement_of(base)
        self.a = nn.Parameter(torch.zeros(method.bases, **placement))
        self.b = nn.Parameter(torch.zeros(method.bases, **placement))

    def factors(self) -> tuple[Tensor, ...]:
        """A (r, in) and B (out, r)."""
        (bases,) = self._shared
        root = math.sqrt(len(self.a))
        # A0 is on (-1, 1). Divided by this root it is LoRA's start of A: Kaiming uniform
        # with a = sqrt(5)
        start = bases.A0[:, : self.inputs] / math.sqrt(self.inputs)
        bases_of_a = bases.A[..., : self.inputs]
        bases_of_b = bases.B[..., : self.outputs]
        change_of_a = torch.tensordot(self.a / root, bases_of_a, 1)
        return start + change_of_a, torch.tensordot(self.b / root, bases_of_b, 1).T


@dataclass(frozen=True)
class NoLA(Method, kind="nola"):
    """Trains the coefficients of random bases of a low-rank pair, for each adapted
    matrix.

    rank: of the pair. bases: k, of A and of B each. alpha: the change is scaled by
    alpha / rank. basis_seed: of the bases, apart from training's seed. dropout: on the
    input of the adapter."""

    rank: int
    bases: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    dropout: float = 0.0
    basis_seed: int = 0

    def install(self, model: nn.Module) -> None:
        wrap_sites(
            model, self, NoLAChange, ("bases", Bases), rank=self.rank, bases=self.bases
        )

    def count(self, model: nn.Module) -> int:
        """2 * bases for each adapted matrix."""
        return sum(2 * self.bases for _ in layer_changes(model))

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """What the bases depend on: the scheme, the seed and the widest shape; and their
        fingerprint."""
        bases = next(m for m in model.modules() if isinstance(m, Bases))
        return {
            "scheme": SCHEME,
            "seed": self.basis_seed,
            "inputs": bases.inputs,
            "outputs": bases.outputs,
            "fingerprint": fingerprint(*bases.draw()),
        }
