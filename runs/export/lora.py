"""An adapter converted to LoRA, for servers that know only LoRA, and what that loses."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import vera
from runs.export.outputs import Difference, difference, outputs
from runs.training.context import Context


@dataclass(frozen=True)
class Loss:
    """What a conversion at a rank loses. sites: for each adapted layer |change - LoRA| / |change| in
    Frobenius' norm; overall: the same over all layers together, None where the adapter changes no weight.
    before, after: the metric of the dev set. difference: of the outputs of some dev rows."""

    rank: int | float
    sites: dict[str, float]
    overall: float | None
    before: float
    after: float
    difference: Difference

    def text(self, metric: str, scale: float) -> str:
        """In words, for the screen and the card."""
        if self.overall is None:
            return "The adapter changes no weight: its kept epoch is one before its values had moved."
        worst = max(self.sites, key=lambda site: self.sites[site])
        return (
            f"The conversion to LoRA (rank={self.rank:g}) loses {self.overall:.2%} of the change of the"
            f" weights (Frobenius norm), at worst {self.sites[worst]:.2%}, in {worst}."
            f" {metric}: {scale * self.before:.2f} before, {scale * self.after:.2f} after."
            f" {self.difference.text()}"
        )


def write_lora(
    context: Context, rank: int | float, folder: Path, base: str | None, revision: str | None
) -> Loss:
    """Writes the adapter of a restored run as a LoRA in peft's format, with its head, loads that file onto
    the run's model and compares. rank, base, revision: see `vera.export_lora`.

    Raises AdapterError where it cannot be converted; nothing is written then."""
    import peft

    before, answers = context.score(), outputs(context)
    norms = vera.export_lora(context.raw_model, folder, rank, base, revision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a base model that it cannot look up
        peft.PeftModel.from_pretrained(context.raw_model, folder)  # in place
    after, again = context.score(), outputs(context)
    lost, whole = (math.hypot(*(norm[i] for norm in norms.values())) for i in (0, 1))
    return Loss(
        rank,
        {site: of_site / norm if norm else 0.0 for site, (of_site, norm) in norms.items()},
        lost / whole if whole else None,
        before,
        after,
        difference(answers, again),
    )
