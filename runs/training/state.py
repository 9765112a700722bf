"""The length of a run, and its state during training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runs.errors import UserError
from runs.record import Metric

#: The columns of a curve: a row for each evaluation.
CURVE = ("epoch", "step", "train_loss", "dev_loss", "metric", "metric_select", "metric_report", "lr")


@dataclass
class State:
    """The state of training, as plain values that a checkpoint keeps beside the tensors."""

    keep: str  # this and the next as the configuration had them when the run began
    adapter_precision: str = "fp32"
    epoch: int = 0  # the current one, from 0
    step: int = 0
    loss_sum: float = 0.0  # since the last evaluation
    rows: float = 0  # that loss_sum is over; for language models, tokens
    curve: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in CURVE})
    predictions: list[str] = field(default_factory=list)  # a hash of each evaluation's
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluate": 0.0})
    units: int = 0  # tokens or images
    status: str = "done"
    error: str | None = None
    scaler: dict[str, Any] | None = None  # fp16's
    conditions: dict[str, Any] = field(default_factory=dict)  # of the attempt that trains now
    resumed: list[str] = field(default_factory=list)  # where an attempt had others than the one before

    def end_epoch(self, point: Mapping[str, Any], predictions: str) -> None:
        """Adds an evaluation to the curve, with the hash of its predictions."""
        for key, value in point.items():
            self.curve[key].append(value)
        self.predictions.append(predictions)
        self.epoch, self.loss_sum, self.rows = self.epoch + 1, 0.0, 0

    def diverge(self, why: str) -> None:
        """Ends the run as diverged, which is a result: another attempt would end the same way."""
        self.status, self.error = "diverged", why


@dataclass(frozen=True)
class Plan:
    """The number of a run's epochs and steps, and when it evaluates."""

    epochs: int
    steps_per_epoch: int
    total_steps: int
    batch: int  # rows of a step
    dev_rows: int
    evaluate_every: int  # epochs

    @classmethod
    def of(cls, train: Mapping[str, Any], rows: int, dev_rows: int, trains: bool) -> "Plan":
        """train: the configuration's settings. trains: whether there are trainable parameters; without them
        there are no steps. Raises UserError for a dev set of one row."""
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
        """Whether an epoch, counted from 0, ends with an evaluation."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    def seconds_left(self, state: State) -> float:
        """The time left, at the pace so far. Before the first evaluation, evaluating a row is assumed to take
        a third of the time of training on it."""
        per_step, evaluations = state.seconds["train"] / max(state.step, 1), len(state.curve["metric"])
        per_evaluation = per_step / self.batch * self.dev_rows / 3
        if evaluations:
            per_evaluation = state.seconds["evaluate"] / evaluations
        to_come = sum(map(self.evaluates, range(state.epoch, self.epochs)))
        return per_step * (self.total_steps - state.step) + per_evaluation * to_come

    def progress(self, state: State, metric: Metric) -> dict[str, Any]:
        """Where a run stands, as the display and the tracker take it."""
        values = state.curve["metric"]
        return {
            "epoch": math.ceil(state.step / self.steps_per_epoch),
            "epochs": self.epochs,
            "step": state.step,
            "steps": self.total_steps,
            "metric_name": metric.name,
            "scale": metric.scale,
            "metric": values[-1] if values else None,
            "best": values[metric.best(values)] if values else None,
            "pace": state.units / max(state.seconds["train"], 1e-9),
            "seconds_left": self.seconds_left(state),
        }
