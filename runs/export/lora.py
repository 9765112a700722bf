"""An adapter converted to LoRA, for servers that know only LoRA, and what that loses."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import vera
from runs.training.context import Context

#: Dev rows whose outputs are compared.
ROWS = 8


@dataclass(frozen=True)
class Loss:
    """What a conversion at a rank loses. sites: for each adapted layer |change - LoRA| / |change| in
    Frobenius' norm; overall: the same over all layers together, None where the adapter changes no weight.
    before, after: the metric of the dev set. difference: the largest of an output (a logit, or a row's loss)
    over some dev rows; largest: the largest output."""

    rank: int | float
    sites: dict[str, float]
    overall: float | None
    before: float
    after: float
    difference: float
    largest: float

    def text(self, metric: str, scale: float) -> str:
        """In words, for the screen and the card."""
        if self.overall is None:
            return "The adapter changes no weight: its kept epoch is one before its values had moved."
        worst = max(self.sites, key=lambda site: self.sites[site])
        return (
            f"The conversion to LoRA (rank={self.rank:g}) loses {self.overall:.2%} of the change of the"
            f" weights (Frobenius norm), at worst {self.sites[worst]:.2%}, in {worst}."
            f" {metric}: {scale * self.before:.2f} before, {scale * self.after:.2f} after."
            f" Outputs of {ROWS} dev rows differ by at most {self.difference:.2g};"
            f" the largest is {self.largest:.2g}."
        )


def write_lora(
    context: Context, rank: int | float, folder: Path, base: str | None, revision: str | None
) -> Loss:
    """Writes the adapter of a restored run as a LoRA in peft's format, with its head, loads that file onto
    the run's model and compares. rank, base, revision: see `vera.export_lora`.

    Raises AdapterError where it cannot be converted; nothing is written then."""
    import peft

    before, outputs = context.score(), _outputs(context)
    norms = vera.export_lora(context.raw_model, folder, rank, base, revision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a base model that it cannot look up
        peft.PeftModel.from_pretrained(context.raw_model, folder)  # in place
    after, again = context.score(), _outputs(context)
    lost, whole = (math.hypot(*(norm[i] for norm in norms.values())) for i in (0, 1))
    return Loss(
        rank,
        {site: of_site / norm if norm else 0.0 for site, (of_site, norm) in norms.items()},
        lost / whole if whole else None,
        before,
        after,
        float(np.abs(again - outputs).max()),
        float(np.abs(outputs).max()),
    )


@torch.no_grad()
def _outputs(context: Context) -> np.ndarray:
    """What some dev rows are judged by, as the model answers now."""
    context.raw_model.eval()
    rows = range(min(ROWS, len(context.task.lengths("dev"))))
    with vera.unchanged(context.raw_model), context.accelerator.autocast():
        return context.task.answers(context.raw_model, context.batch("dev", rows))[1]
