"""AdaLoRA: h = W0 x + (alpha / r) P (E * (Q x)), after the shape of a singular value
decomposition, of which training prunes the least important singular values (Zhang et
al. 2023, arXiv 2303.10512).

Each adapted matrix starts with r triplets: a column of P, a value of E, a row of Q. As
training goes on, a budget for all matrices together falls from r to `rank` of each on
average, and the triplets of least importance lose their value of E. A penalty keeps P
and Q near orthogonal. The names A (Q), E and B (P), the start, the scale and the
schedule are those of QingruZhang/AdaLoRA, loralib/adalora.py, and of peft."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.methods.layers import layer_changes
from vera.methods.lora import LowRankChange, placement_of, wrap_sites


class TripletChange(LowRankChange):
    """One matrix's A (r, in) and B (out, r), from N(0, 0.02^2), and E (r, 1), zeros."""

    def __init__(self, base: Any, inputs: int, outputs: int, method: "AdaLoRA") -> None:
        rank = method.first_rank
        # The 1e-5 is in the published code
        super().__init__(inputs, outputs, method.alpha / (rank + 1e-5), method.dropout)
        placement = placement_of(base)
        self.A = nn.Parameter(torch.empty(rank, inputs, **placement).normal_(std=0.02))
        self.E = nn.Parameter(torch.zeros(rank, 1, **placement))
        self.B = nn.Parameter(torch.empty(outputs, rank, **placement).normal_(std=0.02))
        #: How many optimizer steps the run has; 0 before `before_training`.
        self.total_steps = 0
        #: How much the loss depends on each entry of A, E and B ("sensitivity/A" and so
        #: on), and how much that varies ("uncertainty/A"), both smoothed over the steps.
        self.statistics: dict[str, Tensor] = {}

    def factors(self) -> tuple[Tensor, ...]:
        return self.E * self.A, self.B

    @torch.no_grad()
    def update_statistics(self, beta1: float, beta2: float) -> None:
        """Updates the running averages of sensitivity (by beta1) and uncertainty (by beta2)
        with a step's gradients (the paper's equations 8 to 10)."""
        for name, parameter in self.named_parameters():
            gradient = cast(Tensor, parameter.grad)
            importance = (parameter * gradient).abs()
            zeros = torch.zeros_like(parameter)
            sensitivity = self.statistics.get(f"sensitivity/{name}", zeros)
            sensitivity = beta1 * sensitivity + (1 - beta1) * importance
            uncertainty = self.statistics.get(f"uncertainty/{name}", zeros)
            deviation = (importance - sensitivity).abs()
            uncertainty = beta2 * uncertainty + (1 - beta2) * deviation
            self.statistics[f"sensitivity/{name}"] = sensitivity
            self.statistics[f"uncertainty/{name}"] = uncertainty

    def scores(self) -> Tensor:
        """The importance of each triplet, (r,): that of its value of E, and the means
        over its row of A and its column of B (equation 7)."""
        row_importance = self._importance("A").mean(dim=1)
        column_importance = self._importance("B").mean(dim=0)
        value_importance = self._importance("E")[:, 0]
        return value_importance + (row_importance + column_importance)

    def _importance(self, name: str) -> Tensor:
        """Sensitivity times uncertainty of each entry of A, E or B (equation 11)."""
        sensitivity = self.statistics[f"sensitivity/{name}"]
        return sensitivity * self.statistics[f"uncertainty/{name}"]


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
        shares = (self.initial_share, self.final_share)
        complaint = None
        if self.first_rank < self.rank:
            complaint = f"init_rank {self.first_rank} is below rank {self.rank}"
        elif min(shares) < 0 or sum(shares) >= 1:
            complaint = "initial_share and final_share are parts of all steps"
        elif self.interval < 1:
            complaint = "interval is a number of steps, at least 1"
        elif not (0 < self.beta1 < 1 and 0 < self.beta2 < 1):
            complaint = "beta1 and beta2 are in (0, 1)"
        elif self.orthogonality < 0:
            complaint = "orthogonality is a weight, at least 0"
        if complaint:
            raise AdapterError(f"AdaLoRA: {complaint}")

    @property
    def first_rank(self) -> int:
        """The triplets of a matrix in the beginning."""
        if self.init_rank is not None:
            return self.init_rank
        return math.ceil(1.5 * self.rank)

    def install(self, model: nn.Module) -> None:
        wrap_sites(model, self, TripletChange, init_rank=self.first_rank)

    def count(self, model: nn.Module) -> int:
        """Sum of init_rank * (in + out + 1) over the adapted matrices: pruned triplets
        train on."""
        values_per_rank = sum(
            change.inputs + change.outputs + 1 for change in layer_changes(model)
        )
        return self.first_rank * values_per_rank

    def before_training(self, model: nn.Module, total_steps: int) -> None:
        begin, end = self._pruning_steps(total_steps)
        if begin >= end:
            raise AdapterError(
                f"initial_share and final_share leave none of {total_steps} steps"
            )
        for change in layer_changes(model):
            change.total_steps = total_steps
            change.statistics = {}

    def _pruning_steps(self, total_steps: int) -> tuple[int, int]:
        """The step after which the budget begins to fall, and the one from which on it
        stays at its last value. Steps are counted from 0."""
        begin = round(self.initial_share * total_steps)
        return begin, total_steps - round(self.final_share * total_steps)

    def budget(self, step: int, total_steps: int, matrices: int) -> int | None:
        """The triplets of all matrices that are left after a step.

        The number falls with the cube of the steps left (equation 12), each `interval`
        steps. In the last part each step prunes, as in peft (in the published code from
        that part's second step on).

        Args:
            step: Counted from 0, as in the published code.
            total_steps: Of the run.
            matrices: How many matrices are adapted.

        Returns:
            Their number; None after a step that prunes none.
        """
        begin, end = self._pruning_steps(total_steps)
        first_budget = self.first_rank * matrices
        final_budget = self.rank * matrices
        if step >= end:
            return final_budget
        if step <= begin or step % self.interval:
            return None
        share_left = 1 - (step - begin) / (end - begin)
        return int((first_budget - final_budget) * share_left**3 + final_budget)

    def penalty(self, model: nn.Module) -> Tensor | None:
        factors = []
        for change in layer_changes(model):
            factors += [change.A, change.B.T]
        return distance_from_orthogonal(factors) * self.orthogonality

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        adapted = list(layer_changes(model))
        steps_done = step - 1  # The published code counts from 0
        total_steps = adapted[0].total_steps
        if not total_steps:
            raise AdapterError(
                "AdaLoRA: before_training, with the number of steps, comes first"
            )
        _, end = self._pruning_steps(total_steps)
        # As in the published code, the last part prunes by the statistics before it
        if steps_done < end:
            for change in adapted:
                change.update_statistics(self.beta1, self.beta2)
        triplets = self.first_rank * len(adapted)
        budget = self.budget(steps_done, total_steps, len(adapted))
        if budget is None or budget >= triplets:
            return  # this step prunes none
        # All matrices share the budget: one limit for the scores of all
        scores = [change.scores() for change in adapted]
        pruned = triplets - budget
        highest_pruned_score = torch.cat(scores).sort().values[pruned - 1]
        for change, own_scores in zip(adapted, scores, strict=True):
            is_pruned = own_scores <= highest_pruned_score
            change.E.masked_fill_(is_pruned[:, None], 0.0)

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The statistics of all adapted matrices, which are numbered from 0 in the model's
        order: "sensitivity/3.A" is the sensitivity of the fourth matrix's A."""
        state = {}
        for number, change in enumerate(layer_changes(model)):
            for key, tensor in change.statistics.items():
                statistic, _, name = key.partition("/")
                state[f"{statistic}/{number}.{name}"] = tensor
        return state

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        adapted = list(layer_changes(model))
        for key, tensor in state.items():
            statistic, _, numbered_name = key.partition("/")
            number, _, name = numbered_name.partition(".")
            change = adapted[int(number)]
            change.statistics[f"{statistic}/{name}"] = tensor.to(change.E.device)


def distance_from_orthogonal(factors: Iterable[Tensor]) -> Tensor:
    """The mean distance of F F^T from the identity (equation 4).

    Args:
        factors: Matrices F, (rank, n) each.

    Returns:
        A scalar: the mean Frobenius norm of F F^T - 1.
    """
    distances = []
    for factor in factors:
        gram = factor @ factor.T
        identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
        distances.append(torch.linalg.norm(gram - identity))
    return torch.stack(distances).mean()
