"""The policy gradient of training by reward: pure functions on tensors.

Names and definitions are those of TRL's GRPOTrainer (1.x), whose gradients a test
compares with ours. A step makes one update on the completions that it has sampled, so
the ratio of the new to the old probabilities is 1 and is never clipped."""

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
Loss = Literal["grpo", "dapo", "dr_grpo"]
#: Added to a standard deviation before a division by it.
STD_FLOOR = 1e-4


def group_advantages(rewards: Tensor, scale: Scale) -> Tensor:
    """The advantage of each completion over the others of its prompt.

    Args:
        rewards: (prompts, samples), of the whole step.
        scale: what the differences from the group's mean are divided by: the standard
            deviation of the group or, for batch, of all raw rewards (both with Bessel's
            correction), or nothing.

    Returns:
        (prompts, samples)."""
    advantages = rewards - rewards.mean(1, keepdim=True)
    if scale == "group":
        return advantages / (rewards.std(1, keepdim=True) + STD_FLOOR)
    if scale == "batch":
        return advantages / (rewards.std() + STD_FLOOR)
    return advantages


def completion_weights(lengths: Tensor, loss: Loss, max_length: int) -> Tensor:
    """The weight of each token of a completion in the step's loss. It is the same for
    all tokens of a completion, so micro-batches of any size add up to the loss.

    Args:
        lengths: tokens of each completion (completions,), of the whole step. They are
            floats, and the weights get their dtype.
        loss: grpo, the mean over completions of the mean over their tokens; dapo, the
            sum divided by all tokens of the step; dr_grpo, the sum divided by
            completions x max_length.
        max_length: the tokens that a completion may have.

    Returns:
        (completions,)."""
    completions = len(lengths)
    if loss == "grpo":
        return 1 / (lengths * completions)
    if loss == "dapo":
        return torch.full_like(lengths, 1 / float(lengths.sum()))
    return torch.full_like(lengths, 1 / (completions * max_length))


def k3_divergence(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """Schulman's estimate k3 of the divergence from the reference model, by token: never
    negative, and without bias (http://joschu.net/blog/kl-approx.html)."""
    difference = reference_log_p - log_p
    return difference.exp() - difference - 1


def policy_loss(
    log_p: Tensor,
    advantages: Tensor,
    weights: Tensor,
    kl: float = 0.0,
    reference_log_p: Tensor | None = None,
) -> Tensor:
    """The loss of sampled tokens, a scalar.

    Its value is that of TRL. On-policy it says little: with grpo it is 0, since a
    group's advantages add up to 0. Its gradient is what trains.

    Args:
        log_p: log-probabilities of the tokens at the sampling temperature (tokens,).
        advantages: of each token's completion (tokens,).
        weights: of each token, from `completion_weights` (tokens,).
        kl: the factor of the divergence from the reference model.
        reference_log_p: the reference model's log-probabilities (tokens,)."""
    # 1 in value, with the gradient of log_p
    ratios = (log_p - log_p.detach()).exp()
    losses = -advantages * ratios
    if reference_log_p is not None:
        losses = losses + kl * k3_divergence(log_p, reference_log_p)
    return (losses * weights).sum()


def token_entropies(log_probabilities: Tensor) -> Tensor:
    """The entropy of each row's distribution over the vocabulary, in nats (rows,)."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1)
