"""How often the harness's own training step waits for the device: on a GPU as CUDA tells it, on a CPU by what
has to be read (watch.py)."""

import warnings
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from gpu_check import material
from gpu_check.report import Report
from gpu_check.watch import Watch, on_meta
from runs.config import expand
from runs.training.loop import Training

LAYERS = 12
VERA = ["method=vera", "method.rank=40"]
METHODS = {
    "LoRA": ["method=lora"],
    "VeRA, factor": [*VERA, "method.path=factor"],
    "VeRA, merged and kept": [*VERA, "method.path=materialised", "method.weights=keep"],
    "VeRA, merged anew": [*VERA, "method.path=materialised", "method.weights=recompute"],
}
ROWS = list(range(8))


def run(report: Report, home: Path) -> None:
    words = material.text(home, num_hidden_layers=LAYERS)
    if not report.on_gpu:
        print("      counted on torch's device meta: what is read, not for how long", flush=True)
    found: dict[str, int] = {}
    for number, (name, own) in enumerate(METHODS.items()):
        output = f"output={home}/{number}"
        with report.guarded(f"reads of {name}"), nullcontext() if report.on_gpu else on_meta():
            steps, evaluation = counted([*words, *own, "device=auto", output], report.on_gpu)
            found[name] = steps.total()
            report.measured(
                f"{name}: waits of a step, {LAYERS} layers",
                f"{steps.total()}; of an evaluation's batch {evaluation.total()}",
                step=dict(steps),
                evaluation=dict(evaluation),
            )
    for name in found:
        if name != "LoRA":
            report.check(
                f"a step of {name} waits no more often than LoRA's",
                found[name] <= found["LoRA"],
                f"{found[name]} and {found['LoRA']}",
            )


def counted(words: list[str], on_gpu: bool) -> tuple[Counter[str], Counter[str]]:
    """Of a steady step, and of an evaluation of one batch, by where they come from."""
    (own,) = expand(words)
    training = Training(own, "0" * 12, lambda event: None)
    training.reached = True  # a gradient is looked for in the first steps alone
    training.task.begin_epoch(0, [ROWS] * 4)
    count = Waits if on_gpu else Watch
    for _ in range(3):
        if on_gpu:
            training.step(ROWS)
        else:
            with Watch():
                training.step(ROWS)
    with count() as step:
        training.step(ROWS)
    with count() as evaluation:
        training.evaluate(training.trained, training.inputs)
    return step.reads, evaluation.reads


class Waits(AbstractContextManager["Waits"]):
    """CUDA's own: each operation after which the host waits for the device is a warning."""

    def __enter__(self) -> "Waits":
        self.reads: Counter[str] = Counter()
        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        for one in self._warnings:
            if "synchroniz" in str(one.message):
                self.reads[f"{Path(one.filename).name}:{one.lineno}"] += 1
