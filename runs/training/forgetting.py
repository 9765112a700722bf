"""What a language model forgets: its cross-entropy on the task's fixed text (tasks/forgetting.py), as the
base model and as it is after training."""

import math
from typing import Any

import torch

import vera
from runs.training.context import Context


def text_loss(context: Context) -> float | None:
    """The cross-entropy of the model's current values on the fixed text, in nats a token; None where it is
    not finite."""
    context.report({"phase": "reading the fixed text"})
    model = context.raw_model
    model.eval()
    with torch.no_grad(), vera.unchanged(model), context.accelerator.autocast():
        loss = float(context.task.fixed_text.loss(model))
    return loss if math.isfinite(loss) else None


def base_loss(context: Context) -> float | None:
    """The same of the base model: with the adapter switched off. Values that a method trains in place are not
    switched off, so that it is measured before they train. None for a task without such a text."""
    if not context.task.fixed_text:
        return None
    # peft's switch also takes the gradients away, and gives them back to all adapters
    flags = [(parameter, parameter.requires_grad) for parameter in context.raw_model.parameters()]
    vera.disable(context.raw_model)
    try:
        return text_loss(context)
    finally:
        vera.disable(context.raw_model, False)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def forgetting(context: Context, before: float | None) -> dict[str, Any]:
    """The record's `forgetting`, with the model's values of now after training. before: of `base_loss`. Empty
    for a task without such a text."""
    if not context.task.fixed_text:
        return {}
    found = {**context.task.fixed_text.about(), "before": before, "after": text_loss(context)}
    after, change = found["after"], "not a finite number"
    if before is not None and after is not None:
        change = f"{after - before:+.4f} nats a token ({before:.4f} before, {after:.4f} after)"
    print(f"forgetting: {change}, on {found['tokens']} tokens of the text {found['text']}", flush=True)
    return found
