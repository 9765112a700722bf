"""How a batch becomes a loss: by the likelihood of its rows, or by reward. Everything
else of the training loop is the same for both."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from runs.training.context import Context
from runs.training.expected_reward import ExpectedReward
from runs.training.reward import Reward


class Objective(Protocol):
    """What the training loop asks of an objective.

    has_signal: whether the step that has begun can have a gradient."""

    has_signal: bool

    def begin(self, rows: list[int], step: int) -> Sequence[Any]:
        """What a step trains on, whose micro-batches are parts of it. rows: indices of
        training rows. step: counted from 0."""

    def share(self, part: Sequence[Any], step_rows: Sequence[Any]) -> float:
        """The factor of a micro-batch's loss. The weighted losses add up to the loss of
        the step."""

    def loss(self, model: Any, part: Sequence[Any]) -> Tensor:
        """The loss of a micro-batch, a scalar."""

    def add_gradient(self, rows: list[int]) -> None:
        """Adds the gradient of what the objective is about on a batch, at the values of
        now and without dropout: of the mean reward, or of the loss."""

    @property
    def unit(self) -> tuple[str, float]:
        """In what a change of this is measured, and how many of it are 1."""

    def finish(self) -> dict[str, float]:
        """What a step has measured besides its loss, by name; the same on every
        process."""


class Likelihood:
    """The task's own loss on its training rows."""

    has_signal = True

    def __init__(self, context: Context) -> None:
        self.context = context
        self.task = context.task

    def begin(self, rows: list[int], step: int) -> Sequence[int]:
        self.context.raw_model.train()
        return rows

    def share(self, part: Sequence[int], step_rows: Sequence[int]) -> float:
        return self.task.weight("train", part) / self.task.weight("train", step_rows)

    def loss(self, model: Any, part: Sequence[int]) -> Tensor:
        loss: Tensor = self.task.loss(model, self.context.batch("train", part))
        return loss

    def add_gradient(self, rows: list[int]) -> None:
        model = self.context.raw_model.eval()
        size = self.context.config["micro_batch"] or len(rows)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            loss = self.loss(model, part) * self.share(part, rows)
            torch.autograd.backward(loss)

    @property
    def unit(self) -> tuple[str, float]:
        return "nats", 1.0

    def finish(self) -> dict[str, float]:
        return {}


def make_objective(context: Context, trains: bool) -> Objective:
    """The objective of a run. trains: whether it trains anything; without, only the
    likelihood is defined."""
    if "reward" not in context.config or not trains:
        return Likelihood(context)
    if context.config["reward"].get("expected"):
        return ExpectedReward(context)
    return Reward(context, context.folder)
