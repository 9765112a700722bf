"""Times and memory of training steps, beside peft's."""

import gc
import multiprocessing
import os
from functools import partial

import torch

from benchmarks.models import DEVICE, SHAPES, Shape, base_model, batch_of, stepper, variant
from benchmarks.timing import Row, interleaved
from runs.fork_server import end_with
from runs.training.result import peak_memory

#: What each step's time is divided by.
REFERENCE = "peft LoRA r=8"
METHODS = ("VeRA", REFERENCE, "peft VeRA")
MORE = ("VeRA factor", "VeRA hybrid", "VeRA materialised", "full")


def training(full: bool) -> list[Row]:
    """Whole training steps of each model, and the peak memory of two of them in a process of their own."""
    rows, lengths, rounds = [], [512, 1024, 2048, 4096] if full else [512, 1024, 2048], 5 if full else 3
    if DEVICE == "cuda":  # of fewer tokens, launches alone would be timed
        lengths += [16384, 32768]
    shapes = SHAPES if full else SHAPES[:1]
    for shape in shapes:
        base = base_model(shape)
        steps = {name: stepper(variant(name, base, shape)) for name in (*METHODS, *(MORE if full else ()))}
        for tokens in lengths:
            batch = batch_of(shape, base, tokens)
            work = {name: partial(step, batch) for name, step in steps.items()}
            about = {"part": "training", "model": shape.label, "tokens": tokens}
            rows += interleaved(work, rounds, about, REFERENCE)
        del base, steps, work
        gc.collect()
    for shape in shapes:
        for name in METHODS:
            with multiprocessing.get_context("spawn").Pool(1, end_with, (os.getpid(),)) as pool:
                peak = pool.apply(_peak, (name, shape, lengths[1]))
            about = {"part": "memory", "model": shape.label, "tokens": lengths[1]}
            rows.append(about | {"variant": name, "bytes": peak})
    return rows


def _peak(name: str, shape: Shape, tokens: int) -> int:
    base = base_model(shape)
    step, batch = stepper(variant(name, base, shape)), batch_of(shape, base, tokens)
    for _ in range(2):
        step(batch)
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_memory()
