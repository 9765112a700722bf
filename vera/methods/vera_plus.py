"""VeRA+: h = W0 x + (alpha / sqrt(r)) b * (B (d * (A (c * x)))): VeRA with a third
vector c on the input, and the scale of rsLoRA.

After TonAnh/VeRA-plus (its README, and rsverac/layer.py). There c has as many entries
as the layer has outputs, which fits square matrices alone; here it has one for each
input."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.methods.layers import layer_changes
from vera.methods.lora import Placement, placement_of, wrap_sites
from vera.methods.vera import Projections, VeRAChange, describe_pairs
from vera.projections import ProjectionSpec


class VeRAPlusChange(VeRAChange):
    """One matrix's own b (out), d (rank) and c (in), and its slices of the shared A and
    B."""

    def __init__(
        self,
        base: Any,
        inputs: int,
        outputs: int,
        pair: Projections,
        method: "VeRAPlus",
    ) -> None:
        super().__init__(base, inputs, outputs, pair, method)
        self.c = nn.Parameter(
            torch.full((inputs,), method.c_init, **placement_of(base))
        )
        self.scale = method.alpha / math.sqrt(method.rank)

    def project_down(self, x: Tensor) -> Tensor:
        return super().project_down(self.c * x)

    def project_up(self, u: Tensor) -> Tensor:
        return self.scale * super().project_up(u)

    def weight(self) -> Tensor:
        return self.scale * super().weight() * self.c


def _make_projections(
    method: "VeRAPlus", inputs: int, outputs: int, placement: Placement
) -> Projections:
    """The frozen pair A, B that all layers share, made for the widest."""
    spec = ProjectionSpec(method.projection_seed, method.rank, inputs, outputs)
    return Projections(spec, **placement)


@dataclass(frozen=True)
class VeRAPlus(Method, kind="vera_plus"):
    """Trains three vectors for each adapted matrix; one frozen pair A, B is shared, and
    drawn as VeRA's.

    alpha: the change is scaled by alpha / sqrt(rank). d_init, c_init: initial values of
    d and c; b starts at zero. projection_seed: of A and B. dropout: on the input of the
    adapter."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    alpha: float = 8.0
    d_init: float = 0.1
    c_init: float = 0.1
    dropout: float = 0.0
    projection_seed: int = 0

    # No setting here, but VeRAChange reads it
    vectors: ClassVar[tuple[str, ...]] = ("b", "d")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.d_init and self.c_init):
            raise AdapterError(
                "b starts at 0: with d_init=0 or c_init=0, too, nothing would ever train"
            )

    def install(self, model: nn.Module) -> None:
        wrap_sites(
            model,
            self,
            VeRAPlusChange,
            ("projections", _make_projections),
            rank=self.rank,
        )

    def count(self, model: nn.Module) -> int:
        """Sum of (in + rank + out) over the adapted matrices."""
        return sum(
            change.inputs + self.rank + change.outputs
            for change in layer_changes(model)
        )

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        return describe_pairs(model)
