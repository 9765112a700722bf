"""Random matrices, fitted by LoRA and by VeRA (figure 6)."""

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

from runs.measure.adapters import columns
from runs.record import Record

if TYPE_CHECKING:
    from torch import Tensor

#: Figure 6 (VeRA paper, appendix E). The size is the paper's, the other settings are this project's choice.
#: VeRA has rank + 10 parameters and LoRA 20 rank: VeRA's ranks give LoRA's counts, and some beyond those.
FIT: dict[str, Any] = {
    "size": 10,
    "matrices": 20,
    "steps": 1000,
    "lr": 0.1,
    "optimizer": "adam, linear to zero",
    "target": "normal(0, 1)",
    "ranks": {"lora": tuple(range(1, 11)), "vera": (1, 2, 5, *range(10, 191, 20))},
}


def matrix_fit(seed: int, **changes: Any) -> Record:
    """The mean squared errors of random square matrices, fitted by LoRA's P Q and by VeRA's (b * B)(d * A)
    (VeRA paper, appendix E). Both start as in training, with P and b at zero, and train P and Q, or d and b.

    A and B are Kaiming uniform like VeRA's, another pair for each matrix. `best` is the least possible error
    of a matrix of LoRA's rank, by singular values: it shows whether the fit has converged. changes: of FIT,
    for tests."""
    import torch

    settings, rows = FIT | changes, list[dict[str, Any]]()
    n, size = settings["matrices"], settings["size"]
    generator = torch.Generator().manual_seed(seed)

    def uniform(bound: float, *shape: int) -> "Tensor":
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator)

    targets = torch.randn(n, size, size, generator=generator)
    tails = torch.linalg.svdvals(targets) ** 2
    for method, rank in [(name, rank) for name in ("lora", "vera") for rank in settings["ranks"][name]]:
        if method == "lora":
            trained = [torch.zeros(n, size, rank), uniform(1 / math.sqrt(size), n, rank, size)]
            frozen, count, best = [], 2 * size * rank, (tails[:, rank:].sum(1) / size**2).tolist()
        else:
            trained = [torch.zeros(n, size, 1), torch.full((n, rank, 1), 0.1)]
            b = uniform(math.sqrt(6 / rank), n, size, rank)
            frozen, count, best = [b, uniform(math.sqrt(6 / size), n, rank, size)], size + rank, None
        errors = _fit(trained, frozen, targets, settings["steps"], settings["lr"])
        rows.append({"method": method, "rank": rank, "parameters": count, "mse": errors, "best": best})
    mean = {(row["method"], row["parameters"]): fmean(row["mse"]) for row in rows}
    common = next((count for method, count in mean if method == "lora" and ("vera", count) in mean), None)
    summary = {f"{of} at {n} parameters": value for (of, n), value in mean.items() if n == common}
    seeds = {"random": seed}
    return {"of": [], "settings": settings, "seeds": seeds, "values": columns(rows), "summary": summary}


def _fit(
    trained: list["Tensor"], frozen: list["Tensor"], targets: "Tensor", steps: int, lr: float
) -> list[float]:
    """The mean squared error of each matrix after training by Adam, whose rate falls linearly to zero.
    trained: P and Q, or b and d, which scale the rows of the frozen B and A."""
    import torch

    def errors() -> "Tensor":
        left, right = (s * m for s, m in zip(trained, frozen, strict=True)) if frozen else trained
        return (left @ right - targets).square().mean((1, 2))

    for tensor in trained:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        errors().sum().backward()  # type: ignore[no-untyped-call] # a sum: each matrix is fitted on its own
        optimizer.step()
    final: list[float] = errors().tolist()
    return final
