"""How many steps a run takes, when it evaluates, and its learning rates over them."""

import math
from dataclasses import dataclass

from runs.record.configuration import TrainConfig


@dataclass(frozen=True)
class StepPlan:
    """The number of a run's epochs and steps, and when it evaluates.

    epochs: how many begin, the last one perhaps cut short by train.max_steps. batch: rows
    of a step. evaluate_every: it evaluates after so many epochs. evaluate_steps: if this
    is set, it evaluates after so many steps instead. It always does at its end."""

    epochs: int
    steps_per_epoch: int
    total_steps: int
    batch: int
    evaluate_every: int
    evaluate_steps: int | None

    @classmethod
    def of_run(cls, train: TrainConfig, rows: int, trains: bool = True) -> "StepPlan":
        """The plan of these settings of training on so many rows. trains: False where
        no parameter is trained; then there are no steps."""
        batch = train["effective_batch"]
        steps_per_epoch = math.ceil(rows / batch)
        total_steps = steps_per_epoch * train["epochs"] if trains else 0
        max_steps = train.get("max_steps")
        if max_steps:
            total_steps = min(total_steps, max_steps)
        return cls(
            epochs=math.ceil(total_steps / steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            batch=batch,
            evaluate_every=train.get("evaluate_every") or 1,
            evaluate_steps=train.get("evaluate_steps"),
        )

    def evaluates_after_epoch(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends with an evaluation."""
        if self.evaluate_steps:
            return epoch + 1 == self.epochs
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    def evaluated_steps(self) -> list[int]:
        """For each evaluation, after how many steps it is. Where nothing trains, the
        pretrained model is evaluated once, after 0 steps."""
        if not self.total_steps:
            return [0]
        if self.evaluate_steps:
            between = range(self.evaluate_steps, self.total_steps, self.evaluate_steps)
            return [*between, self.total_steps]
        steps = []
        for epoch in range(self.epochs):
            if self.evaluates_after_epoch(epoch):
                steps.append(min((epoch + 1) * self.steps_per_epoch, self.total_steps))
        return steps

    def evaluates_after_step(self, step: int) -> bool:
        """Whether a run evaluates after so many steps, because of evaluate_steps, before
        it takes a further one. The evaluation at its end belongs to the last epoch."""
        return bool(self.evaluate_steps and step and step % self.evaluate_steps == 0)


# --- the learning rates


def rate_factor(step: int, schedule: str, warmup: int, total: int) -> float:
    """What the learning rates are multiplied by at a step, counted from 0: it rises from
    0 to 1 over the warm-up, and then falls to 0 or stays.

    schedule: linear or cosine, which fall, or constant. warmup, total: the number of the
    warm-up's steps, and of all.

    The same to the bit as transformers' get_scheduler, whose import takes seconds
    (peft, bitsandbytes)."""
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    span = max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, (total - step) / span)
    progress = (step - warmup) / span
    return 0.5 * (1 + math.cos(math.pi * progress))


def count_warmup_steps(train: TrainConfig, total: int) -> int:
    """How many of a run's steps, `total`, are its warm-up."""
    if train["warmup_steps"] is not None:
        return train["warmup_steps"]
    return math.ceil(train["warmup_ratio"] * total)
