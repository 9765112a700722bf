"""VeRA: h = W0 x + b * (B (d * (A x))) (Kopiczko et al. 2024, equation 2), and the ablations of its tables 6
and 7."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.kernels import PATHS, WEIGHTS, Group, frozen_linear
from vera.methods.base import (
    AdaptedLinear,
    Change,
    Method,
    adapted_layers,
    adapter_dtype,
    changes,
    check_rank,
    remove_hooks,
    wrap,
)
from vera.projections import INITS, ProjectionSpec, fingerprint
from vera.sites import find_sites, same_input, size

VECTORS = {("b", "d"), ("b",), ("d",)}
SHARING = ("shared", "by_shape", "unique")


class Projections(nn.Module):
    """A frozen pair A (rank, in), B (out, rank): one storage for all matrices that share it.

    Not part of the state dict: the seed brings it back.
    """

    A: Tensor
    B: Tensor

    def __init__(self, spec: ProjectionSpec, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        if device.type == "meta":
            pair = (
                torch.empty(spec.rank, spec.inputs, device=device),
                torch.empty(spec.outputs, spec.rank, device=device),
            )
        else:
            a, b = spec.make()
            pair = torch.from_numpy(a), torch.from_numpy(b)
        for name, matrix in zip("AB", pair, strict=True):
            self.register_buffer(name, matrix.to(device, dtype), persistent=False)


class VeRAChange(Change):
    """One matrix's own d (rank) and b (out), and the leading slices A[:, :in] and B[:out] of its pair.

    d starts at d_init and b at zero, so that the model starts as the base model: dL/dd is 0 at first, dL/db
    is not. A vector that the method leaves out is None and counts as all ones."""

    b: Tensor | None
    d: Tensor | None

    def __init__(
        self, base: nn.Module, inputs: int, outputs: int, projections: Projections, method: "VeRA"
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        # In a tuple, so that the pair has one parent and moves between devices once.
        self._shared = (projections,)
        at: Any = {"device": base.weight.device, "dtype": adapter_dtype(base)}
        for name, length, value in (("d", method.rank, method.d_init), ("b", outputs, 0.0)):
            vector = nn.Parameter(torch.full((length,), value, **at)) if name in method.vectors else None
            self.register_parameter(name, vector)
        self.dropout = nn.Dropout(method.dropout)
        #: b and d of each sample of a batch, in place of the two above (vera.Adapters).
        self.rows: tuple[Tensor | None, Tensor | None] | None = None
        self.repeats = False  # a batch that is a multiple of the rows (beams) takes each row as often

    @property
    def pair(self) -> Projections:
        return self._shared[0]

    @property
    def A(self) -> Tensor:  # noqa: N802 - the paper's name
        return self.pair.A[:, : self.inputs]

    @property
    def B(self) -> Tensor:  # noqa: N802
        return self.pair.B[: self.outputs]

    @property
    def rank(self) -> int:
        return self.pair.spec.rank

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(self.dropout(x)))

    def down(self, x: Tensor) -> Tensor:
        """A x, (..., inputs) -> (..., rank): the same for every matrix of the pair that reads x."""
        return frozen_linear(x, self.A)

    def up(self, u: Tensor) -> Tensor:
        """b * (B (d * u)), (..., rank) -> (..., outputs)."""
        b, d = self.b, self.d
        if self.rows is not None:
            count = next(len(v) for v in self.rows if v is not None)
            times, rest = divmod(len(u), count)
            if rest or (times != 1 and not self.repeats):
                raise AdapterError(
                    f"{len(u)} samples at a layer for {count} adapter names: does this model fold its batch?"
                )
            # (samples, length) beside (samples, ..., length)
            shape = len(u), *[1] * (u.dim() - 2), -1
            b, d = (v if v is None else v.repeat_interleave(times, 0).view(shape) for v in self.rows)
        v = frozen_linear(u if d is None else d * u, self.B)
        return v if b is None else b * v

    def weight(self) -> Tensor:
        a = self.A if self.d is None else self.d[:, None] * self.A
        b = self.B if self.b is None else self.b[:, None] * self.B
        return b @ a


def projections(model: nn.Module) -> list[Projections]:
    """The pairs of an adapted model."""
    return [m for m in model.modules() if isinstance(m, Projections)]


@dataclass(frozen=True)
class VeRA(Method, kind="vera"):
    """Trains two vectors for each adapted matrix; the random matrices between them are frozen and shared.

    rank: of the random matrices. d_init: initial value of d. dropout: on the input of the adapter. init: of A
    and B, one of projections.INITS. projection_seed: of A and B, apart from training's seed. vectors: which
    of b and d there are (table 6); without b, d must start at 0, or the model would not start as the base.
    projections: "shared" is one pair, as large as the widest matrix, of which a narrower one takes the
    leading slice; "by_shape" one pair for each shape; "unique" a pair for each matrix (table 7). path: how it
    is computed, for the same result: "factor", "hybrid", "materialised", or "auto", the cheapest (see
    kernels.py). weights: whether the last two "keep" the merged weights for the backward pass or "recompute"
    them; "auto" by memory. There is no alpha and no 1/rank."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    d_init: float = 0.1
    dropout: float = 0.0
    init: str = "kaiming_uniform"
    projection_seed: int = 0
    vectors: tuple[str, ...] = ("b", "d")
    projections: str = "shared"
    path: str = field(default="auto", compare=False)
    weights: str = field(default="auto", compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "vectors", tuple(sorted(self.vectors)))
        if self.vectors not in VECTORS:
            raise AdapterError(f"vectors must be [b,d], [b] or [d], got [{','.join(map(str, self.vectors))}]")
        if "b" not in self.vectors and self.d_init != 0:
            raise AdapterError(
                "without b, d must start at 0 (d_init=0), for the model to start as the base; got"
                f" {self.d_init}"
            )
        if self.projections not in SHARING:
            raise AdapterError(f"projections must be one of {', '.join(SHARING)}, got {self.projections!r}")
        if self.init not in INITS:
            raise AdapterError(f"init must be one of {', '.join(INITS)}, got {self.init!r}")
        if self.init == "peft" and self.projections != "shared":
            raise AdapterError("init=peft draws one pair: it goes with projections=shared only")
        for name, known in (("path", PATHS), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise AdapterError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.dropout and self.path not in ("auto", "factor"):
            raise AdapterError(
                f"path={self.path} has no place for dropout on the adapter's input: path=auto, or dropout=0"
            )
        if not 0 <= self.projection_seed < 2**64:
            raise AdapterError(f"projection_seed must be in [0, 2^64), got {self.projection_seed}")

    def install(self, model: nn.Module) -> None:
        found = find_sites(model, self.sites)
        shapes = {
            (path, name): (size(model.get_submodule(path))[0], rows.stop - rows.start)
            for path, blocks in found.items()
            for name, rows in blocks.items()
        }
        widest = max(i for i, _ in shapes.values()), max(o for _, o in shapes.values())
        check_rank("rank", self.rank, max(widest))
        first = model.get_submodule(next(iter(found)))
        pairs: dict[str, Projections] = {}

        def pair_of(path: str, block: str) -> Projections:
            """The pair of a matrix, made when it is first met."""
            shape = widest if self.projections == "shared" else shapes[path, block]
            name = {"shared": "", "by_shape": f"{shape[1]}x{shape[0]}", "unique": f"{path} {block}"}[
                self.projections
            ]
            if name not in pairs:
                spec = ProjectionSpec(self.projection_seed, self.rank, *shape, self.init, name)
                pairs[name] = Projections(spec, cast(Tensor, first.weight).device, adapter_dtype(first))
            return pairs[name]

        wrap(model, found, lambda path, block, base, i, o: VeRAChange(base, i, o, pair_of(path, block), self))
        # With the first layer, so that the pairs move between devices with the model, and leave with the
        # layer. The model itself may be a Sequential, where a child more would be a layer more.
        next(adapted_layers(model)).add_module("projections", nn.ModuleList(pairs.values()))
        for parent, paths in same_input(found):
            layers = [cast(AdaptedLinear, model.get_submodule(path)) for path in paths]
            group = Group(layers, self.path, self.weights)
            group.check(layers)
            if len(layers) > 1:
                group.attach(model.get_submodule(parent))

    def remove(self, model: nn.Module) -> None:
        for module in model.modules():
            remove_hooks(module, Group.begin, Group.end)
        super().remove(model)

    def count(self, model: nn.Module) -> int:
        """Sum over the adapted matrices of (out + rank); of out or rank alone where there is only b or only
        d."""
        return sum(
            ("b" in self.vectors) * change.outputs + ("d" in self.vectors) * self.rank
            for change in changes(model)
        )

    def fixed(self, model: nn.Module, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Scheme, seed, the widest shape, and the fingerprint of all pairs."""
        specs = [pair.spec for pair in projections(model)]
        # Made anew rather than read from the model, whose copy may have been cast to another dtype.
        return {
            "scheme": specs[0].scheme,
            "seed": self.projection_seed,
            "inputs": max(spec.inputs for spec in specs),
            "outputs": max(spec.outputs for spec in specs),
            "fingerprint": fingerprint(*(matrix for spec in specs for matrix in spec.make())),
        }
