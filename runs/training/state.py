"""How long a run is, and what it has learnt so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runs.errors import UserError

#: The columns of a curve: a row for each evaluation.
CURVE = ("epoch", "step", "train_loss", "dev_loss", "metric", "metric_select", "metric_report", "lr")


@dataclass
class State:
    """What a run has learnt so far: plain values, which a checkpoint keeps."""

    keep: str  # with which `keep` the run was begun
    epoch: int = 0  # the next one, from 0
    step: int = 0
    loss_sum: float = 0.0  # since the last evaluation
    rows: float = 0  # what it is a sum over: rows, or a language model's tokens
    curve: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in CURVE})
    predictions: list[str] = field(default_factory=list)  # a hash of each evaluation's
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0, "decode": 0.0})
    units: int = 0  # tokens or images
    status: str = "done"
    error: str | None = None
    scaler: dict[str, Any] | None = None  # fp16's

    def diverge(self, why: str) -> None:
        """A result, too: no other try would end otherwise."""
        self.status, self.error = "diverged", why


@dataclass(frozen=True)
class Plan:
    """How many epochs and steps a run has, and when it evaluates."""

    epochs: int
    steps_per_epoch: int
    total_steps: int
    batch: int  # rows of a step
    dev_rows: int
    evaluate_every: int  # epochs

    @classmethod
    def of(cls, train: Mapping[str, Any], rows: int, dev_rows: int, trains: bool) -> "Plan":
        """train: the settings of training. trains: whether anything does; without it, there are no steps."""
        if dev_rows < 2:
            raise UserError(
                "the dev set has 1 row: two are needed, since an epoch is also chosen on each half of it"
            )
        batch = train["effective_batch"]
        per_epoch = math.ceil(rows / batch)
        whole = per_epoch * train["epochs"] if trains else 0
        total = min(whole, train["max_steps"] or whole)
        return cls(math.ceil(total / per_epoch), per_epoch, total, batch, dev_rows, train["evaluate_every"])

    def evaluates(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends in an evaluation."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    def seconds_left(self, state: State) -> float:
        """At the pace so far. Until the first evaluation, a row of it is taken for a third of one that is
        trained on."""
        per_step, evaluated = state.seconds["train"] / max(state.step, 1), len(state.curve["metric"])
        per_evaluation = per_step / self.batch * self.dev_rows / 3
        if evaluated:
            per_evaluation = state.seconds["evaluate"] / evaluated
        evaluations = sum(map(self.evaluates, range(state.epoch, self.epochs)))
        return per_step * (self.total_steps - state.step) + per_evaluation * evaluations
