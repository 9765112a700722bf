"""What one run will take: steps, tokens, FLOPs and, at a pace that was measured, seconds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs.config import Run
from runs.errors import UserError
from runs.forecast.flops import Shape, Work, shape_of, work
from runs.forecast.pace import Pace, architecture_of, pace_of
from runs.forecast.rows import Data, Sources, known_data
from runs.lengths import GRID, Lengths
from runs.training.state import Plan
from tasks.base import block


@dataclass(frozen=True)
class Outline:
    """A run before it has begun.

    steps: of the optimizer, exact where the rows are. tokens: that are trained on, without padding; of
    images their patches. flops: of training, evaluation and decoding, padding included. seconds: of the same,
    at this machine's pace. Each is None where it is not known. lengths: how the rows' lengths are known, in
    words.
    """

    steps: int
    exact: bool
    tokens: float | None = None
    flops: float | None = None
    seconds: float | None = None
    lengths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Amounts:
    """What is computed: rows trained on in all and evaluations, and of each split the lengths, the padded
    length of a row, and the rows of a pass."""

    run: Run
    data: Data
    shape: Shape
    plan: Plan
    trained: int
    evaluations: int
    splits: Mapping[str, Lengths]
    padded: Mapping[str, float]
    batches: Mapping[str, int]

    @property
    def once(self) -> bool:
        """Whether each image is computed once: a head's inputs are kept (runs/training/features.py)."""
        task = self.run.config["task"]
        return self.run.method["kind"] == "head" and task.get("augment") == "none"

    def work(self, split: str) -> Work:
        """FLOPs of a row."""
        again = bool(self.run.config.get("gradient_checkpointing"))
        length, rows, lengths = self.padded[split], self.batches[split], self.splits[split]
        return work(self.shape, self.run.method, length, rows, lengths.predicted, again)


def outline(run: Run, sources: Sources, pace: Pace | None = None) -> Outline | None:
    """What a run will take; None where nothing says how many rows it has.

    pace: by which seconds are told, instead of this machine's."""
    data = known_data(run, sources)
    if data is None:
        return None
    train, trains = run.config["train"], run.method["kind"] != "none"
    try:
        plan = Plan.of(train, data.train.rows, data.dev.rows, trains)
    except UserError:  # too few rows: the run itself says so
        return None
    amounts = _amounts(run, data, plan)
    if amounts is None:
        tokens = _trained(plan, data) * data.train.cut(train["max_length"]).mean if data.train.at else None
        return Outline(
            plan.total_steps, data.exact, tokens, lengths=_lengths(run, data) if data.train.at else ()
        )
    tokens = amounts.trained * amounts.splits["train"].mean
    pace = pace or pace_of(run)
    seconds = _seconds(amounts, pace) if pace else None
    return Outline(plan.total_steps, data.exact, tokens, _flops(amounts), seconds, _lengths(run, data))


def _lengths(run: Run, data: Data) -> tuple[str, ...]:
    if run.config["task"]["modality"] == "image":
        return ("tokens are the model's patches",)
    if data.assumed is None:
        return ("lengths as tokenised here",)
    return tuple(
        filter(None, ("lengths assumed: as published, in GPT-2's tokens (conf/rows.yaml)", data.assumed))
    )


def shape_of_run(run: Run) -> Shape | None:
    """The matrices of a run's model."""
    architecture = architecture_of(run.config["model"])
    return shape_of(architecture) if architecture else None


def padded_length(run: Run, sources: Sources) -> float | None:
    """The tokens of a row in a training batch, padding included."""
    data = known_data(run, sources)
    plan = Plan.of(run.config["train"], data.train.rows, data.dev.rows, True) if data else None
    amounts = _amounts(run, data, plan) if data and plan else None
    return amounts.padded["train"] if amounts else None


def _amounts(run: Run, data: Data, plan: Plan) -> Amounts | None:
    """None where the model's architecture or the lengths are not known."""
    shape, config, task = shape_of_run(run), run.config, run.config["task"]
    if shape is None:
        return None
    splits = {"train": data.train, "dev": data.dev}
    if task["modality"] == "image":
        if not shape.side:
            return None
        tokens = shape.tokens(task.get("image_size"))
        splits = {s: Lengths(rows.rows, tokens, (tokens,) * len(GRID)) for s, rows in splits.items()}
    elif not (data.train.at and data.dev.at):
        return None
    else:
        longest = min(config["train"]["max_length"], shape.positions or math.inf)
        splits = {s: lengths.cut(int(longest)) for s, lengths in splits.items()}
    whole = config["train"]["effective_batch"]
    micro = min(config["micro_batch"] or whole, whole, data.train.rows)
    sorted_together = block(task) * math.ceil(whole / micro) if block(task) > 1 else 1
    evaluated = min(config["eval_batch"], data.dev.rows)
    padded = {
        "train": splits["train"].padded(micro, sorted_together),
        "dev": splits["dev"].padded(evaluated, math.ceil(data.dev.rows / evaluated)),
    }
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) if plan.total_steps else 1
    batches = {"train": micro, "dev": evaluated}
    return Amounts(run, data, shape, plan, _trained(plan, data), evaluations, splits, padded, batches)


def _trained(plan: Plan, data: Data) -> int:
    """Rows that are trained on, each as often as it is."""
    epochs, rest = divmod(plan.total_steps, plan.steps_per_epoch)
    return epochs * data.train.rows + min(rest * plan.batch, data.train.rows)


def _flops(amounts: Amounts) -> float:
    train, dev, data = amounts.work("train"), amounts.work("dev"), amounts.data
    if amounts.once:
        return data.train.rows * train.forward + data.dev.rows * dev.forward
    _, tokens = _decoding(amounts)
    # Each token looks back at a text of the usual length, and is read out; the adapter is merged.
    length, base = amounts.splits["dev"].mean, {"kind": "none"}
    token = work(amounts.shape, base, length, 1, length).forward / length
    return (
        amounts.trained * train.training + amounts.evaluations * data.dev.rows * dev.forward + tokens * token
    )


def _decoding(amounts: Amounts) -> tuple[int, int]:
    """Passes and tokens of decoding, at most: each text is as long as it may be, of the last epoch and of the
    best, if that is another (runs/training/decode.py). Prompts, which have no beams, are left out."""
    task, items = amounts.run.config["task"], amounts.data.items
    if not items:
        return 0, 0
    epochs = 2 if amounts.plan.epochs > 1 else 1
    searches = epochs * (1 if task["search"] == "lora" else len(task["length_penalty"]))
    beams, new = task["beams"], task["max_new_tokens"]
    batches = math.ceil(items / max(1, amounts.run.config["eval_batch"] // beams))
    return searches * batches * new, searches * items * beams * new


def _seconds(amounts: Amounts, pace: Pace) -> float:
    train, data = amounts.work("train"), amounts.data
    padded, plan = amounts.padded, amounts.plan
    # A forward pass takes the share of a training step's time that it has of its FLOPs.
    share = train.forward / (train.training or train.forward)
    batches = math.ceil(data.dev.rows / amounts.batches["dev"])
    evaluation = share * (batches * pace.step + data.dev.rows * padded["dev"] * pace.token)
    if amounts.once:
        batches = math.ceil(data.train.rows / amounts.batches["dev"])
        return evaluation + share * (batches * pace.step + data.train.rows * padded["train"] * pace.token)
    passes, tokens = _decoding(amounts)
    whole: dict[str, Any] = amounts.run.config["train"]
    of_step = math.ceil(whole["effective_batch"] / amounts.batches["train"])
    return (
        plan.total_steps * of_step * pace.step
        + amounts.trained * padded["train"] * pace.token
        + amounts.evaluations * evaluation
        + share * (passes * pace.step + tokens * pace.token)
    )
