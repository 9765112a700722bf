"""An estimate of what a run can change at most, before its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from runs.run.definition import epoch_batches
from runs.training.context import Context
from runs.training.objective import Objective
from runs.training.reach import factors_of, reach_of

#: The first batches, over which the gradient is averaged.
BATCHES = 2
#: Below this, in points of mean reward or in nats, a run warns.
SMALLEST_EFFECT = {"points of mean reward": 1.0, "nats": 0.02}


def estimate_effect(
    context: Context,
    objective: Objective,
    groups: Sequence[Mapping[str, Any]],
    steps: int,
) -> dict[str, Any]:
    """How far the trained numbers can move, and what that changes to first order: the
    rates' sum times the sum of the gradient's absolute values on the first batches.

    Values and generators stay as they are; the gradients have to be cleared.

    Args:
        groups: the optimizer's.
        steps: all steps of the run.

    Returns:
        The record's `reach`."""
    train, task = context.settings, context.task
    lengths, seed = task.lengths("train"), context.config["data_seed"]
    all_batches = epoch_batches(lengths, train["effective_batch"], seed, 0, task.block)
    batches = all_batches[:BATCHES]
    device = context.accelerator.device
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus), context.accelerator.autocast():
        for rows in batches:
            objective.add_gradient(rows, len(batches))
    factors = factors_of(train, steps)
    effect = 0.0
    for group in groups:
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        size = sum(float(gradient.abs().sum()) for gradient in gradients)
        effect += group["initial_lr"] * sum(factors) * size
    reach = reach_of([train["lr"] * factor for factor in factors], train["adam_beta2"])
    unit, scale = objective.unit
    return {
        "constant": rounded(reach.constant),
        "adam": rounded(reach.adam),
        "effect": rounded(scale * effect),
        "unit": unit,
    }


def rounded(value: float) -> float:
    """To three digits: an estimate has no more, and rounding differs between
    micro-batches."""
    return float(f"{value:.3g}")


def effect_note(reach: dict[str, Any]) -> str | None:
    """A warning for a run that can change hardly anything; None for others."""
    effect, unit = reach["effect"], reach["unit"]
    if effect >= SMALLEST_EFFECT[unit]:
        return None
    return (
        f"to first order this run can change {effect:g} {unit} at most: its rates add "
        f"up to {reach['constant']:g} for each trained number. Try a higher train.lr, "
        "or more steps"
    )
