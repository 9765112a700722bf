"""An estimate of what a run can change at most, before its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from runs.record.schema import Reach
from runs.run.definition import epoch_batches
from runs.training.context import Context
from runs.training.objective import Objective
from runs.training.reach import factors_of, reach_of

#: How many batches' gradients are compared: the first ones of the run.
COMPARED_BATCHES = 4
#: A run warns if its effect is smaller than this, by the objective's unit.
SMALLEST_EFFECT = {"points of mean reward": 1.0, "nats": 0.02}


def estimate_effect(
    context: Context,
    objective: Objective,
    groups: Sequence[Mapping[str, Any]],
    steps: int,
) -> Reach:
    """How far the trained numbers can move, and what that changes to first order: a
    group's learning rates, added up over all steps, times the slope that the first
    batches give it (`Moments.slope`), added up over the groups.

    Values and generators stay as they are; the caller clears the gradients afterwards.

    Args:
        groups: the groups of the optimizer, with the `initial_lr` that `set_rates`
            adds.
        steps: the number of all steps of the run.

    Returns:
        The record's `reach`."""
    train = context.settings
    task = context.task
    first_epoch = epoch_batches(
        task.lengths("train"),
        train["effective_batch"],
        context.config["data_seed"],
        epoch=0,
        block=task.block,
    )
    device = context.accelerator.device
    gpus = [device] if device.type == "cuda" else []
    moments_by_group = [Moments(group["params"]) for group in groups]
    # fork_rng restores the generators of the CPU and of these GPUs
    with torch.random.fork_rng(gpus), context.accelerator.autocast():
        for rows in first_epoch[:COMPARED_BATCHES]:
            context.raw_model.zero_grad()
            objective.add_gradient(rows)
            for moments in moments_by_group:
                moments.add()
    factors = factors_of(train, steps)
    effect = 0.0
    for group, moments in zip(groups, moments_by_group, strict=True):
        effect += group["initial_lr"] * sum(factors) * moments.slope()
    reach = reach_of([train["lr"] * factor for factor in factors], train["adam_beta2"])
    unit, scale = objective.unit
    return {
        "constant": three_digits(reach.constant),
        "adam": three_digits(reach.adam),
        # the estimate is negative where noise outweighs what the batches agree on
        "effect": three_digits(scale * max(effect, 0.0)),
        "unit": unit,
    }


class Moments:
    """Sums over batches of the gradients of some parameters, and of their squares. They
    take the memory that Adam's own moments take afterwards."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        self.squares = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        self.batches = 0

    def add(self) -> None:
        """Adds the gradients that the parameters have."""
        self.batches += 1
        for parameter, total, square in zip(
            self.parameters, self.sums, self.squares, strict=True
        ):
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                total += gradient
                square += gradient.square()

    def slope(self) -> float:
        """The change of the objective for each unit of learning rate that Adam spends.

        Adam moves a number by lr m / sqrt(v): on average by lr times the mean gradient
        over the root of its mean square. So the change is the squared mean gradient
        over that root, added up over the numbers. It is small where batches disagree
        and Adam moves back and forth. The mean product of two batches estimates the
        squared mean without their noise; of one batch there is only the square."""
        count = self.batches
        change = 0.0
        for total, square in zip(self.sums, self.squares, strict=True):
            mean_square = square / count
            squared_mean = mean_square
            if count > 1:
                squared_mean = (total.square() - square) / (count * (count - 1))
            root = mean_square.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            change += float((squared_mean / root).double().sum())
        return change


def three_digits(value: float) -> float:
    """The value rounded to three digits. An estimate is not more precise, and the
    digits after them differ between sizes of micro-batches."""
    return float(f"{value:.3g}")


def effect_note(reach: Reach) -> str | None:
    """A warning for a run that can change hardly anything; None for other runs."""
    effect, unit = reach["effect"], reach["unit"]
    if effect >= SMALLEST_EFFECT[unit]:
        return None
    if not effect:  # 0 stands for an estimate below it, which is noise
        return (
            "the gradients of the first batches do not agree on anything, so what this "
            "run can change is not known. By reward, look whether prompts have a signal"
        )
    return (
        f"to first order this run can change {effect:g} {unit} at most: its rates add "
        f"up to {reach['constant']:g} for each trained number. Try a higher train.lr, "
        "or more steps"
    )
