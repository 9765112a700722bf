"""AdaLoRA: h = W0 x + (alpha / r) P (E * (Q x)), after the shape of a singular value
decomposition, of which training prunes the least important singular values (Zhang et
al. 2023, arXiv 2303.10512).

Each adapted matrix starts with r triplets: a column of P, a value of E, a row of Q. As
training goes on, a budget for all matrices together falls from r to `rank` of each on
average, and the triplets of least importance lose their value of E. A penalty keeps P
and Q near orthogonal. The names A (Q), E and B (P), the start, the scale and the
schedule are those of QingruZhang/AdaLoRA, loralib/adalora.py, and of peft."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.methods.layers import changes
from vera.methods.lora import LowRankChange, place, wrap_sites


class TripletChange(LowRankChange):
    """One matrix's A (r, in) and B (out, r), from N(0, 0.02^2), and E (r, 1), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "AdaLoRA") -> None:
        rank, at = method.first_rank, place(base)
        # as in their code
        super().__init__(inputs, outputs, method.alpha / (rank + 1e-5), method.dropout)
        self.A = nn.Parameter(torch.empty(rank, inputs, **at).normal_(std=0.02))
        self.E = nn.Parameter(torch.zeros(rank, 1, **at))
        self.B = nn.Parameter(torch.empty(outputs, rank, **at).normal_(std=0.02))
        #: The run's optimizer steps, of `before_training`.
        self.total_steps = 0
        #: How much the loss depends on each entry of A, E and B, and how much that
        #: varies, both smoothed over the steps: "sensitivity/A", "uncertainty/A" and so
        #: on.
        self.gathered: dict[str, Tensor] = {}

    def factors(self) -> tuple[Tensor, ...]:
        return self.E * self.A, self.B

    @torch.no_grad()
    def gather(self, beta1: float, beta2: float) -> None:
        """Adds a step's gradients (the paper's equations 8 to 10)."""
        for name, p in self.named_parameters():
            kinds = f"sensitivity/{name}", f"uncertainty/{name}"
            now = (p * cast(Tensor, p.grad)).abs()
            of, varies = (
                self.gathered.get(kind, torch.zeros_like(p)) for kind in kinds
            )
            of = beta1 * of + (1 - beta1) * now
            new = of, beta2 * varies + (1 - beta2) * (now - of).abs()
            self.gathered |= dict(zip(kinds, new, strict=True))

    def scores(self) -> Tensor:
        """The importance of each triplet (r,): of its E, and on average of its row and
        its column (equations 7 and 11)."""
        of = {
            n: self.gathered[f"sensitivity/{n}"] * self.gathered[f"uncertainty/{n}"]
            for n in "AEB"
        }
        return of["E"][:, 0] + (of["A"].mean(dim=1) + of["B"].mean(dim=0))


@dataclass(frozen=True)
class AdaLoRA(Method, kind="adalora"):
    """Trains triplets for each adapted matrix, and prunes them to a budget.

    rank: triplets of a matrix that are left in the end, on average. init_rank: in the
    beginning; None is half as many again, as in the paper. alpha: the change is scaled
    by alpha / init_rank. dropout: on the input of the adapter. initial_share,
    final_share: of the run's steps, before the budget begins to fall, and after it has
    fallen, when the same triplets stay pruned (the paper's t_i and t_f are these in
    steps). interval: steps between two prunings; above 1 it needs a final_share above
    0, or what trains after the last pruning stays. beta1, beta2: of sensitivity and
    uncertainty. orthogonality: the weight of the penalty."""

    rank: int
    sites: tuple[str, ...] = ("query", "value")
    init_rank: int | None = None
    alpha: float = 8.0
    dropout: float = 0.0
    initial_share: float = 0.0
    final_share: float = 0.0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.initial_share, self.final_share
        for right, what in (
            (
                self.first_rank >= self.rank,
                f"init_rank {self.first_rank} is below rank {self.rank}",
            ),
            (
                min(shares) >= 0 and sum(shares) < 1,
                "initial_share and final_share are parts of all steps",
            ),
            (self.interval >= 1, "interval is a number of steps, at least 1"),
            (
                0 < self.beta1 < 1 and 0 < self.beta2 < 1,
                "beta1 and beta2 are in (0, 1)",
            ),
            (self.orthogonality >= 0, "orthogonality is a weight, at least 0"),
        ):
            if not right:
                raise AdapterError(f"AdaLoRA: {what}")

    @property
    def first_rank(self) -> int:
        """The triplets of a matrix in the beginning."""
        return -(-3 * self.rank // 2) if self.init_rank is None else self.init_rank

    def install(self, model: nn.Module) -> None:
        wrap_sites(model, self, TripletChange, init_rank=self.first_rank)

    def count(self, model: nn.Module) -> int:
        """Sum of init_rank * (in + out + 1) over the adapted matrices: pruned triplets
        train on."""
        return sum(
            self.first_rank * (change.inputs + change.outputs + 1)
            for change in changes(model)
        )

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        begins, ends = self._pruned(total_steps)
        if begins >= ends:
            raise AdapterError(
                f"initial_share and final_share leave none of {total_steps} steps"
            )
        for change in changes(model):
            change.total_steps, change.gathered = total_steps, {}

    def _pruned(self, total_steps: int) -> tuple[int, int]:
        """The steps after which the budget begins to fall, and has fallen."""
        return round(self.initial_share * total_steps), total_steps - round(
            self.final_share * total_steps
        )

    def budget(self, step: int, total_steps: int, matrices: int) -> int | None:
        """The triplets of all matrices that are left after a step (counted from 0, as
        in the published code); None where none is pruned.

        It falls with the cube of the steps left (equation 12), each `interval` steps;
        in the last part each step prunes, as in peft (in the published code from that
        part's second step on)."""
        begins, ends = self._pruned(total_steps)
        first, last = self.first_rank * matrices, self.rank * matrices
        if step >= ends:
            return last
        if step <= begins or step % self.interval:
            return None
        left = 1 - (step - begins) / (ends - begins)
        return int((first - last) * left**3 + last)

    def penalty(self, model: nn.Module) -> Tensor | None:
        factors = [
            factor for change in changes(model) for factor in (change.A, change.B.T)
        ]
        return off_orthogonal(factors) * self.orthogonality

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        every, now = list(changes(model)), step - 1
        total, first = every[0].total_steps, self.first_rank * len(every)
        if not total:
            raise AdapterError(
                "AdaLoRA: before_training, with the number of steps, comes first"
            )
        if now < self._pruned(total)[1]:
            for change in every:
                change.gather(self.beta1, self.beta2)
        left = self.budget(now, total, len(every))
        if left is None or left >= first:
            return
        scores = [change.scores() for change in every]
        pruned = torch.cat(scores).sort().values[first - left - 1]
        for change, score in zip(every, scores, strict=True):
            change.E.masked_fill_((score <= pruned)[:, None], 0.0)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            key.replace("/", f"/{i}."): tensor
            for i, change in enumerate(changes(model))
            for key, tensor in change.gathered.items()
        }

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        every = list(changes(model))
        for key, tensor in state.items():
            kind, number, name = key.replace("/", ".").split(".")
            change = every[int(number)]
            change.gathered[f"{kind}/{name}"] = tensor.to(change.E.device)


def off_orthogonal(factors: Iterable[Tensor]) -> Tensor:
    """The mean distance of F F^T from the identity over factors F (r, n) (equation
    4)."""
    grams = [factor @ factor.T for factor in factors]
    off = [
        torch.linalg.norm(g - torch.eye(len(g), device=g.device, dtype=g.dtype))
        for g in grams
    ]
    return torch.stack(off).mean()
