"""How well LoRA and VeRA fit random matrices (VeRA paper, figure 6)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from runs.measures.contract import MeasuredValues, columns

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FitSettings:
    """The settings of figure 6 (VeRA paper, appendix E). The size is the paper's, the
    other settings are this project's choice. At a rank LoRA has 20 times rank
    parameters and VeRA rank + 10: VeRA's ranks give the counts of LoRA's, and smaller
    ones."""

    size: int = 10
    matrices: int = 20
    steps: int = 1000
    lr: float = 0.1
    optimizer: str = "adam, linear to zero"
    target: str = "normal(0, 1)"
    ranks: Mapping[str, Sequence[int]] = field(
        default_factory=lambda: {
            "lora": tuple(range(1, 11)),
            "vera": (1, 2, 5, *range(10, 191, 20)),
        }
    )


@dataclass(frozen=True)
class FittedFactors:
    """The two factors of each matrix's fit.

    Attributes:
        parameters: how many are trained for a matrix.
        left: what is trained of the first factor.
        right: what is trained of the second factor.
        fixed_left: by what `left` is multiplied, element by element.
        fixed_right: by what `right` is multiplied, element by element.
    """

    parameters: int
    left: "torch.Tensor"
    right: "torch.Tensor"
    fixed_left: "torch.Tensor | float" = 1.0
    fixed_right: "torch.Tensor | float" = 1.0

    def errors(self, targets: "torch.Tensor") -> "torch.Tensor":
        """The mean squared error of each matrix, (matrices,). targets: the matrices that
        are fitted, (matrices, size, size)."""
        fits = (self.left * self.fixed_left) @ (self.right * self.fixed_right)
        return (fits - targets).square().mean((1, 2))


def matrix_fit(
    seed: int, output: str = "", settings: FitSettings | None = None
) -> MeasuredValues:
    """The mean squared errors when LoRA's P Q and VeRA's (b * B)(d * A) are fitted to
    random square matrices (VeRA paper, appendix E). LoRA trains P and Q, VeRA d and b;
    both start as in training, with P and b at zero.

    A and B are Kaiming uniform like VeRA's, with a pair of its own for each matrix. The
    column "best" has the least possible error at LoRA's rank, by singular values: it
    shows whether the fit has converged. VeRA's rows have None there. Nothing is read from
    `output`, which every measure gets."""
    import torch

    settings = settings or FitSettings()
    size = settings.size
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(settings.matrices, size, size, generator=generator)
    squared_singular_values = torch.linalg.svdvals(targets) ** 2
    rows = []
    mean_errors: dict[tuple[str, int], float] = {}
    for method in ("lora", "vera"):
        for rank in settings.ranks[method]:
            best = None
            if method == "lora":
                factors = _lora_factors(rank, settings, generator)
                squared_error = squared_singular_values[:, rank:].sum(1)
                best = (squared_error / size**2).tolist()
            else:
                factors = _vera_factors(rank, settings, generator)
            errors = _fit(factors, targets, settings)
            mean_errors[method, factors.parameters] = fmean(errors)
            rows.append(
                {
                    "method": method,
                    "rank": rank,
                    "parameters": factors.parameters,
                    "mse": errors,
                    "best": best,
                }
            )
    return {
        "of": [],
        "settings": {**asdict(settings)},
        "seeds": {"random": seed},
        "values": columns(rows),
        "summary": _summary(mean_errors),
    }


def _summary(mean_errors: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """The errors of both methods at the smallest number of parameters that both have;
    empty where they have none in common.

    mean_errors: by method and number of parameters; LoRA's numbers increase."""
    for method, parameters in mean_errors:
        if method == "lora" and ("vera", parameters) in mean_errors:
            return {
                f"{name} at {parameters} parameters": mean_errors[name, parameters]
                for name in ("lora", "vera")
            }
    return {}


def _lora_factors(
    rank: int, settings: FitSettings, generator: "torch.Generator"
) -> FittedFactors:
    """P, which is zero, and Q of each matrix, before the fit."""
    import torch

    size = settings.size
    matrices = settings.matrices
    return FittedFactors(
        parameters=2 * size * rank,
        left=torch.zeros(matrices, size, rank),
        right=_uniform(1 / math.sqrt(size), (matrices, rank, size), generator),
    )


def _vera_factors(
    rank: int, settings: FitSettings, generator: "torch.Generator"
) -> FittedFactors:
    """b, which is zero, and d of each matrix, before the fit, with fixed B and A."""
    import torch

    size = settings.size
    matrices = settings.matrices
    return FittedFactors(
        parameters=size + rank,
        left=torch.zeros(matrices, size, 1),
        right=torch.full((matrices, rank, 1), 0.1),  # VeRA's d_init
        fixed_left=_uniform(math.sqrt(6 / rank), (matrices, size, rank), generator),
        fixed_right=_uniform(math.sqrt(6 / size), (matrices, rank, size), generator),
    )


def _uniform(
    bound: float, shape: Sequence[int], generator: "torch.Generator"
) -> "torch.Tensor":
    """A tensor drawn uniformly between -bound and bound."""
    import torch

    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)


def _fit(
    factors: FittedFactors, targets: "torch.Tensor", settings: FitSettings
) -> list[float]:
    """Trains the factors by Adam, in place. Returns the error of each matrix."""
    import torch

    trained = [factors.left.requires_grad_(True), factors.right.requires_grad_(True)]
    optimizer = torch.optim.Adam(trained, settings.lr)
    for step in range(settings.steps):
        rate = settings.lr * (1 - step / settings.steps)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        # in a sum of errors each matrix has its own gradient
        factors.errors(targets).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    errors: list[float] = factors.errors(targets).tolist()
    return errors
