"""VeRA: h = W0 x + b * (B (d * (A x))) (Kopiczko et al. 2024, equation 2)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.base import AdaptedLinear, Method, adapted_layers, replace
from vera.projections import ProjectionSpec, fingerprint
from vera.sites import find_sites


class Projections(nn.Module):
    """The frozen pair A (rank, widest in), B (widest out, rank): one storage for all layers.

    Not part of the state dict: the seed brings it back.
    """

    A: Tensor
    B: Tensor

    def __init__(self, spec: ProjectionSpec, like: Tensor) -> None:
        super().__init__()
        self.spec = spec
        dtype = torch.promote_types(like.dtype, torch.float32)
        if like.is_meta:
            pair = torch.empty(spec.rank, spec.inputs), torch.empty(spec.outputs, spec.rank)
        else:
            a, b = spec.make()
            pair = torch.from_numpy(a), torch.from_numpy(b)
        for name, matrix in zip("AB", pair, strict=True):
            self.register_buffer(name, matrix.to(like.device, dtype), persistent=False)


class VeRALinear(AdaptedLinear):
    """One adapted matrix: its own d (rank) and b (out), and the leading slices A[:, :in] and B[:out] of the pair.

    d starts at d_init and b at zero, so that the model starts as the base model: dL/dd is 0 at first, dL/db is not.
    """

    def __init__(self, base: nn.Linear, projections: Projections, d_init: float, dropout: float) -> None:
        super().__init__(base)
        # In a tuple, so that the pair is a child of the model alone and moves between devices once.
        self._shared = (projections,)
        at: Any = {"device": base.weight.device, "dtype": self.adapter_dtype}
        self.d = nn.Parameter(torch.full((projections.spec.rank,), d_init, **at))
        self.b = nn.Parameter(torch.zeros(base.out_features, **at))
        self.dropout = nn.Dropout(dropout)

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's name
        return self._shared[0].A[:, : self.base.in_features]

    @property
    def B(self) -> Tensor:  # noqa: N802
        return self._shared[0].B[: self.base.out_features]

    def change(self, x: Tensor) -> Tensor:
        return self.b * F.linear(self.d * F.linear(self.dropout(x), self.A), self.B)

    def delta_weight(self) -> Tensor:
        return (self.b[:, None] * self.B) @ (self.d[:, None] * self.A)


@dataclass(frozen=True)
class VeRA(Method, kind="vera"):
    """Trains two vectors for each adapted matrix; the random matrices between them are frozen and shared.

    rank: of the random matrices. d_init: initial value of d. dropout: on the input of the adapter.
    init: "kaiming_uniform" or "peft" (see ProjectionSpec). projection_seed: of A and B, apart from training's seed.
    There is no alpha and no 1/rank.
    """

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    d_init: float = 0.1
    dropout: float = 0.0
    init: str = "kaiming_uniform"
    projection_seed: int = 0

    def install(self, model: nn.Module) -> None:
        found = find_sites(model, self.sites)
        widest_in = max(m.in_features for m in found.values())
        widest_out = max(m.out_features for m in found.values())
        spec = ProjectionSpec(self.projection_seed, self.rank, widest_in, widest_out, self.init)
        try:
            projections = Projections(spec, like=next(iter(found.values())).weight)
        except ValueError as error:
            raise AdapterError(str(error)) from None
        model.add_module("vera_projections", projections)
        for path, base in found.items():
            replace(model, path, VeRALinear(base, projections, self.d_init, self.dropout))

    def count(self, model: nn.Module) -> int:
        """Sum over the adapted matrices of (out + rank)."""
        return sum(layer.base.out_features + self.rank for layer in adapted_layers(model))

    def fixed(self, model: nn.Module) -> dict[str, Any]:
        pair: Any = model.get_submodule("vera_projections")
        spec = pair.spec
        # Made anew rather than read from the model, whose copy may have been cast to another dtype.
        return {
            "scheme": spec.scheme,
            "seed": spec.seed,
            "inputs": spec.inputs,
            "outputs": spec.outputs,
            "fingerprint": fingerprint(*spec.make()),
        }
