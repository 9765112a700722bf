"""AdaLoRA: h = W0 x + (alpha / r) P (E * (Q x)), after the shape of a singular value decomposition, of which
training prunes the least important singular values (Zhang et al. 2023, arXiv 2303.10512).

Each adapted matrix starts with r triplets: a column of P, a value of E, a row of Q. As training goes on, a
budget for all matrices together falls from r to `rank` of each on average, and the triplets of least
importance lose their value of E. A penalty keeps P and Q near orthogonal. The names A (Q), E and B (P), the
start, the scale and the schedule are those of QingruZhang/AdaLoRA, loralib/adalora.py, and of peft."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.allocation import Allocation, RankBudget, off_orthogonal
from vera.methods.contract import Method
from vera.methods.layers import Change, adapter_dtype, changes, widest, wrap
from vera.methods.settings import check_rank
from vera.sites import find_sites


class TripletChange(Change):
    """One matrix's A (r, in) and B (out, r), from N(0, 0.02^2), and E (r, 1), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "AdaLoRA") -> None:
        super().__init__()
        self.inputs, self.outputs, rank = inputs, outputs, method.first_rank
        at: Any = {"device": base.weight.device, "dtype": adapter_dtype(base)}
        self.A = nn.Parameter(torch.empty(rank, inputs, **at).normal_(std=0.02))
        self.E = nn.Parameter(torch.zeros(rank, 1, **at))
        self.B = nn.Parameter(torch.empty(outputs, rank, **at).normal_(std=0.02))
        self.scale = method.alpha / (rank + 1e-5)  # as in the published code
        self.dropout = nn.Dropout(method.dropout)
        #: Of all changes: the first one holds it. `before_training` replaces it.
        self.allocation = Allocation(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(self.dropout(x), self.E * self.A), self.B)

    def weight(self) -> Tensor:
        return self.scale * (self.B @ (self.E * self.A))


@dataclass(frozen=True)
class AdaLoRA(Method, kind="adalora"):
    """Trains triplets for each adapted matrix, and prunes them to a budget.

    rank: triplets of a matrix that are left in the end, on average. init_rank: in the beginning; None is half
    as many again, as in the paper. alpha: the change is scaled by alpha / init_rank. dropout: on the input of
    the adapter. initial_share, final_share: of the run's steps, before the budget begins to fall, and after
    it has fallen, when the same triplets stay pruned (the paper's t_i and t_f are these in steps). interval:
    steps between two prunings; above 1 it needs a final_share above 0, or what trains after the last pruning
    stays. beta1, beta2: of sensitivity and uncertainty. orthogonality: the weight of the
    penalty."""

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
            (self.first_rank >= self.rank, f"init_rank {self.first_rank} is below rank {self.rank}"),
            (min(shares) >= 0 and sum(shares) < 1, "initial_share and final_share are parts of all steps"),
            (self.interval >= 1, "interval is a number of steps, at least 1"),
            (0 < self.beta1 < 1 and 0 < self.beta2 < 1, "beta1 and beta2 are in (0, 1)"),
            (self.orthogonality >= 0, "orthogonality is a weight, at least 0"),
        ):
            if not right:
                raise AdapterError(f"AdaLoRA: {what}")

    @property
    def first_rank(self) -> int:
        """The triplets of a matrix in the beginning."""
        return -(-3 * self.rank // 2) if self.init_rank is None else self.init_rank

    def install(self, model: nn.Module) -> None:
        targets = find_sites(model, self.sites)
        check_rank("init_rank", self.first_rank, max(widest(model, targets)))
        wrap(model, targets, lambda path, block, base, n, out: TripletChange(base, n, out, self))

    def count(self, model: nn.Module) -> int:
        """Sum of init_rank * (in + out + 1) over the adapted matrices: pruned triplets train on."""
        return sum(self.first_rank * (change.inputs + change.outputs + 1) for change in changes(model))

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        begins, ends = round(self.initial_share * total_steps), round(self.final_share * total_steps)
        if begins + ends >= total_steps:
            raise AdapterError(f"initial_share and final_share leave none of {total_steps} steps")
        next(changes(model)).allocation = Allocation(total_steps)

    def penalty(self, model: nn.Module) -> Tensor | None:
        factors = [factor for change in changes(model) for factor in (change.A, change.B.T)]
        return off_orthogonal(factors) * self.orthogonality

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        of_model, now = list(changes(model)), step - 1
        of, total, count = of_model[0].allocation, of_model[0].allocation.total_steps, len(of_model)
        if not total:
            raise AdapterError("AdaLoRA: before_training, with the number of steps, comes first")
        shares = self.initial_share, self.final_share
        budget = RankBudget(self.first_rank * count, self.rank * count, *shares, self.interval)
        if now < budget.ends(total):
            of.gather(_parameters(model), self.beta1, self.beta2)
        left = budget.after(now, total)
        if left is None or left >= budget.first:
            return
        scores = [
            of.importance(f"{i}.E")[:, 0]
            + (of.importance(f"{i}.A").mean(dim=1) + of.importance(f"{i}.B").mean(dim=0))
            for i in range(count)
        ]
        pruned = torch.cat(scores).sort().values[budget.first - left - 1]
        for change, score in zip(of_model, scores, strict=True):
            change.E.masked_fill_((score <= pruned)[:, None], 0.0)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(next(changes(model)).allocation.state())

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        next(changes(model)).allocation.load(state, _parameters(model))


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those of all changes, by the number of the change and their name in it."""
    return {f"{i}.{n}": p for i, change in enumerate(changes(model)) for n, p in change.named_parameters()}
