"""What one run takes: steps, tokens and FLOPs. torch is imported where FLOPs are counted
for the first time (runs/run/methods.py)."""

import json
import math
from dataclasses import dataclass, replace

from runs import models
from runs.forecast.data import as_read, known_data, known_texts
from runs.models.memory import HALF, bytes_of_weight, computing_precision
from runs.record.steps import Plan
from runs.run import methods
from runs.run.definition import Run
from runs.run.reward_functions import completion_limit
from tasks.base import block, prompts_at_once


@dataclass(frozen=True)
class Outline:
    """What a run will take, from its first step on; 0 for what is not known."""

    steps: int = 0  # of the optimizer
    basis: str = ""  # how the numbers of rows and their lengths are known
    tokens: float = 0.0  # of training, without padding; of images the patches
    flops: float = 0.0  # of training and evaluation, padding included
    step_flops: float = 0.0
    # Of decoding: FLOPs of the prompts, and the bytes of weights that a GPU reads for
    # the new tokens
    prompts: float = 0.0
    reads: float = 0.0
    # Of training by reward: the tokens that it samples at most
    sampled: float = 0.0


def outline(run: Run) -> Outline:
    """What a run will take; nothing is known, nor a basis, where its number of rows is
    not."""
    config, task = run.config, run.config["task"]
    if (data := known_data(json.dumps(task))) is None:
        return Outline()
    train, dev, basis = as_read(run, data[0]), as_read(run, data[1]), data[2]
    plan = Plan.of(config["train"], train.rows, run.method["kind"] != "none")
    if not (len(train.tokens) and len(dev.tokens)):
        return Outline(plan.total_steps, basis)
    whole = min(plan.batch, train.rows)
    rows, evaluated = (
        min(config["micro_batch"] or whole, whole),
        min(config["eval_batch"], dev.rows),
    )
    batches = block(task)  # that are sorted by length together
    length = round(
        train.padded(rows, batches * math.ceil(plan.batch / rows) if batches > 1 else 1)
    )
    epochs, rest = divmod(plan.total_steps, plan.steps_per_epoch)
    trained = epochs * train.rows + min(rest * plan.batch, train.rows)
    predicted = train.mean if task.get("train_on_inputs") else train.predicted
    counted = methods.flops(
        run, rows, length, math.ceil(length * predicted / train.mean)
    )
    forward, training = (each / rows for each in counted or (0.0, 0.0))
    # which repeats the forward pass
    training += forward if config.get("gradient_checkpointing") else 0.0
    # An evaluation's FLOPs are taken to grow with the tokens alone; where nothing
    # trains there is one
    of_dev = dev.padded(evaluated, math.ceil(dev.rows / evaluated)) / length * forward
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) or 1
    work, sampled = training, 0.0
    if "reward" in config and counted:
        work, sampled = _work_by_reward(run, rows, train.mean - train.predicted)
    flops = trained * work + evaluations * dev.rows * of_dev
    made = Outline(
        plan.total_steps,
        basis,
        trained * train.mean,
        flops,
        whole * work,
        sampled=trained * sampled,
    )
    # the last epoch's, and the best one's
    texts = (1 + (evaluations > 1)) * known_texts(json.dumps(task))
    if not (texts and counted):
        return made
    # Every token of a batch reads each weight once, as it is held. Where autocast or 4
    # bit make it another dtype, it is cast before each product, which writes and reads
    # two bytes more
    batch = prompts_at_once(config["eval_batch"], task["beams"], True)
    is_cast = models.dtype_of(config) == "fp32" and computing_precision(config) in HALF
    cast = 4 if config["model"]["quantise"] or is_cast else 0
    read = methods.weights(run) * (bytes_of_weight(config) + cast)
    reads = math.ceil(texts / batch) * task["max_new_tokens"] * read
    return replace(made, prompts=texts * of_dev, reads=reads)


def _work_by_reward(run: Run, rows: int, prompt: float) -> tuple[float, float]:
    """The FLOPs of a prompt in training by reward, and the tokens that are sampled for
    it, at most.

    Args:
        rows: of a micro-batch.
        prompt: tokens of a prompt, on average."""
    samples = run.config["reward"]["samples"]
    limit = completion_limit(run.config)
    tokens = samples * limit
    # The last token of a completion is not read again, and all samples of one token
    # share the prompt's pass.
    length = max(1.0, prompt + limit - 1)
    counted = methods.flops(run, rows, math.ceil(length), limit)
    forward, training = (each / rows for each in counted or (0.0, 0.0))
    sampling = forward * (prompt + samples * (limit - 1)) / length
    passes = 1 if limit == 1 else samples
    return passes * training + sampling, tokens
