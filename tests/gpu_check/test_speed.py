"""Milliseconds of a training step at table 2's shapes, by row and precision.

tflops: what the largest step reaches, in TFLOP/s, for a line of conf/cards.yaml."""

import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch

from gpu_check import DEVICE, ON_GPU, cases
from runs import models
from runs.config import expand
from runs.run import methods
from runs.run.definition import Run
from runs.run.methods import method_of_settings
from runs.training.checkpoint import make_optimizer, optimizer_groups
from runs.training.context import make_accelerator

pytestmark = [pytest.mark.properties, pytest.mark.slow]

ROWS = ("vera", "lora", "bitfit", "full", "adapter_drop_300k", "adapter_drop_900k")
#: Rows and tokens of each: SST-2's batches of 16 and of 64, and QNLI's of 64.
SHAPES = {
    True: {"SST-2": [(16, 18), (64, 18)], "QNLI": [(64, 65)]},
    False: {"SST-2": [(2, 8)], "QNLI": [(4, 16)]},
}
#: What a CPU has time for, in place of RoBERTa-base.
SMALL = "{model_type: roberta, hidden_size: 48, num_hidden_layers: 2, "
SMALL += "num_attention_heads: 4, vocab_size: 200,"
SMALL += "intermediate_size: 96, max_position_embeddings: 80, type_vocab_size: 1}"


@pytest.mark.parametrize(
    ("precision", "row"),
    cases(
        [*product(("fp32", "tf32", "bf16"), ROWS)], product(("fp32", "bf16"), ROWS[:4])
    ),
)
def test_milliseconds_of_a_step(precision, row, found):
    """Neither right nor wrong."""
    run = run_of(row, precision, DEVICE)
    steps, seconds, words = Steps(run), dict[int, float](), []
    for task, shapes in SHAPES[ON_GPU].items():
        for rows, length in shapes:
            tokens = rows * length
            seconds[tokens] = steady(partial(steps, rows, length), 20 if ON_GPU else 2)
            words.append(f"{task} {rows} x {length} {seconds[tokens] * 1e3:.1f} ms")
    counted = methods.count_flops(run, rows, length, 0)
    tflops = counted[1] / seconds[tokens] / 1e12 if counted else None
    found(", ".join([*words, f"{tflops:.1f} TFLOP/s"]), seconds=seconds, tflops=tflops)
    steps.accelerator.free_memory()
    if ON_GPU:
        del steps
        torch.cuda.empty_cache()


def steady(step: Callable[[], Any], times: int) -> float:
    """Seconds a call, once it is warm; a call waits for the device."""
    for _ in range(min(times, 5)):
        step()
    began = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began) / times


def run_of(method: str, precision: str, device: str) -> Run:
    """A cell of table 2 (base), small on a CPU."""
    words = [
        "experiment=table2_base",
        f"method={method}",
        "task=sst2",
        "seed=0",
        f"device={device}",
    ]
    words += [f"train.precision={precision}"]
    if device == "cpu":
        words += [
            f"model.architecture={SMALL}",
            *(["method.rank=16"] if method == "vera" else []),
        ]
    return expand(words)[0]


class Steps:
    """Training steps of a run with random weights of its architecture, on random
    batches of any size."""

    def __init__(self, run: Run) -> None:
        self.accelerator, self.train = make_accelerator(run), run.config["train"]
        torch.manual_seed(0)
        outline = models.skeleton(run.config["model"], 2)
        with torch.device(self.accelerator.device):
            self.raw = type(outline)(outline.config)
        self.method = method_of_settings(run.method)
        self.method.adapt(self.raw)
        groups = optimizer_groups(self.method, self.raw, self.train)
        optimizer = make_optimizer(groups, self.train, self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        self.method.before_training(self.raw, 1000)
        self.count = 0

    def __call__(self, rows: int, length: int) -> float:
        device = self.accelerator.device
        ids = torch.randint(
            5, self.raw.config.vocab_size, (rows, length), device=device
        )
        mask = torch.ones_like(ids)
        mask[0, -1] = 0  # nearly every batch has padding
        labels = torch.zeros(rows, dtype=torch.long, device=device)
        self.model.train()
        with self.accelerator.autocast():
            loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        self.accelerator.backward(loss)
        trained = [p for p in self.raw.parameters() if p.requires_grad]
        self.accelerator.clip_grad_norm_(trained, self.train["clip"] or 1.0)
        self.optimizer.step()
        self.count += 1
        self.method.after_step(self.raw, self.count)
        self.optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())
