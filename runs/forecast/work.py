"""What one run takes: steps, tokens and FLOPs. torch is imported where FLOPs are counted
for the first time (runs/run/methods.py)."""

import json
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from runs import models
from runs.forecast.data import (
    Lengths,
    count_decoded_texts,
    lengths_as_read,
    planned_rows,
)
from runs.models.load import HALF_PRECISIONS, bytes_of_weight, computing_precision
from runs.record.steps import StepPlan
from runs.run import methods
from runs.run.definition import Run
from runs.run.reward_functions import completion_limit
from tasks.base import block_size, prompts_at_once
from tasks.exact import FILLER_TOKENS


@dataclass(frozen=True)
class Outline:
    """What a run will take, from its first step on; 0 for what is not known.

    Attributes:
        steps: of the optimizer.
        source: where the numbers of rows and their lengths come from, in words; ""
            where the number of rows is not known.
        tokens: of training, without padding; for images their patches.
        flops: of training and evaluation, padding included.
        step_flops: of one training step.
        prompt_flops: of reading the prompts of decoding.
        decoding_bytes: of weights that a GPU reads to decode the new tokens.
        sampled_tokens: those that training by reward samples, at most.
    """

    steps: int = 0
    source: str = ""
    tokens: float = 0.0
    flops: float = 0.0
    step_flops: float = 0.0
    prompt_flops: float = 0.0
    decoding_bytes: float = 0.0
    sampled_tokens: float = 0.0


class RowFlops(NamedTuple):
    """The FLOPs of one row, in a forward pass and in a training pass."""

    forward: float
    training: float


class RowWork(NamedTuple):
    """What training takes for one row: FLOPs, and sampled tokens at most."""

    flops: float
    sampled_tokens: float


def outline(run: Run) -> Outline:
    """What a run will take. Without the number of its rows nothing is known, without
    their lengths the steps alone, and where torch cannot count FLOPs also the tokens."""
    config = run.config
    task = config["task"]
    data = planned_rows(json.dumps(task))
    if data is None:
        return Outline()
    train = lengths_as_read(run, data.train)
    if config["train"].get("objective") == "demonstrations":
        # `ExactTask.add_filler_tokens` adds these to each training row
        train = train.with_more_predicted(FILLER_TOKENS)
    dev = lengths_as_read(run, data.dev)
    trains = run.method["kind"] != "none"
    plan = StepPlan.of_run(config["train"], train.rows, trains)
    if not (len(train.tokens) and len(dev.tokens)):
        return Outline(plan.total_steps, data.source)
    rows_of_step = min(plan.batch, train.rows)
    micro_batch = min(config["micro_batch"] or rows_of_step, rows_of_step)
    padded_length = _padded_length(run, train, plan.batch, micro_batch)
    predicted = train.mean if task.get("train_on_inputs") else train.predicted
    predicted_share = predicted / train.mean
    # counted as if the padding had the same share of predicted tokens
    padded_predicted = math.ceil(padded_length * predicted_share)
    row_flops = _row_flops(run, micro_batch, padded_length, padded_predicted)
    trained_rows = _trained_rows(plan, train)
    if row_flops is None:
        return Outline(plan.total_steps, data.source, trained_rows * train.mean)
    work_of_row = RowWork(row_flops.training, sampled_tokens=0.0)
    if "reward" in config:
        prompt_length = train.mean - train.predicted
        work_of_row = _work_by_reward(run, micro_batch, prompt_length)
    dev_batch = min(config["eval_batch"], dev.rows)
    # all dev rows are sorted by length before they are put into batches
    padded_dev_length = dev.padded_mean(
        dev_batch, block=math.ceil(dev.rows / dev_batch)
    )
    # a training row's forward pass, scaled as if FLOPs grew with the tokens alone
    flops_of_dev_row = padded_dev_length / padded_length * row_flops.forward
    evaluations = len(plan.evaluated_steps())
    flops_of_evaluation = evaluations * dev.rows * flops_of_dev_row
    work = Outline(
        steps=plan.total_steps,
        source=data.source,
        tokens=trained_rows * train.mean,
        flops=trained_rows * work_of_row.flops + flops_of_evaluation,
        step_flops=rows_of_step * work_of_row.flops,
        sampled_tokens=trained_rows * work_of_row.sampled_tokens,
    )
    texts = count_decoded_texts(json.dumps(task))
    if evaluations > 1:  # each with two adapters: the last and the best epoch's
        texts *= 2
    if not texts:
        return work
    return replace(
        work,
        prompt_flops=texts * flops_of_dev_row,
        decoding_bytes=_decoding_bytes(run, texts),
    )


def _trained_rows(plan: StepPlan, train: Lengths) -> int:
    """How many rows all steps train on; a row counts once for each epoch."""
    epochs, steps = divmod(plan.total_steps, plan.steps_per_epoch)
    return epochs * train.rows + min(steps * plan.batch, train.rows)


def _padded_length(run: Run, train: Lengths, batch: int, rows: int) -> int:
    """The tokens of a row of a micro-batch, padding included.

    Args:
        batch: The rows of a step.
        rows: Those of a micro-batch."""
    batches_sorted_together = block_size(run.config["task"])
    # 1 stands for random batches. Others are counted here in micro-batches
    if batches_sorted_together > 1:
        batches_sorted_together *= math.ceil(batch / rows)
    return round(train.padded_mean(rows, batches_sorted_together))


def _row_flops(run: Run, rows: int, length: int, predicted: int) -> RowFlops | None:
    """The FLOPs of a row of a micro-batch; None where they cannot be counted.

    Args:
        rows: The rows of a micro-batch.
        length: Their tokens, padding included.
        predicted: How many of these are predicted."""
    counted = methods.count_flops(run, rows, length, predicted)
    if counted is None:
        return None
    forward, training = (flops / rows for flops in counted)
    if run.config.get("gradient_checkpointing"):
        training += forward  # checkpointing computes it a second time
    return RowFlops(forward, training)


def _decoding_bytes(run: Run, texts: int) -> float:
    """The bytes of weights that decoding so many texts reads: for every token of a batch
    each weight is read once, as it is held. Where autocast or 4 bits need it in another
    dtype, it is cast before each product, which writes two bytes and reads them."""
    config = run.config
    weight_bytes = bytes_of_weight(config)
    is_cast = (
        models.dtype_of(config) == "fp32"
        and computing_precision(config) in HALF_PRECISIONS
    )
    if config["model"]["quantise"] or is_cast:
        weight_bytes += 4
    beams = config["task"]["beams"]
    batch = prompts_at_once(config["eval_batch"], beams, on_gpu=True)
    batches = math.ceil(texts / batch)
    tokens = config["task"]["max_new_tokens"]
    return float(batches * tokens * methods.count_weights(run) * weight_bytes)


def _work_by_reward(run: Run, rows: int, prompt_length: float) -> RowWork:
    """What training by reward takes for one prompt.

    Args:
        rows: Prompts of a micro-batch.
        prompt_length: Tokens of a prompt, on average."""
    samples = run.config["reward"]["samples"]
    limit = completion_limit(run.config)
    # the last token of a completion is not read again
    length = max(1.0, prompt_length + limit - 1)
    flops = _row_flops(run, rows, math.ceil(length), limit) or RowFlops(0.0, 0.0)
    # the samples of a prompt share the pass over it
    sampling = flops.forward * (prompt_length + samples * (limit - 1)) / length
    # where a completion is one token, they also share the training pass
    passes = 1 if limit == 1 else samples
    return RowWork(passes * flops.training + sampling, samples * limit)
