"""The answers of a model to dev rows, of a task whose answers are read exactly."""

from collections.abc import Callable
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

import vera
from runs.record.configuration import Configuration
from runs.run.reward_functions import completion_limit
from runs.training.batches import batches_of
from runs.training.sampling import (
    EVALUATION_STEP,
    GREEDY,
    CompletionKey,
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
    """Whether the model's answers to the dev rows are right, as 1.0 and 0.0 (rows, 1 +
    samples). Column 0 is the greedy answer. The others are completions sampled at the
    training's temperature: as many as task.pass_at says, or one if it is not set.
    Processes share the work.

    check_stop: called before each batch; raises where the run has to stop."""
    exercises = task.exercises("dev")
    max_length = config["task"]["max_new_tokens"]
    temperature = 1.0  # for a run without a reward, which does not sample in training
    if "reward" in config:
        max_length = completion_limit(config)
        temperature = config["reward"]["temperature"]
    # by the length of the prompt, which saves padding
    order = sorted(
        range(len(exercises)), key=lambda row: len(exercises[row].prompt_ids)
    )
    samples = config["task"].get("pass_at") or 1
    size = max(1, config["eval_batch"] // (1 + samples))  # prompts of a batch
    batches = batches_of(order, size)
    row_outcomes: list[tuple[int, list[bool]]] = []
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        check_stop()
        prompts = [exercises[row].prompt_ids for row in batch]
        uniform = np.full((len(batch), 1 + samples, max_length), GREEDY)
        for index, row in enumerate(batch):
            for sample in range(samples):
                key = CompletionKey(config["seed"], EVALUATION_STEP, row, sample)
                uniform[index, 1 + sample] = uniform_numbers(key, max_length)
        with vera.unchanged(model), accelerator.autocast():
            completions = sample_completions(
                model, prompts, uniform, temperature, task.ends
            )
        for row, row_completions in zip(batch, completions, strict=True):
            exercise = exercises[row]
            is_right = [
                task.is_right(exercise, task.text(ids)) for ids in row_completions
            ]
            row_outcomes.append((row, is_right))
    # accelerate joins the processes' lists
    outcomes_by_row = dict(gather_object(row_outcomes))
    return np.array(
        [outcomes_by_row[row] for row in range(len(exercises))], dtype=float
    )


def sampled_scores(
    outcomes: np.ndarray[Any, Any], pass_at: int | None
) -> dict[str, float]:
    """The curve's columns on sampled answers: the share of rows whose first sample is
    right and, with task.pass_at, of those with any right sample.

    outcomes: of `answer_dev_rows`."""
    scores = {"sampled_exact_match": float(outcomes[:, 1].mean())}
    if pass_at:
        scores[f"pass@{pass_at}"] = float(outcomes[:, 1:].any(1).mean())
    return scores
