"""What a model answers to some dev rows, before and after its adapter takes another form."""

from dataclasses import dataclass

import numpy as np
import torch

import vera
from runs.training.context import Context

#: Dev rows whose outputs are compared.
ROWS = 64
#: How far outputs may lie apart by rounding in float32, relative to the largest: a thousand units in the last
#: place. Merged, all methods moved MiniLM's by 0 to 24; VeRA and LoRA those of 24 and 32 layers by 3 to 8.
ROUNDING = 1000 * 2.0**-23


@dataclass(frozen=True)
class Difference:
    """Of the outputs (logits, or a row's loss) of two models on the same rows. largest: of the differences;
    size: the largest output."""

    rows: int
    largest: float
    size: float

    @property
    def is_rounding(self) -> bool:
        """Whether two float32 models may differ so and still be the same."""
        return self.largest <= ROUNDING * self.size

    def text(self) -> str:
        """In words, for the screen and the card."""
        return (
            f"Outputs of {self.rows} dev rows differ by at most {self.largest:.2g};"
            f" the largest is {self.size:.2g}."
        )


@torch.no_grad()
def outputs(context: Context) -> np.ndarray:
    """What some dev rows are judged by, (rows, outputs), as the model answers now."""
    context.raw_model.eval()
    rows, size = range(min(ROWS, len(context.task.lengths("dev")))), context.config["eval_batch"]
    with vera.unchanged(context.raw_model), context.accelerator.autocast():
        batches = [context.batch("dev", rows[i : i + size]) for i in range(0, len(rows), size)]
        return np.concatenate([context.task.answers(context.raw_model, batch)[1] for batch in batches])


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Between two results of `outputs`."""
    return Difference(len(before), float(np.abs(after - before).max()), float(np.abs(before).max()))
