"""VeRA: h = W0 x + b * (B (d * (A x))) (Kopiczko et al. 2024, equation 2), and the
ablations of its tables 6 and 7."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from vera.errors import AdapterError
from vera.kernels import Group
from vera.methods.contract import Method
from vera.methods.layers import (
    adapted_layers,
    adapter_dtype,
    layer_changes,
    widest,
    wrap,
)
from vera.methods.settings import check_rank
from vera.methods.vera_layer import Projections, VeRAChange, fixed_pairs
from vera.projections import Init, ProjectionSpec
from vera.sites import find_sites, same_input

VECTORS = (("b", "d"), ("b",), ("d",))


@dataclass(frozen=True)
class VeRA(Method, kind="vera"):
    """Trains two vectors for each adapted matrix; the random matrices between them are
    frozen and shared.

    rank: of the random matrices. d_init: initial value of d. dropout: on the input of
    the adapter. init: of A and B, one of projections.Init. projection_seed: of A and B,
    apart from training's seed. vectors: which of b and d there are (table 6); without
    b, d must start at 0, or the model would not start as the base. projections:
    "shared" is one pair, as large as the widest matrix, of which a narrower one takes
    the leading slice; "by_shape" one pair for each shape; "unique" a pair for each
    matrix (table 7). path: how the result is computed: "factor", "hybrid",
    "materialised", or "auto", the cheapest (vera.kernels). weights: whether the last
    two "keep" the merged weights for the backward pass or "recompute" them; "auto" by
    memory. There is no alpha and no 1/rank."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    d_init: float = 0.1
    dropout: float = 0.0
    init: Init = "kaiming_uniform"
    projection_seed: int = 0
    vectors: tuple[str, ...] = ("b", "d")
    projections: Literal["shared", "by_shape", "unique"] = "shared"
    path: Literal["auto", "factor", "hybrid", "materialised"] = field(
        default="auto", compare=False
    )
    weights: Literal["auto", "keep", "recompute"] = field(default="auto", compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "vectors", tuple(sorted(self.vectors)))
        if self.vectors not in VECTORS:
            raise AdapterError(
                f"vectors must be [b,d], [b] or [d], got [{','.join(self.vectors)}]"
            )
        if "b" not in self.vectors and self.d_init != 0:
            raise AdapterError(
                f"without b, d must start at 0, as the base model: d_init={self.d_init}"
            )
        if self.vectors == ("b", "d") and self.d_init == 0:
            raise AdapterError(
                "b starts at 0: with d_init=0, too, no gradient would ever leave it"
            )
        if self.init == "peft" and self.projections != "shared":
            raise AdapterError(
                "init=peft draws one pair: it goes with projections=shared only"
            )
        if self.dropout and self.path not in ("auto", "factor"):
            raise AdapterError(
                f"path={self.path} has no place for dropout: path=auto, or dropout=0"
            )

    def install(self, model: nn.Module) -> None:
        targets = find_sites(model, self.sites)
        largest = widest(model, targets)
        check_rank("rank", self.rank, max(largest))
        first: Any = model.get_submodule(next(iter(targets)))
        pairs: dict[str, Projections] = {}

        def make_change(
            path: str, part: str, base: nn.Module, inputs: int, outputs: int
        ) -> VeRAChange:
            names = {
                "shared": "",
                "by_shape": f"{outputs}x{inputs}",
                "unique": f"{path} {part}",
            }
            name = names[self.projections]
            if name not in pairs:
                shape = largest if self.projections == "shared" else (inputs, outputs)
                spec = ProjectionSpec(
                    self.projection_seed, self.rank, *shape, self.init, name
                )
                device, dtype = first.weight.device, adapter_dtype(first)
                pairs[name] = Projections(spec, device, dtype)
            return VeRAChange(base, inputs, outputs, pairs[name], self)

        wrap(model, targets, make_change)
        # In the first layer, the pairs move between devices with the model, and leave
        # with the layer. The model itself may be a Sequential, where another child
        # would be another layer.
        next(adapted_layers(model)).add_module(
            "projections", nn.ModuleList(pairs.values())
        )
        for parent, paths in same_input(targets):
            layers: list[Any] = [model.get_submodule(path) for path in paths]
            group = Group(layers, self.path, self.weights)
            group.check(layers)
            if len(layers) > 1:
                group.attach(model.get_submodule(parent))

    def count(self, model: nn.Module) -> int:
        """Sum of (out + rank) over the adapted matrices; of out or rank alone with only
        b or only d."""
        total = 0
        for change in layer_changes(model):
            if "b" in self.vectors:
                total += change.outputs
            if "d" in self.vectors:
                total += self.rank
        return total

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        return fixed_pairs(model)
