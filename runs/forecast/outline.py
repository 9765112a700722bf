"""What one run will take: steps, tokens, FLOPs and, at a measured pace, seconds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs import gpus, models
from runs.errors import UserError
from runs.forecast.flops import Shape, Work, shape_of, work
from runs.forecast.pace import Pace, pace_of
from runs.forecast.rows import Data, Sources, known_data
from runs.lengths import GRID, Lengths
from runs.run import Run
from runs.training.state import Plan
from tasks.base import block, prompts_at_once


@dataclass(frozen=True)
class Outline:
    """What a run will take. None where something is not known."""

    steps: int  # of the optimizer
    exact: bool  # whether the number of rows is, and so that of steps
    tokens: float | None = None  # of training, without padding; of images the patches
    flops: float | None = None  # of training, evaluation and decoding, padding included
    seconds: float | None = None  # of the same, at this machine's pace
    lengths: tuple[str, ...] = ()  # how the lengths of texts are known, in words
    pace: str = ""  # what has measured the pace


@dataclass(frozen=True)
class Amounts:
    """What a run computes. The mappings are by split, train and dev."""

    run: Run
    data: Data
    shape: Shape
    plan: Plan
    trained: int  # rows of training data over all epochs
    evaluations: int
    splits: Mapping[str, Lengths]
    padded: Mapping[str, float]  # the tokens of a row in a batch, padding included
    batches: Mapping[str, int]  # the rows of a pass

    @property
    def once(self) -> bool:
        """Whether each image passes the model once, since a head's inputs are kept
        (runs/training/features.py)."""
        task = self.run.config["task"]
        return self.run.method["kind"] == "head" and task.get("augment") == "none"

    def work(self, split: str) -> Work:
        """FLOPs of a row of a split."""
        again = bool(self.run.config.get("gradient_checkpointing"))
        length, rows, lengths = self.padded[split], self.batches[split], self.splits[split]
        return work(self.shape, self.run.method, length, rows, lengths.predicted, again)


def outline(run: Run, sources: Sources, pace: Pace | None = None) -> Outline | None:
    """What a run will take; None where its number of rows is not known.

    pace: in place of this machine's."""
    data = known_data(run, sources)
    if data is None:
        return None
    train, trains = run.config["train"], run.method["kind"] != "none"
    try:
        plan = Plan.of(train, data.train.rows, data.dev.rows, trains)
    except UserError:  # too few rows: the run itself raises it
        return None
    amounts = _amounts(run, data, plan)
    if amounts is None and not data.train.at:
        return Outline(plan.total_steps, data.exact)
    if amounts is None:
        tokens = _trained(plan, data) * data.train.cut(train["max_length"]).mean
        return Outline(plan.total_steps, data.exact, tokens, lengths=_lengths(run, data))
    tokens = amounts.trained * amounts.splits["train"].mean
    pace = pace or pace_of(run)
    seconds = _seconds(amounts, pace) if pace else None
    lengths, source = _lengths(run, data), pace.source if pace else ""
    return Outline(plan.total_steps, data.exact, tokens, _flops(amounts), seconds, lengths, source)


def _lengths(run: Run, data: Data) -> tuple[str, ...]:
    """How the lengths are known, in words."""
    if run.config["task"]["modality"] == "image":
        return ("tokens are the model's patches",)
    if data.assumed is None:
        return ("lengths as tokenised here",)
    words = "lengths assumed: as published, in GPT-2's tokens (conf/rows.yaml)"
    return (words, data.assumed) if data.assumed else (words,)


def shape_of_run(run: Run) -> Shape | None:
    """The matrices of a run's model; None where its architecture is not known."""
    architecture = models.architecture_of(run.config["model"])
    return shape_of(architecture) if architecture else None


def padded_length(run: Run, sources: Sources) -> float | None:
    """The tokens of a row in a training batch, padding included; None where they are not known. Raises
    UserError for a dev set that is too small."""
    data = known_data(run, sources)
    if data is None:
        return None
    amounts = _amounts(run, data, Plan.of(run.config["train"], data.train.rows, data.dev.rows, True))
    return amounts.padded["train"] if amounts else None


def _amounts(run: Run, data: Data, plan: Plan) -> Amounts | None:
    """What a run computes; None where the model's architecture or the lengths are not known."""
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
    blocks = block(task) * math.ceil(whole / micro) if block(task) > 1 else 1  # sorted by length together
    evaluated = min(config["eval_batch"], data.dev.rows)
    padded = {
        "train": splits["train"].padded(micro, blocks),
        "dev": splits["dev"].padded(evaluated, math.ceil(data.dev.rows / evaluated)),
    }
    evaluations = sum(map(plan.evaluates, range(plan.epochs))) if plan.total_steps else 1
    batches = {"train": micro, "dev": evaluated}
    return Amounts(run, data, shape, plan, _trained(plan, data), evaluations, splits, padded, batches)


def _trained(plan: Plan, data: Data) -> int:
    """Rows of training data over all epochs."""
    epochs, rest = divmod(plan.total_steps, plan.steps_per_epoch)
    return epochs * data.train.rows + min(rest * plan.batch, data.train.rows)


def _flops(amounts: Amounts) -> float:
    train, dev, data = amounts.work("train"), amounts.work("dev"), amounts.data
    if amounts.once:
        return data.train.rows * train.forward + data.dev.rows * dev.forward
    _, tokens = _decoding(amounts)
    # A decoded token attends to a text of mean length and is read out; the adapter is merged
    length, base = amounts.splits["dev"].mean, {"kind": "none"}
    decoding = tokens * work(amounts.shape, base, length, 1, length).forward / length
    evaluation = amounts.evaluations * data.dev.rows * dev.forward
    return amounts.trained * train.training + evaluation + decoding


def _decoding(amounts: Amounts) -> tuple[int, int]:
    """The most passes and tokens of decoding: of texts as long as allowed, from the last and the best epoch
    (runs/training/decode.py). Prompts are left out: they have no beams."""
    task, items = amounts.run.config["task"], amounts.data.items
    if not items:
        return 0, 0
    epochs = 2 if amounts.plan.epochs > 1 else 1
    searches = epochs * (1 if task["search"] == "lora" else len(task["length_penalty"]))
    beams, new = task["beams"], task["max_new_tokens"]
    on_gpu = amounts.run.config["device"] in ("auto", "cuda") and bool(gpus.visible())
    batches = math.ceil(items / prompts_at_once(amounts.run.config["eval_batch"], beams, on_gpu))
    return searches * batches * new, searches * items * beams * new


def _seconds(amounts: Amounts, pace: Pace) -> float:
    train, data = amounts.work("train"), amounts.data
    padded, plan = amounts.padded, amounts.plan
    # A forward pass has the same share of a training step's time as of its FLOPs
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
