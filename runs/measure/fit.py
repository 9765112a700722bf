"""Random matrices, fitted by LoRA and by VeRA (figure 6)."""

import math
import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

from runs.record import (
    Record,
)

if TYPE_CHECKING:
    from torch import Tensor

from runs.measure.record import new_measure

#: Figure 6 (VeRA paper, appendix E). The paper's size; the other settings are this project's choice.
FIT: dict[str, Any] = {
    "size": 10,
    "matrices": 20,
    "steps": 1000,
    "lr": 0.1,
    "optimizer": "adam, linear to zero",
    "target": "normal(0, 1)",
}


#: VeRA has rank + 10 parameters and LoRA 20 rank: VeRA at each of LoRA's counts, and at some that LoRA cannot
#: have.
FIT["ranks"] = {"lora": tuple(range(1, 11)), "vera": (1, 2, 5, *range(10, 191, 20))}


def matrix_fit(seed: int, **changes: Any) -> Record:
    """Fits random square matrices M by LoRA's P Q and by VeRA's (b * B)(d * A) and keeps the mean squared
    error of each (VeRA paper, appendix E). Both start as in training (P and b at zero), and train P and Q, or
    d and b.

    A and B are VeRA's (Kaiming uniform), a pair of their own for each matrix. `best` is the least error that
    a matrix of LoRA's rank can have, by singular values: it tells whether the fit has converged. changes: to
    FIT."""
    import torch

    started = time.monotonic()
    settings: dict[str, Any] = FIT | changes
    n, size = settings["matrices"], settings["size"]
    generator = torch.Generator().manual_seed(seed)

    def uniform(bound: float, *shape: int) -> "Tensor":
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator)

    targets = torch.randn(n, size, size, generator=generator)
    tails = torch.linalg.svdvals(targets) ** 2
    values: dict[str, list[Any]] = {key: [] for key in ("method", "rank", "parameters", "mse", "best")}
    for method, rank in [(name, rank) for name in ("lora", "vera") for rank in settings["ranks"][name]]:
        if method == "lora":
            trained = [torch.zeros(n, size, rank), uniform(1 / math.sqrt(size), n, rank, size)]
            frozen, count, best = [], 2 * size * rank, (tails[:, rank:].sum(1) / size**2).tolist()
        else:
            trained = [torch.zeros(n, size, 1), torch.full((n, rank, 1), 0.1)]
            frozen = [
                uniform(math.sqrt(6 / rank), n, size, rank),
                uniform(math.sqrt(6 / size), n, rank, size),
            ]
            count, best = size + rank, None
        errors = _fit(trained, frozen, targets, settings["steps"], settings["lr"])
        for key, value in zip(values, (method, rank, count, errors, best), strict=True):
            values[key].append(value)
    mean = {
        (m, c): fmean(e)
        for m, c, e in zip(*(values[key] for key in ("method", "parameters", "mse")), strict=True)
    }
    counts = [count for name, count in mean if name == "lora" and ("vera", count) in mean]
    summary = {
        f"{name} at {count} parameters": mean[name, count]
        for count in counts[:1]
        for name in ("lora", "vera")
    }
    return new_measure("matrix_fit", started, [], settings, {"random": seed}, values, summary)


def _fit(
    trained: list["Tensor"], frozen: list["Tensor"], targets: "Tensor", steps: int, lr: float
) -> list[float]:
    """The mean squared error of each matrix after training by Adam, the rate falling linearly to zero.

    trained: P and Q, or b and d, which scale the rows of the frozen B and A.
    """
    import torch

    def errors() -> "Tensor":
        left, right = (
            trained if not frozen else (scale * matrix for scale, matrix in zip(trained, frozen, strict=True))
        )
        return (left @ right - targets).square().mean((1, 2))

    for tensor in trained:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        errors().sum().backward()  # type: ignore[no-untyped-call] # a sum over matrices: each is fitted as if it were alone
        optimizer.step()
    found: list[float] = errors().tolist()
    return found
