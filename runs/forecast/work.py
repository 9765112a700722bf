"""What one run takes: steps, tokens and FLOPs. torch is imported where FLOPs are counted
for the first time (runs/run/methods.py)."""

import json
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from runs import models
from runs.forecast.data import Lengths, as_read, known_data, known_texts
from runs.models.load import HALF, bytes_of_weight, computing_precision
from runs.record.steps import StepPlan
from runs.run import methods
from runs.run.definition import Run
from runs.run.reward_functions import completion_limit
from tasks.base import block_size, prompts_at_once
from tasks.exact import FILLER_TOKENS


@dataclass(frozen=True)
class Outline:
    """What a run will take, from its first step on; 0 for what is not known.

    steps: of the optimizer. basis: how the numbers of rows and their lengths are known.
    tokens: of training, without padding; of images the patches. flops: of training and
    evaluation, padding included. prompts: FLOPs of the prompts of decoding. reads:
    bytes of weights that a GPU reads to decode the new tokens. sampled: the tokens that
    training by reward samples at most."""

    steps: int = 0
    basis: str = ""
    tokens: float = 0.0
    flops: float = 0.0
    step_flops: float = 0.0
    prompts: float = 0.0
    reads: float = 0.0
    sampled: float = 0.0


class RowFlops(NamedTuple):
    """FLOPs of a row: of a forward pass, and of a training pass."""

    forward: float
    training: float


def outline(run: Run) -> Outline:
    """What a run will take; nothing is known, nor a basis, where its number of rows is
    not."""
    config = run.config
    task = config["task"]
    data = known_data(json.dumps(task))
    if data is None:
        return Outline()
    train = as_read(run, data.train)
    if config["train"].get("objective") == "demonstrations":
        train = train.longer(FILLER_TOKENS)
    dev = as_read(run, data.dev)
    plan = StepPlan.of_run(config["train"], train.rows, run.method["kind"] != "none")
    if not (len(train.tokens) and len(dev.tokens)):
        return Outline(plan.total_steps, data.basis)
    rows_of_step = min(plan.batch, train.rows)
    rows = min(config["micro_batch"] or rows_of_step, rows_of_step)
    length = _padded_length(run, train, plan.batch, rows)
    predicted = train.mean if task.get("train_on_inputs") else train.predicted
    row_flops = _row_flops(
        run, rows, length, math.ceil(length * predicted / train.mean)
    )
    if row_flops is None:
        return Outline(
            plan.total_steps, data.basis, _trained_rows(plan, train) * train.mean
        )
    flops_of_training = row_flops.training
    sampled = 0.0
    if "reward" in config:
        flops_of_training, sampled = _work_by_reward(
            run, rows, train.mean - train.predicted
        )
    evaluated = min(config["eval_batch"], dev.rows)
    # an evaluation's FLOPs are taken to grow with the tokens alone
    dev_length = dev.padded(evaluated, math.ceil(dev.rows / evaluated))
    flops_of_dev_row = dev_length / length * row_flops.forward
    # where nothing trains there is one evaluation
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) or 1
    trained_rows = _trained_rows(plan, train)
    work = Outline(
        steps=plan.total_steps,
        basis=data.basis,
        tokens=trained_rows * train.mean,
        flops=trained_rows * flops_of_training
        + evaluations * dev.rows * flops_of_dev_row,
        step_flops=rows_of_step * flops_of_training,
        sampled=trained_rows * sampled,
    )
    texts = known_texts(json.dumps(task))
    if evaluations > 1:  # the last epoch's, and the best one's
        texts *= 2
    if not texts:
        return work
    return replace(
        work, prompts=texts * flops_of_dev_row, reads=_bytes_read(run, texts)
    )


def _trained_rows(plan: StepPlan, train: Lengths) -> int:
    """The rows of all steps."""
    epochs, steps = divmod(plan.total_steps, plan.steps_per_epoch)
    return epochs * train.rows + min(steps * plan.batch, train.rows)


def _padded_length(run: Run, train: Lengths, batch: int, rows: int) -> int:
    """The tokens of a row of a micro-batch, padding included."""
    batches_sorted_together = block_size(run.config["task"])
    if batches_sorted_together > 1:
        batches_sorted_together *= math.ceil(batch / rows)
    return round(train.padded(rows, batches_sorted_together))


def _row_flops(run: Run, rows: int, length: int, predicted: int) -> RowFlops | None:
    """The FLOPs of a row of a micro-batch; None where they cannot be counted."""
    counted = methods.count_flops(run, rows, length, predicted)
    if counted is None:
        return None
    forward, training = (flops / rows for flops in counted)
    if run.config.get("gradient_checkpointing"):
        training += forward  # which it repeats
    return RowFlops(forward, training)


def _bytes_read(run: Run, texts: int) -> float:
    """The bytes of weights that decoding reads: every token of a batch reads each
    weight once, as it is held. Where autocast or 4 bit make it another dtype, it is
    cast before each product, which writes and reads two bytes more."""
    config = run.config
    size = bytes_of_weight(config)
    is_cast = models.dtype_of(config) == "fp32" and computing_precision(config) in HALF
    if config["model"]["quantise"] or is_cast:
        size += 4
    batch = prompts_at_once(config["eval_batch"], config["task"]["beams"], True)
    batches = math.ceil(texts / batch)
    tokens = config["task"]["max_new_tokens"]
    return float(batches * tokens * methods.count_weights(run) * size)


def _work_by_reward(run: Run, rows: int, prompt: float) -> tuple[float, float]:
    """The FLOPs of a prompt in training by reward, and the tokens that are sampled for
    it, at most.

    Args:
        rows: of a micro-batch.
        prompt: tokens of a prompt, on average."""
    samples = run.config["reward"]["samples"]
    limit = completion_limit(run.config)
    # The last token of a completion is not read again, and all samples of one token
    # share the prompt's pass.
    length = max(1.0, prompt + limit - 1)
    counted = methods.count_flops(run, rows, math.ceil(length), limit) or (0.0, 0.0)
    forward, training = (flops / rows for flops in counted)
    sampling = forward * (prompt + samples * (limit - 1)) / length
    passes = 1 if limit == 1 else samples
    return passes * training + sampling, samples * limit
