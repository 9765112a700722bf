"""How a batch becomes a loss: by the likelihood of its rows, or by reward. Everything
else of the training loop is the same for both."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from runs.training.batches import batches_of
from runs.training.context import Context
from runs.training.expected_reward import ExpectedReward
from runs.training.reward import Reward


class Objective(Protocol):
    """What the training loop asks of an objective.

    Its items are what `begin` returns: row numbers, rows of sampled tokens, or prompts
    with the advantage of each token. has_signal: whether the step that has begun can
    have a gradient."""

    has_signal: bool

    def begin(self, rows: list[int], step: int) -> Sequence[Any]:
        """Prepares a step and returns its items, which the loop splits into
        micro-batches. rows: indices of training rows. step: counted from 0."""

    def share(self, micro_batch: Sequence[Any], items: Sequence[Any]) -> float:
        """The factor of a micro-batch's loss: with it the losses of a step's
        micro-batches add up to the loss of the step. items: all of the step."""

    def loss(self, model: Any, micro_batch: Sequence[Any]) -> Tensor:
        """The loss of a micro-batch, a scalar."""

    def add_gradient(self, rows: list[int]) -> None:
        """Adds the gradient of the mean reward, or of the loss, on a batch: at the
        current values, without dropout, and without a step."""

    @property
    def unit(self) -> tuple[str, float]:
        """The unit in which `estimate_effect` reports a change, and the factor that
        converts to it: a change of 1 in the mean reward is 100 points."""

    def finish(self) -> dict[str, float]:
        """Ends a step, and returns the metrics that it measured besides its loss, by
        name. They are the same on every process."""


class Likelihood:
    """The objective of supervised training, the task's own loss on its training rows;
    see Objective for its methods."""

    has_signal = True

    def __init__(self, context: Context) -> None:
        self.context = context
        self.task = context.task

    def begin(self, rows: list[int], step: int) -> Sequence[int]:
        self.context.raw_model.train()
        return rows

    def share(self, micro_batch: Sequence[int], items: Sequence[int]) -> float:
        weight = self.task.weight
        return weight("train", micro_batch) / weight("train", items)

    def loss(self, model: Any, micro_batch: Sequence[int]) -> Tensor:
        batch = self.context.batch("train", micro_batch)
        loss: Tensor = self.task.loss(model, batch)
        return loss

    def add_gradient(self, rows: list[int]) -> None:
        model = self.context.raw_model.eval()
        size = self.context.config["micro_batch"] or len(rows)
        for micro_batch in batches_of(rows, size):
            loss = self.loss(model, micro_batch) * self.share(micro_batch, rows)
            torch.autograd.backward(loss)

    @property
    def unit(self) -> tuple[str, float]:
        return "nats", 1.0

    def finish(self) -> dict[str, float]:
        return {}


def make_objective(context: Context, trains: bool) -> Objective:
    """The objective of a run. trains: whether anything trains. Where nothing does
    (method=none), the objective is the likelihood even if the run names a reward."""
    if "reward" not in context.config or not trains:
        return Likelihood(context)
    if context.config["reward"].get("expected"):
        return ExpectedReward(context)
    return Reward(context, context.folder)
