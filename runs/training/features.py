"""For a head that trains alone, its input is computed once for every image instead of once an epoch.

That is exact only where nothing before the head is random or differs in training (dropout), and nothing comes
after it. Both are tested on the first batch, bit for bit; otherwise every step runs the whole model."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runs.training.context import Context


@dataclass(frozen=True)
class Features:
    """The inputs of a head on the device, (rows, width) for each split, and the seconds that each took."""

    head: nn.Module
    inputs: dict[str, Tensor]
    seconds: dict[str, float]

    def batch(self, context: Context, split: str, rows: Sequence[int]) -> dict[str, Any]:
        """A batch with features in the place of pixels."""
        labels = torch.from_numpy(context.task.labels(split)[list(rows)]).to(context.accelerator.device)
        return {"features": self.inputs[split][list(rows)], "labels": labels}


@torch.no_grad()
def compute(context: Context, parameters: Iterable[str]) -> Features | None:
    """The features of both splits; None where they would not be exact, or where the trained parameters are
    not those of one linear layer. parameters: their names."""
    model, trained = context.raw_model, {name.rpartition(".")[0] for name in parameters}
    head = model.get_submodule(*trained) if len(trained) == 1 and context.task.fixed else None
    if not isinstance(head, nn.Linear):
        return None
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        if not _exact(context, head, seen):
            print("what the head reads is random, or not all: features are computed in each step", flush=True)
            return None
        size, inputs, seconds = context.config["eval_batch"], {}, {}
        for split in ("train", "dev"):
            count, seen[:], started = len(context.task.lengths(split)), [], time.monotonic()
            for start in range(0, count, size):
                _run(context, split, range(start, min(start + size, count)))
            inputs[split] = torch.cat(seen)
            seconds[split] = time.monotonic() - started
    finally:
        hook.remove()
    rows = sum(map(len, inputs.values()))
    print(f"the head's inputs are computed once: {rows} x {head.in_features}", flush=True)
    return Features(head, inputs, seconds)


def _run(context: Context, split: str, rows: Sequence[int]) -> Tensor:
    with context.accelerator.autocast():
        logits: Tensor = context.task.logits(context.raw_model, context.batch(split, rows))
    return logits


def _exact(context: Context, head: nn.Module, seen: list[Tensor]) -> bool:
    """Whether the head's input is the same, twice in training mode and in evaluation, and the head's output
    is the model's."""
    rows = range(min(8, len(context.task.lengths("train"))))
    generator = torch.get_rng_state()
    for training_mode in (True, True, False):
        context.raw_model.train(training_mode)
        logits = _run(context, "train", rows)
    torch.set_rng_state(generator)
    if len(seen) != 3 or seen[0].dim() != 2 or not all(torch.equal(seen[0], other) for other in seen[1:]):
        return False
    with context.accelerator.autocast():
        return torch.equal(head(seen[2]), logits)
