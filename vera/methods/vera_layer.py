"""VeRA's change of one matrix, b * (B (d * (A x))), and the pair A and B that many of
them share."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vera.kernels import frozen_linear
from vera.methods.layers import Change, adapter_dtype
from vera.projections import Matrix, ProjectionSpec, fingerprint


class Projections(nn.Module):
    """A frozen pair A (rank, in), B (out, rank): one storage for all matrices that
    share it.

    Not part of the state dict: the seed brings it back.
    """

    A: Tensor
    B: Tensor

    def __init__(
        self, spec: ProjectionSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.spec = spec
        if device.type == "meta":
            shapes = (spec.rank, spec.inputs), (spec.outputs, spec.rank)
            pair = [torch.empty(shape, device=device) for shape in shapes]
        else:
            pair = [torch.from_numpy(matrix) for matrix in spec.make()]
        for name, matrix in zip("AB", pair, strict=True):
            self.register_buffer(name, matrix.to(device, dtype), persistent=False)


class VeRAChange(Change):
    """One matrix's own d (rank) and b (out), and the leading slices A[:, :in] and
    B[:out] of its pair.

    d starts at d_init and b at zero, so that the model starts as the base model: dL/dd
    is 0 at first, dL/db is not. A vector that the method leaves out is None and counts
    as all ones."""

    b: Tensor | None
    d: Tensor | None

    def __init__(
        self,
        base: Any,
        inputs: int,
        outputs: int,
        projections: Projections,
        method: Any,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        # In a tuple, so that the pair has one parent and moves between devices once.
        self._shared = (projections,)
        device, dtype = base.weight.device, adapter_dtype(base)
        starts = {
            "d": torch.full((method.rank,), method.d_init, device=device, dtype=dtype),
            "b": torch.zeros(outputs, device=device, dtype=dtype),
        }
        for name, start in starts.items():
            vector = nn.Parameter(start) if name in method.vectors else None
            self.register_parameter(name, vector)
        self.dropout = nn.Dropout(method.dropout)

    @property
    def pair(self) -> Projections:
        """The frozen matrices, which changes share."""
        return self._shared[0]

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's name
        """(rank, inputs): the first columns of the shared matrix."""
        return self.pair.A[:, : self.inputs]

    @property
    def B(self) -> Tensor:  # noqa: N802
        """(outputs, rank): the first rows of the shared matrix."""
        return self.pair.B[: self.outputs]

    def forward(self, x: Tensor) -> Tensor:
        return self.project_up(self.project_down(self.dropout(x)))

    def project_down(self, x: Tensor) -> Tensor:
        """A x, (..., inputs) -> (..., rank): the same for every matrix of the pair that
        reads x."""
        return frozen_linear(x, self.A)

    def project_up(self, u: Tensor) -> Tensor:
        """b * (B (d * u)), (..., rank) -> (..., outputs)."""
        b, d = self.b, self.d
        if self.rows is not None:
            # (samples, length) beside (samples, ..., length)
            shape = len(u), *[1] * (u.dim() - 2), -1
            vectors = self.of_samples(len(u)).items()
            by_name = {name: vector.view(shape) for name, vector in vectors}
            b, d = by_name.get("b"), by_name.get("d")
        v = frozen_linear(u if d is None else d * u, self.B)
        return v if b is None else b * v

    def weight(self) -> Tensor:
        scaled_a = self.A if self.d is None else self.d[:, None] * self.A
        scaled_b = self.B if self.b is None else self.b[:, None] * self.B
        return scaled_b @ scaled_a


def projections(model: nn.Module) -> list[Projections]:
    """The pairs of an adapted model."""
    return [m for m in model.modules() if isinstance(m, Projections)]


def fixed_pairs(model: nn.Module) -> dict[str, Any]:
    """What an adapter file says of the pairs: scheme, seed, the widest shape, and the
    fingerprint of all."""
    specs = [pair.spec for pair in projections(model)]
    return {
        "scheme": specs[0].scheme,
        "seed": specs[0].seed,
        "inputs": max(spec.inputs for spec in specs),
        "outputs": max(spec.outputs for spec in specs),
        "fingerprint": _fingerprint(*specs),
    }


@cache  # a thousand resident adapters have one pair
def _fingerprint(*specs: ProjectionSpec) -> str:
    """The fingerprint of float32 pairs drawn again from their specs, since the model's
    own may have been cast."""
    matrices: list[Matrix] = []
    for spec in specs:
        matrices += spec.make()
    return fingerprint(*matrices)
