"""How ranks are allocated as a model trains (Zhang et al. 2023, arXiv 2303.10512): how important the entries
of a parameter are, the budget's schedule, and the penalty that keeps factors orthogonal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn


@dataclass
class Allocation:
    """What a run of so many steps has gathered, by the name of a parameter and for each of its entries: how
    much the loss depends on it, and how much that varies, both smoothed over the steps."""

    total_steps: int
    sensitivity: dict[str, Tensor] = field(default_factory=dict)
    uncertainty: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def gather(self, parameters: Mapping[str, nn.Parameter], beta1: float, beta2: float) -> None:
        """Adds a step's gradients (the paper's equations 8 to 10)."""
        for name, p in parameters.items():
            now = (p * cast(Tensor, p.grad)).abs()
            of, varies = (d.get(name, torch.zeros_like(p)) for d in (self.sensitivity, self.uncertainty))
            self.sensitivity[name] = of = beta1 * of + (1 - beta1) * now
            self.uncertainty[name] = beta2 * varies + (1 - beta2) * (now - of).abs()

    def importance(self, name: str) -> Tensor:
        """Of each entry of a parameter (equation 11)."""
        return self.sensitivity[name] * self.uncertainty[name]

    def state(self) -> dict[str, Tensor]:
        """What was gathered, for a checkpoint."""
        kinds = {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty}
        return {f"{kind}/{name}": tensor for kind, of in kinds.items() for name, tensor in of.items()}

    def load(self, state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Puts `state` back, each tensor where its parameter is."""
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            getattr(self, kind)[name] = tensor.to(parameters[name].device)


@dataclass(frozen=True)
class RankBudget:
    """How many ranks are left over a run: `first` in the beginning, `last` in the end.

    It falls with the cube of the steps left (equation 12), between shares of the run's steps at its beginning
    and at its end, each `interval` steps; in the last part each step prunes, as in peft (in the published
    code from that part's second step on)."""

    first: int
    last: int
    initial_share: float
    final_share: float
    interval: int

    def ends(self, total_steps: int) -> int:
        """The step after which nothing more is gathered."""
        return total_steps - round(self.final_share * total_steps)

    def after(self, step: int, total_steps: int) -> int | None:
        """What is left after a step (counted from 0, as in the published code); None where none is pruned."""
        begins, ends = round(self.initial_share * total_steps), self.ends(total_steps)
        if step >= ends:
            return self.last
        if step <= begins or step % self.interval:
            return None
        left = 1 - (step - begins) / (ends - begins)
        return int((self.first - self.last) * left**3 + self.last)


def off_orthogonal(factors: Iterable[Tensor]) -> Tensor:
    """The mean distance of F F^T from the identity over factors F (r, n) (equation 4)."""
    grams = [factor @ factor.T for factor in factors]
    return torch.stack(
        [torch.linalg.norm(g - torch.eye(len(g), device=g.device, dtype=g.dtype)) for g in grams]
    ).mean()
