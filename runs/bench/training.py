"""Times of training steps, files, start-up and an epoch, and memory, beside peft's."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vera
from runs.bench.models import DEVICE, Row, Shape, base_model, batch_of, saved_bytes, sharing, stepper, variant
from runs.config import expand
from runs.errors import UserError
from tasks.parent import end_with, tied


def timed(work: dict[str, Callable[[], Any]], rounds: int, title: str, about: Row) -> list[Row]:
    """The seconds of each piece of work, after a first round that does not count. The pieces take turns, so
    that a slow minute of the machine hits all alike. about: the rest of each row."""
    from tqdm import tqdm

    seconds: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    order = list(names)
    for turn in range(rounds):
        first = turn % len(names)
        order += names[first:] + names[:first]
    for name in tqdm(order, title, leave=False, disable=None):
        seconds[name].append(_seconds(work[name]))
    return [about | {"variant": name, "seconds": seconds[name][1:]} for name in names]


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def training(shape: Shape, names: list[str], lengths: list[int], rounds: int) -> list[Row]:
    """Whole training steps, and the bytes that a forward pass keeps."""
    base, rows = base_model(shape), []
    models = {name: variant(name, base, shape) for name in names}
    steps = {name: stepper(name, model) for name, model in models.items()}
    for tokens in lengths:
        batch = batch_of(shape, base, tokens)
        saved = {name: saved_bytes(name, model, batch) for name, model in models.items() if name != "full"}
        work: dict[str, Callable[[], Any]] = {name: partial(step, batch) for name, step in steps.items()}
        about = {"part": "training", "model": shape.label, "tokens": tokens}
        of_length = timed(work, rounds, f"{shape.label}, {tokens} tokens", about)
        rows += [row | {"saved": saved.get(row["variant"])} for row in of_length]
    return rows


def _peak(name: str, shape: Shape, tokens: int) -> int:
    base = base_model(shape)
    step, batch = stepper(name, variant(name, base, shape)), batch_of(shape, base, tokens)
    for _ in range(2):
        step(batch)
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    from runs.training.result import peak_memory

    return peak_memory()


def memory(shape: Shape, names: list[str], tokens: int) -> list[Row]:
    """The peak memory of two training steps of each variant, in a process of its own."""
    rows, about = [], {"part": "memory", "model": shape.label, "tokens": tokens}
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1, end_with, (os.getpid(),)) as pool:
            peak = pool.apply(_peak, (name, shape, tokens))
        rows.append(about | {"variant": name, "bytes": peak})
    return rows


def peft_from(base: nn.Module, folder: Path) -> Any:
    """peft's model of an adapter's folder, on the same base weights."""
    import peft

    return peft.PeftModel.from_pretrained(sharing(base), folder)


def files(shape: Shape) -> list[Row]:
    """The size of an adapter on disk, and the time to load it onto a base model in memory."""
    import peft

    base, rows = base_model(shape), []

    def row(name: str, size: int, load: Callable[[], Any], times: int = 3) -> None:
        seconds = [_seconds(load) for _ in range(times)]
        about = {"part": "files", "model": shape.label, "variant": name}
        rows.append(about | {"bytes": size, "seconds": seconds})

    with tempfile.TemporaryDirectory() as folder:
        method, model = vera.VeRA(rank=shape.rank), sharing(base)
        method.adapt(model)
        ours = Path(folder) / "adapter.safetensors"
        size = vera.save(model, method, ours)
        fresh = sharing(base)
        row("VeRA, first on this base (its weights are hashed)", size, lambda: vera.load(fresh, ours), 1)
        row("VeRA, any other", size, lambda: vera.load(fresh, ours))
        for name, stored in (("peft VeRA", True), ("peft VeRA, without projections", False)):
            how: Any = {"r": shape.rank, "target_modules": ["query", "value"], "save_projection": stored}
            saved = Path(folder) / name
            peft.get_peft_model(sharing(base), peft.VeraConfig(**how)).save_pretrained(str(saved))
            size = (saved / "adapter_model.safetensors").stat().st_size
            row(name, size, partial(peft_from, base, saved))
    return rows


def start() -> list[Row]:
    """The time from the command to the first training step of the demo, without fetching."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(4):  # the first one fetches
            command = [sys.executable, "-m", "runs", "train.max_steps=1", f"seed={i}", f"output={folder}"]
            command.append("tracking=off")
            started = time.perf_counter()
            streams: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
            run = subprocess.Popen(command, text=True, **streams, **tied())
            taken = None
            while run.poll() is None and taken is None:
                logs = sorted(Path(folder).glob("runs/*/log.txt"), key=lambda p: p.stat().st_mtime)
                if len(logs) == i + 1 and "first step" in logs[-1].read_text():
                    taken = time.perf_counter() - started
                time.sleep(0.01)
            _, error = run.communicate()
            if run.returncode or taken is None:
                reason = (error.strip().splitlines() or ["no step"])[-1]
                raise UserError(f"the run that is timed failed: {reason}")
            if i:
                seconds.append(taken)
    return [{"part": "start", "variant": "python -m runs: to the first step, MiniLM", "seconds": seconds}]


def epoch(data: str) -> list[Row]:
    """The time and losses of an epoch on RTE, padded to the longest row of a batch, and to 512 tokens as
    microsoft/LoRA does. The losses should agree."""
    from torch.nn.functional import pad

    from runs.identity import run_id
    from runs.training.build import epoch_batches
    from runs.training.loop import Training

    class Padded(Training):
        def batch(self, split: str, rows: Sequence[int]) -> dict[str, Tensor]:
            batch = super().batch(split, rows)
            more = 512 - batch["input_ids"].shape[1]
            return {k: pad(v, (0, more)) if v.dim() == 2 else v for k, v in batch.items()}

    seconds, losses = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in (("to the longest of the batch", Training), ("to 512", Padded)):
            run = expand(["task=rte", f"task.data_dir={data}", "train.max_length=512", f"output={folder}"])[0]
            loop = kind(run, run_id(run) or "", lambda event: None)
            for module in loop.raw_model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            batches = epoch_batches(loop.lengths, loop.settings["effective_batch"], 0, 0)
            started = time.perf_counter()
            losses[name] = [float(loop.step(rows)) for rows in batches]
            seconds[name] = time.perf_counter() - started
    short, long = losses.values()
    apart = max(abs(a - b) for a, b in zip(short, long, strict=True))
    return [
        {"part": "epoch", "variant": f"padded {n}", "seconds": [s], "losses_apart": apart}
        for n, s in seconds.items()
    ]
