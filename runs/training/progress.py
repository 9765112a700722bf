"""What a training run reports of its progress after a step and after an evaluation."""

import math
from typing import Any

import tasks
from runs.record.cell import ReportedMetric
from runs.record.steps import StepPlan
from runs.training.checkpoint import State


def progress_event(
    state: State,
    plan: StepPlan,
    task: tasks.Task,
    metric: ReportedMetric,
    best_evaluation: int,
) -> dict[str, Any]:
    """How far a run has come, as an event to be shown; the caller adds the phase and
    the loss of the last step.

    best_evaluation: the index of the best evaluation so far."""
    scores = state.curve["metric"]
    seconds = sum(state.seconds.values())  # over all attempts
    seconds_per_step = seconds / max(state.step, 1)  # evaluations included
    return {
        "epoch": math.ceil(state.step / plan.steps_per_epoch),
        "epochs": plan.epochs,
        "step": state.step,
        "steps": plan.total_steps,
        "metric_name": metric.name,
        "scale": metric.scale,
        "metric": scores[-1] if scores else None,
        "best": scores[best_evaluation] if scores else None,
        "metrics": state.metrics,
        "pace": state.units / max(state.seconds["train"], 1e-9),
        "unit": task.unit,
        "seconds": seconds,
        "seconds_left": seconds_per_step * (plan.total_steps - state.step),
        # how many are decoded after training
        "texts": len(getattr(task, "items", ())),
    }
