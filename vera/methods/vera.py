"""VeRA: h = W0 x + b * (B (d * (A x))) (Kopiczko et al. 2024, equation 2), and the
ablations of its tables 6 and 7."""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.kernels import Group, frozen_linear
from vera.methods.contract import Method, check_rank
from vera.methods.layers import (
    Change,
    adapted_layers,
    adapter_dtype,
    widest_shape,
    wrap,
)
from vera.projections import Init, Matrix, ProjectionSpec, fingerprint
from vera.sites import find_sites, group_by_input


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
            matrices = [torch.empty(shape, device=device) for shape in shapes]
        else:
            matrices = [torch.from_numpy(matrix) for matrix in spec.make()]
        for name, matrix in zip("AB", matrices, strict=True):
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
        device = base.weight.device
        dtype = adapter_dtype(base)
        initial_values = {
            "d": torch.full((method.rank,), method.d_init, device=device, dtype=dtype),
            "b": torch.zeros(outputs, device=device, dtype=dtype),
        }
        for name, values in initial_values.items():
            vector = nn.Parameter(values) if name in method.vectors else None
            self.register_parameter(name, vector)
        self.dropout = nn.Dropout(method.dropout)

    @property
    def pair(self) -> Projections:
        """The frozen matrices, which this change shares with others."""
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
        if self.sample_parameters is not None:
            # u is (samples, ..., rank). A vector of each sample, (samples, length), gets
            # a dimension of size 1 for each dimension of u that stands between
            shape = len(u), *[1] * (u.dim() - 2), -1
            vectors = self.parameters_of_samples(len(u))
            b = vectors["b"].view(shape) if "b" in vectors else None
            d = vectors["d"].view(shape) if "d" in vectors else None
        v = frozen_linear(u if d is None else d * u, self.B)
        return v if b is None else b * v

    def weight(self) -> Tensor:
        scaled_a = self.A if self.d is None else self.d[:, None] * self.A
        scaled_b = self.B if self.b is None else self.b[:, None] * self.B
        return scaled_b @ scaled_a


def projection_pairs(model: nn.Module) -> list[Projections]:
    """The frozen pairs A, B of an adapted model, each once."""
    return [m for m in model.modules() if isinstance(m, Projections)]


def describe_pairs(model: nn.Module) -> dict[str, Any]:
    """What an adapter file says about the frozen pairs (Method.fixed): their scheme and
    seed, the widest shape, and one fingerprint of all of them."""
    specs = [pair.spec for pair in projection_pairs(model)]
    return {
        "scheme": specs[0].scheme,
        "seed": specs[0].seed,
        "inputs": max(spec.inputs for spec in specs),
        "outputs": max(spec.outputs for spec in specs),
        "fingerprint": _fingerprint(*specs),
    }


@cache  # a thousand resident adapters (vera.Adapters) share one pair
def _fingerprint(*specs: ProjectionSpec) -> str:
    """The fingerprint of these pairs in float32. They are drawn again from their specs,
    since those of the model may have been cast."""
    matrices: list[Matrix] = []
    for spec in specs:
        matrices += spec.make()
    return fingerprint(*matrices)


#: What the setting `vectors` may be, sorted.
VECTOR_CHOICES = (("b", "d"), ("b",), ("d",))
#: The number of a layer in the path of a module.
LAYER_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")


def path_in_any_layer(path: str) -> str:
    """The path of a module with * for the numbers of layers: model.layers.*.mlp.up_proj
    for model.layers.29.mlp.up_proj."""
    return LAYER_NUMBER.sub("*", path)


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
    matrix (table 7). shared_b: whether the matrices at the same place of every layer
    share one b, an option of this project. path: how the result is computed: "factor",
    "hybrid", "materialised", or "auto", the cheapest (vera.kernels). weights: whether
    the last two "keep" the merged weights for the backward pass or "recompute" them;
    "auto" by memory. There is no alpha and no 1/rank."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    d_init: float = 0.1
    dropout: float = 0.0
    init: Init = "kaiming_uniform"
    projection_seed: int = 0
    vectors: tuple[str, ...] = ("b", "d")
    projections: Literal["shared", "by_shape", "unique"] = "shared"
    shared_b: bool = False
    path: Literal["auto", "factor", "hybrid", "materialised"] = field(
        default="auto", compare=False
    )
    weights: Literal["auto", "keep", "recompute"] = field(default="auto", compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "vectors", tuple(sorted(self.vectors)))
        if self.vectors not in VECTOR_CHOICES:
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
        if self.shared_b and "b" not in self.vectors:
            raise AdapterError("shared_b=true: vectors has no b that could be shared")
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
        most_inputs, most_outputs = widest_shape(model, targets)
        check_rank("rank", self.rank, max(most_inputs, most_outputs))
        first_layer: Any = model.get_submodule(next(iter(targets)))
        device = first_layer.weight.device
        dtype = adapter_dtype(first_layer)
        pairs: dict[str, Projections] = {}
        # With shared_b: for each place in a layer the first change there, whose b the
        # changes at that place of the other layers share
        b_owners: dict[str, VeRAChange] = {}

        def make_change(
            path: str, part: str, base: nn.Module, inputs: int, outputs: int
        ) -> VeRAChange:
            # Matrices whose pairs have the same name share one pair
            pair_names = {
                "shared": "",
                "by_shape": f"{outputs}x{inputs}",
                "unique": f"{path} {part}",
            }
            pair_name = pair_names[self.projections]
            if pair_name not in pairs:
                shape = (inputs, outputs)
                if self.projections == "shared":
                    shape = (most_inputs, most_outputs)
                spec = ProjectionSpec(
                    self.projection_seed, self.rank, *shape, self.init, pair_name
                )
                pairs[pair_name] = Projections(spec, device, dtype)
            change = VeRAChange(base, inputs, outputs, pairs[pair_name], self)
            if self.shared_b:
                place = f"{path_in_any_layer(path)} {part} {outputs}"
                change.b = b_owners.setdefault(place, change).b
            return change

        wrap(model, targets, make_change)
        # The first layer holds the pairs, so that they move between devices with the
        # model and leave with the layer. The model itself cannot: as a Sequential it
        # would take another child for another layer.
        next(adapted_layers(model)).add_module(
            "projections", nn.ModuleList(pairs.values())
        )
        for parent, paths in group_by_input(targets):
            layers: list[Any] = [model.get_submodule(path) for path in paths]
            group = Group(layers, self.path, self.weights)
            # Raises AdapterError for a path that the layers cannot take
            group.reason_for_factors(layers)
            if len(layers) > 1:  # a single layer computes when it is called itself
                group.attach(model.get_submodule(parent))

    def count(self, model: nn.Module) -> int:
        """Sum of (out + rank) over the adapted matrices; of out alone without d, of rank
        alone without b. A b that layers share counts once."""
        total = 0
        outputs_by_place = {}
        for layer in adapted_layers(model):
            for part, change in layer.changes.items():
                if "d" in self.vectors:
                    total += self.rank
                path = path_in_any_layer(layer.path) if self.shared_b else layer.path
                outputs_by_place[path, part, change.outputs] = change.outputs
        if "b" in self.vectors:
            total += sum(outputs_by_place.values())
        return total

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        return describe_pairs(model)
