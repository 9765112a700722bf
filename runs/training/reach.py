"""How far the learning rates of a run can carry a trained number at most."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from runs.record.configuration import TrainConfig
from runs.record.steps import count_warmup_steps, rate_factor
from runs.run.definition import Run

#: Adam's first beta, which is the optimizer's default.
BETA1 = 0.9


class RateReach(NamedTuple):
    """How far a trained number can move at most.

    constant: if its gradient stays the same, which is the sum of the learning rates.
    adam: whatever its gradients are."""

    constant: float
    adam: float


def factors_of(train: TrainConfig, total: int) -> list[float]:
    """What the learning rates are multiplied by at each step, from the warm-up and the
    schedule. total: the number of steps."""
    warmup = count_warmup_steps(train, total)
    return [
        rate_factor(step, train["schedule"], warmup, total) for step in range(total)
    ]


def reach_of(rates: Sequence[float], beta2: float) -> RateReach:
    """How far a number can move with these learning rates, one for each step. (In the
    code, `geometric` is the sum over k, and `square` is c_t^2 without the divisor (1 - b1^t)^2.)

    The bound follows from Cauchy and Schwarz: at step t Adam moves a number by at most
    lr_t c_t, where c_t^2 = (1 - b1)^2 (1 - b2^t) / ((1 - b2) (1 - b1^t)^2) times the
    sum over k < t of (b1^2 / b2)^k. With beta2 = 0 the second moment is the last
    gradient's square alone, and there is no bound."""
    if not beta2:
        return RateReach(sum(rates), math.inf)
    ratio = BETA1**2 / beta2
    bound = geometric = 0.0
    for step, rate in enumerate(rates, 1):
        geometric = 1 + ratio * geometric
        square = (1 - BETA1) ** 2 * (1 - beta2**step) / (1 - beta2) * geometric
        bound += rate * math.sqrt(square) / (1 - BETA1**step)
    return RateReach(sum(rates), bound)


def reach_of_run(run: Run, steps: int) -> RateReach:
    """The reach of a run's adapter, or of the head if nothing else trains."""
    train = run.config["train"]
    trains_head_alone = run.method["kind"] == "head"
    rate = train["lr_head"] if trains_head_alone else train["lr"]
    rates = [rate * factor for factor in factors_of(train, steps)]
    return reach_of(rates, train["adam_beta2"])
