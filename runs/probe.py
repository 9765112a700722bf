"""Measures how fast this device trains the rows of a plan: a few steps of each, with random weights of the
model's architecture and random data of the plan's length. It needs no weights and no data, and keeps nothing
but the pace (runs/forecast/pace.py)."""

import contextlib
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import vera
from runs import models
from runs.errors import UserError
from runs.forecast.cost import PROBE_SECONDS, PROBE_STEPS, cell_key, cell_row
from runs.forecast.outline import padded_length
from runs.forecast.pace import Pace, keep_pace, pace_here
from runs.forecast.rows import Sources
from runs.methods import make_method
from runs.record import Record
from runs.record.text import describe, duration, plural
from runs.run import Run
from runs.training.build import (
    checkpoint_gradients,
    make_accelerator,
    make_optimizer,
    optimizer_groups,
)
from runs.training.provenance import machine
from tasks.base import Array
from tasks.continuations import Continuations


def probe(runs: Iterable[Run], records: Sequence[Record]) -> None:
    """Measures each row of each model once, and keeps its pace.

    records: finished runs, from which the lengths of texts may be known. Rows that were measured on this
    machine before are left out; a line gives the reason for each that cannot be measured."""
    rows: dict[str, list[Run]] = {}
    sources = Sources(records)
    for run in {cell_key(run): run for run in runs}.values():
        if pace_here(run) is None:
            rows.setdefault(cell_row(run), []).append(run)
    if not rows:
        print("probe: every row has been measured on this machine")
    else:
        print(
            f"probe: random weights and rows, at most {PROBE_STEPS} steps and {PROBE_SECONDS}s for each of"
            f" {plural(len(rows), 'row')}; nothing is kept but the pace"
        )
    for number, members in enumerate(rows.values(), 1):
        run, start = members[0], time.monotonic()
        row, model = run.config["method"]["label"], run.config["model"]["label"]
        name = f"probe {number}/{len(rows)}: {row} on {model}"
        try:
            lengths = [length for one in members if (length := padded_length(one, sources))]
            if not lengths:
                raise UserError("the lengths of its texts, or its architecture, are not known")
            pace, how = _measure(run, max(round(statistics.fmean(lengths)), 8), PROBE_SECONDS)
        except Exception as error:  # of the run's settings, of a model's own code, of a full device
            print(f"{name}: left out ({describe(error)})")
            continue
        keep_pace(run, pace, how)
        print(
            f"{name}: {how['steps']} steps of up to {how['tokens']:,} tokens in"
            f" {duration(time.monotonic() - start)}, {1 / max(pace.token, 1e-9):,.0f} tokens a second on"
            f" {how['device']['name']}"
        )


def _measure(run: Run, length: int, limit: float) -> tuple[Pace, dict[str, Any]]:
    """The pace of a run's row, and how it was measured: from steps of two sizes, one with a quarter of the
    other's tokens. The large one is the plan's, or smaller where the time is too short for a few of them.

    length: tokens of a text or image. limit: seconds, without those that building the model takes."""
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
    medians = {tokens: statistics.median(seconds) for tokens, seconds in times.items()}
    how = {"tokens": max(times), "length": length, "steps": step.count, "device": machine(device)}
    accelerator.free_memory()
    return pace(medians), how


def _largest(step: "_Step", wanted: int, deadline: float) -> int:
    """The tokens of the larger step. They grow fourfold while ROUNDS steps fit into the time that is left.
    They begin at SMALLEST: the time of fewer tokens would drown in the fixed cost of a step."""
    tokens = larger = step.size(min(wanted, SMALLEST))
    with contextlib.suppress(torch.OutOfMemoryError):
        while step(larger) < max(deadline - time.monotonic(), 0.0) / ROUNDS:
            tokens, larger = larger, step.size(min(wanted, 4 * larger))
            if larger == tokens:
                break
    return tokens


def _times(step: "_Step", most: int, deadline: float) -> dict[int, list[float]]:
    """The seconds of steps of `most` tokens and of a quarter of them, in turn; of half as many where the
    device's memory is too small."""
    times: dict[int, list[float]] = {most: [], step.size(most // 4): []}
    while not all(times.values()) or (step.count < PROBE_STEPS - 1 and time.monotonic() < deadline):
        for tokens in list(times):
            try:
                times[tokens].append(step(tokens))
                continue
            except torch.OutOfMemoryError:
                if step.size(tokens // 2) == tokens:
                    raise
            # Outside of the handler, whose traceback holds the failed step's activations
            step.clear()
            return _times(step, step.size(tokens // 2), deadline)
    return times


#: The largest micro-batch where the plan names none; the fewest tokens of the larger step; and how many of
#: the larger steps should fit into a probe.
MOST_ROWS, SMALLEST, ROUNDS = 512, 128, 5


def pace(seconds: Mapping[int, float]) -> Pace:
    """The line through the seconds of a small and a large step over their tokens; the line through the origin
    and the large step where the other would have a negative part.

    seconds: by tokens, of one or two steps."""
    small, large = min(seconds), max(seconds)
    slope = (seconds[large] - seconds[small]) / (large - small) if large > small else 0.0
    whole = seconds[large] / large
    if not 0 < slope < whole:
        return Pace(0.0, whole)
    return Pace(seconds[large] - slope * large, slope)


def _model(run: Run, device: torch.device) -> tuple[Any, vera.Method]:
    """The model with random weights, adapted, on the device."""
    settings = run.config["model"]
    labels = {"text": 2, "image": 100, "text generation": 0}[settings["modality"]]
    outline = models.skeleton(settings, labels, None if settings["architecture"] else models.locate(settings))
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
    """Random prompts with continuations, for the loss of a language model."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._rows = {"train": []}

    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        raise NotImplementedError  # there is nothing to tokenise

    def draw(self, rows: int, length: int) -> dict[str, Array]:
        """A batch of random texts; the second half of each is predicted."""
        ids = torch.randint(self.vocabulary, (rows, length)).tolist()
        self._rows = {"train": [(row, length // 2) for row in ids]}
        return self.collate("train", range(rows))


class _Step:
    """Trains on a random batch, or computes a forward pass where nothing trains; returns the seconds."""

    def __init__(self, run: Run, model: Any, method: vera.Method, accelerator: Any, length: int) -> None:
        self.run, self.raw, self.method, self.accelerator = run, model, method, accelerator
        self.length, self.modality, self.count = length, run.config["model"]["modality"], 0
        groups = optimizer_groups(method, model, run.config["train"])
        self.trains = bool(groups)
        self.model, self.optimizer = accelerator.prepare(
            model, make_optimizer(groups, run.config["train"], accelerator.device)
        )
        self.texts = _Texts(getattr(model.config, "vocab_size", 2))
        self.texts.label_smoothing = run.config["task"].get("label_smoothing", 0.0)
        method.before_training(model, 1000)

    def clear(self) -> None:
        """Gives back the memory of a step that did not fit."""
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()

    def size(self, tokens: int) -> int:
        """About so many tokens, as a batch can have them: texts of the plan's length, or one shorter text;
        whole images."""
        if tokens < self.length and self.modality != "image":
            return max(tokens, 8)
        return max(tokens // self.length, 1) * self.length

    def __call__(self, tokens: int) -> float:
        batch = self._batch(max(tokens // self.length, 1), min(tokens, self.length))
        start = time.perf_counter()
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
            self.method.after_step(self.raw, self.count + 1)
            self.optimizer.zero_grad()
        self.count += 1
        float(loss.detach())  # waits for the device
        return time.perf_counter() - start

    def _batch(self, rows: int, length: int) -> dict[str, Any]:
        device = self.accelerator.device
        if self.modality == "text generation":
            texts = self.texts.draw(rows, length)
            return {key: torch.from_numpy(value).to(device) for key, value in texts.items()}
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        if self.modality == "image":
            side = self._side()
            return {"pixel_values": torch.randn(rows, 3, side, side, device=device), "labels": labels}
        ids = torch.randint(5, self.raw.config.vocab_size, (rows, length), device=device)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # nearly every batch has padding
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _side(self) -> int:
        """The pixels of an image's side. The length counts its patches and the class token."""
        return round((self.length - 1) ** 0.5) * int(self.raw.config.patch_size)

    def _loss(self, batch: Mapping[str, Any]) -> Any:
        if self.modality == "text generation":
            return self.texts.loss(self.model, batch)
        if self.modality == "text":
            return self.model(**batch).loss
        config = self.raw.config
        another_size = config.model_type == "vit" and self._side() != config.image_size
        settings = {"interpolate_pos_encoding": True} if another_size else {}
        output = self.model(pixel_values=batch["pixel_values"], **settings)
        return nn.functional.cross_entropy(output.logits, batch["labels"])
