"""How fast this device trains the rows of a plan: a few steps of each, with random weights of the model's
architecture and random rows of the plan's length. No weights and no data are needed, and nothing is kept but
the pace (runs/forecast/pace.py)."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import vera
from runs import models
from runs.config import Run
from runs.errors import UserError
from runs.forecast.cost import PROBE_SECONDS, PROBE_STEPS, cell_key, cell_row
from runs.forecast.outline import padded_length
from runs.forecast.pace import Pace, keep_pace, pace_of
from runs.forecast.rows import Sources
from runs.methods import make_method
from runs.record import Record
from runs.record.text import describe, duration, plural
from runs.training.build import (
    checkpoint_gradients,
    make_accelerator,
    make_optimizer,
    optimizer_groups,
)
from runs.training.provenance import machine
from tasks.base import Array
from tasks.continuations import Continuations


def probe(runs: Iterable[Run], records: Sequence[Record], say: Callable[[str], None] = print) -> int:
    """Measures each row of each model once, and keeps its pace. Returns how many were measured.

    records: finished runs, which may say how long rows are. A row that has been measured on this machine is
    left out, and one that cannot be measured is named with the reason."""
    rows: dict[str, list[Run]] = {}
    sources = Sources(records)
    for run in {cell_key(run): run for run in runs}.values():
        if pace_of(run) is None:
            rows.setdefault(cell_row(run), []).append(run)
    if not rows:
        say("probe: every row has been measured on this machine")
    else:
        say(
            f"probe: random weights and rows, at most {PROBE_STEPS} steps and {PROBE_SECONDS}s for each of"
            f" {plural(len(rows), 'row')}; nothing is kept but the pace"
        )
    measured = 0
    for number, members in enumerate(rows.values(), 1):
        run, began = members[0], time.monotonic()
        name = (
            f"probe {number}/{len(rows)}: {run.config['method']['label']} on {run.config['model']['label']}"
        )
        lengths = [length for one in members if (length := padded_length(one, sources))]
        if not lengths:
            say(f"{name}: left out (how long its rows are is not known, or its architecture)")
            continue
        try:
            pace, how = _measure(run, max(round(statistics.fmean(lengths)), 8), PROBE_SECONDS)
        except Exception as error:  # whatever a model's own code or a full device says
            say(f"{name}: left out ({describe(error)})")
            continue
        keep_pace(run, pace, how)
        measured += 1
        say(
            f"{name}: {how['steps']} steps of up to {how['tokens']:,} tokens in"
            f" {duration(time.monotonic() - began)}, {1 / max(pace.token, 1e-9):,.0f} tokens a second on"
            f" {how['device']['name']}"
        )
    return measured


def _measure(run: Run, length: int, limit: float) -> tuple[Pace, dict[str, Any]]:
    """Steps of two sizes, of which one has a quarter of the other's tokens, say what a step costs beyond its
    tokens. The large one is the plan's, or has as many tokens as leave time for a few of them.

    limit: seconds, without those that building the model takes."""
    if run.config["model"].get("quantise"):
        raise UserError("a model in 4 bit is not built from random weights here")
    accelerator = make_accelerator(run)
    device = accelerator.device
    model, method = _model(run, device)
    deadline = time.monotonic() + limit
    step = _Step(run, model, method, accelerator, length)
    wanted = length * min(run.config["micro_batch"] or MOST_ROWS, run.config["train"]["effective_batch"])
    step(step.size(8))  # the first one loads kernels
    times = _times(step, _largest(step, wanted, deadline), deadline)
    paced = pace({tokens: statistics.median(seconds) for tokens, seconds in times.items()})
    how = {"tokens": max(times), "length": length, "steps": step.count, "device": machine(device)}
    accelerator.free_memory()
    return paced, how


def _largest(step: "_Step", wanted: int, deadline: float) -> int:
    """The tokens of the larger step: sizes grow while the time that is left has room for a few of them. The
    smallest is no smaller than what stands out beside what a step costs anyway (an optimizer's, say)."""
    tokens = grown = step.size(min(wanted, SMALLEST))
    with contextlib.suppress(torch.OutOfMemoryError):
        while step(grown) < max(deadline - time.monotonic(), 0.0) / ROUNDS:
            tokens, grown = grown, step.size(min(wanted, 4 * grown))
            if grown == tokens:
                break
    return tokens


def _times(step: "_Step", most: int, deadline: float) -> dict[int, list[float]]:
    """The seconds of steps of so many tokens, and of a quarter of them, turn by turn; of fewer, where the
    device has no room."""
    times: dict[int, list[float]] = {most: [], step.size(most // 4): []}
    while not all(times.values()) or (step.count < PROBE_STEPS - 1 and time.monotonic() < deadline):
        for tokens in list(times):
            try:
                times[tokens].append(step(tokens))
            except torch.OutOfMemoryError:
                if step.size(tokens // 2) == tokens:
                    raise
                torch.cuda.empty_cache()
                return _times(step, step.size(tokens // 2), deadline)
    return times


#: Rows of a pass, at most, where the plan names none; tokens of the larger step, at least; and how many of
#: the larger steps a probe has room for.
MOST_ROWS, SMALLEST, ROUNDS = 512, 128, 5


def pace(seconds: Mapping[int, float]) -> Pace:
    """The line through the seconds of a small and a large step, by their tokens; through the large one alone
    where the small one is none, or was as slow. Neither part is negative."""
    small, large = min(seconds), max(seconds)
    slope = (seconds[large] - seconds[small]) / (large - small) if large > small else 0.0
    whole = seconds[large] / large
    if not 0 < slope < whole:
        return Pace(0.0, whole)
    return Pace(seconds[large] - slope * large, slope)


def _model(run: Run, device: torch.device) -> tuple[Any, vera.Method]:
    """The model with random weights, adapted, on the device."""
    words = run.config["model"]
    labels = {"text": 2, "image": 100, "text generation": 0}[words["modality"]]
    outline = models.skeleton(words, labels, None if words["architecture"] else models.locate(words))
    needed = sum(p.numel() for p in outline.parameters()) * 4 * (4 if run.method["kind"] == "full" else 1)
    if needed > (free := models.free_memory(device)):
        raise UserError(f"it takes {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free on {device.type}")
    with torch.device(device):
        model = type(outline)(outline.config)
    method = make_method(run.method)
    method.adapt(model)
    if run.config.get("gradient_checkpointing"):
        checkpoint_gradients(model)
    return model.to(device), method


class _Texts(Continuations):
    """Random prompts with continuations."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._rows = {"train": []}

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        raise NotImplementedError  # there is nothing to tokenise

    def draw(self, rows: int, length: int) -> dict[str, Array]:
        """A batch in which half of each row is predicted."""
        ids = torch.randint(self.vocabulary, (rows, length)).tolist()
        self._rows = {"train": [(row, length // 2) for row in ids]}
        return self.collate("train", range(rows))


class _Step:
    """A training step on so many random rows, or a forward pass where nothing trains; returns its seconds."""

    def __init__(self, run: Run, model: Any, method: vera.Method, accelerator: Any, length: int) -> None:
        self.run, self.raw, self.method, self.accelerator, self.length = (
            run,
            model,
            method,
            accelerator,
            length,
        )
        self.modality, self.count = run.config["model"]["modality"], 0
        groups = optimizer_groups(method, model, run.config["train"])
        self.trains = bool(groups)
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(groups, run.config["train"]))
        self.texts = _Texts(getattr(model.config, "vocab_size", 2))
        self.texts.label_smoothing = run.config["task"].get("label_smoothing", 0.0)
        method.before_training(model, 1000)

    def size(self, tokens: int) -> int:
        """About so many tokens, as a batch can have them: rows of the plan's length, or one that is shorter;
        images are whole."""
        if tokens < self.length and self.modality != "image":
            return max(tokens, 8)
        return max(tokens // self.length, 1) * self.length

    def __call__(self, tokens: int) -> float:
        batch, began = (
            self._batch(max(tokens // self.length, 1), min(tokens, self.length)),
            time.perf_counter(),
        )
        self.model.train(self.trains)
        with self.accelerator.autocast(), torch.set_grad_enabled(self.trains):
            loss = self._loss(batch)
            penalty = self.method.penalty(self.raw)
            loss = loss if penalty is None else loss + penalty
        if self.trains:
            self.accelerator.backward(loss)
            if (clip := self.run.config["train"]["clip"]) is not None:
                self.accelerator.clip_grad_norm_([p for p in self.raw.parameters() if p.requires_grad], clip)
            self.optimizer.step()
            self.count += 1
            self.method.after_step(self.raw, self.count)
            self.optimizer.zero_grad()
        else:
            self.count += 1
        float(loss.detach())  # this is where the device is waited for
        return time.perf_counter() - began

    def _batch(self, rows: int, length: int) -> dict[str, Any]:
        device = self.accelerator.device
        if self.modality == "text generation":
            return {
                key: torch.from_numpy(value).to(device)
                for key, value in self.texts.draw(rows, length).items()
            }
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        if self.modality == "image":
            side = self._side()
            return {"pixel_values": torch.randn(rows, 3, side, side, device=device), "labels": labels}
        ids = torch.randint(5, self.raw.config.vocab_size, (rows, length), device=device)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # as in nearly every batch some row is padded
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _side(self) -> int:
        """Pixels of an image's side, of as many patches as the length says."""
        return round((self.length - 1) ** 0.5) * int(self.raw.config.patch_size)

    def _loss(self, batch: Mapping[str, Any]) -> Any:
        if self.modality == "text generation":
            return self.texts.loss(self.model, batch)
        if self.modality == "text":
            return self.model(**batch).loss
        more = {} if self._side() == self.raw.config.image_size else {"interpolate_pos_encoding": True}
        logits = self.model(
            pixel_values=batch["pixel_values"], **(more if self.raw.config.model_type == "vit" else {})
        )
        return nn.functional.cross_entropy(logits.logits, batch["labels"])
