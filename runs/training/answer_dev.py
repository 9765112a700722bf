"""The answers of a model to dev rows, of a task whose answers are read exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

import vera
from runs.record.configuration import Configuration
from runs.run.reward_functions import completion_limit
from runs.training.sampling import (
    EVALUATION_STEP,
    GREEDY,
    Position,
    sample_completions,
    uniform_numbers,
)
from tasks.exact import ExactTask


def answer_dev_rows(
    model: Any,
    task: ExactTask,
    accelerator: Accelerator,
    config: Configuration,
    check_stop: Callable[[], None],
) -> np.ndarray[Any, Any]:
    """Whether the model answers the dev rows exactly (rows, 1 + samples): greedily, and
    with completions sampled at the training's temperature, one or task.pass_at of them.
    Processes share the work.

    check_stop: called before each batch; raises where the run has to stop."""
    exercises = task.exercises("dev")
    limit = config["task"]["max_new_tokens"]
    temperature = 1.0
    if "reward" in config:
        limit = completion_limit(config)
        temperature = config["reward"]["temperature"]
    order = sorted(
        range(len(exercises)), key=lambda row: len(exercises[row].prompt_ids)
    )
    samples = config["task"].get("pass_at") or 1
    size = max(1, config["eval_batch"] // (1 + samples))
    blocks = [order[i : i + size] for i in range(0, len(order), size)]
    right_by_row: list[tuple[int, list[bool]]] = []
    first, processes = accelerator.process_index, accelerator.num_processes
    for block in blocks[first::processes]:
        check_stop()
        prompts = [exercises[row].prompt_ids for row in block]
        numbers = np.full((len(block), 1 + samples, limit), GREEDY)
        for index, row in enumerate(block):
            for sample in range(samples):
                position = Position(config["seed"], EVALUATION_STEP, row, sample)
                numbers[index, 1 + sample] = uniform_numbers(position, limit)
        with vera.unchanged(model), accelerator.autocast():
            completions = sample_completions(
                model, prompts, numbers, temperature, task.ends
            )
        for row, row_completions in zip(block, completions, strict=True):
            exercise = exercises[row]
            is_right = [
                task.is_right(exercise, task.text(ids)) for ids in row_completions
            ]
            right_by_row.append((row, is_right))
    gathered = dict(gather_object(right_by_row))
    return np.array([gathered[row] for row in range(len(exercises))], dtype=float)
