"""What an exported folder holds: a LoRA that an adapter was converted to, the inputs' preparation, and how
its base model is loaded."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vera
from runs import models
from runs.training.context import Context
from tasks.images import ImageTask, write_preprocessing

#: Dev rows whose outputs are compared.
ROWS = 64
#: How far outputs may lie apart by rounding in float32, relative to the largest: a thousand units in the last
#: place. Merged, all methods moved MiniLM's by 0 to 24; VeRA and LoRA those of 24 and 32 layers by 3 to 8.
ROUNDING = 1000 * 2.0**-23


def write_lora(
    context: Context, rank: int | float, folder: Path, base: str | None, revision: str | None
) -> str:
    """Writes the adapter of a restored run as a LoRA in peft's format, with its head, loads that file onto
    the run's model, and says in words what is lost. rank, base, revision: see `vera.export_lora`.

    Raises AdapterError where it cannot be converted; nothing is written then."""
    import peft

    before, task, answers = context.score(), context.task, outputs(context)
    norms = vera.export_lora(context.raw_model, folder, rank, base, revision)
    lost, whole = (math.hypot(*(norm[i] for norm in norms.values())) for i in (0, 1))
    if not whole:
        return "The adapter changes no weight: its kept epoch is one before its values had moved."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a base model that it cannot look up
        peft.PeftModel.from_pretrained(context.raw_model, folder)  # in place
    shares = {site: of_site / norm if norm else 0.0 for site, (of_site, norm) in norms.items()}
    worst = max(shares, key=lambda site: shares[site])
    return (
        f"The conversion to LoRA (rank={rank:g}) loses {lost / whole:.2%} of the change of the weights"
        f" (Frobenius norm), at worst {shares[worst]:.2%}, in {worst}."
        f" {task.metric}: {task.scale * before:.2f} before, {task.scale * context.score():.2f} after."
        f" {difference(answers, outputs(context))[1]}"
    )


def difference(before: np.ndarray, after: np.ndarray) -> tuple[bool, str]:
    """Whether outputs of the same rows differ by rounding alone, and by how much, in words."""
    differ, largest = float(abs(after - before).max()), float(abs(before).max())
    words = f"Outputs of {len(before)} dev rows differ by at most {differ:.2g}; the largest is {largest:.2g}."
    return differ <= ROUNDING * largest, words


@torch.no_grad()
def outputs(context: Context) -> np.ndarray:
    """What the first dev rows are judged by, (rows, outputs), as the model answers now: logits, or a row's
    loss."""
    context.raw_model.eval()
    rows, size = range(min(ROWS, len(context.task.lengths("dev")))), context.config["eval_batch"]
    with vera.unchanged(context.raw_model), context.accelerator.autocast():
        batches = [context.batch("dev", rows[i : i + size]) for i in range(0, len(rows), size)]
        return np.concatenate([context.task.answers(context.raw_model, batch)[1] for batch in batches])


def write_inputs(context: Context, folder: Path) -> None:
    """Writes the tokenizer, or how images are prepared. timm's models have that in their own config.json,
    which a folder with the adapter alone has not."""
    from transformers import AutoTokenizer

    base = models.fetch(context.config["model"])
    if not isinstance(context.task, ImageTask):
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)
    elif (base / "preprocessor_config.json").is_file() or (folder / "config.json").is_file():
        write_preprocessing(base, folder, context.task.wanted)


def loads(context: Context) -> dict[str, Any]:
    """The settings with which transformers loads the base model as the run had it."""
    config, classes = context.raw_model.config, getattr(context.task, "classes", None)
    of_timm = config.model_type == "timm_wrapper"
    given = {
        "dtype": None if context.config["model"].get("quantise") else "float32",
        "num_labels": context.task.num_labels or None,
        "model_args": (config.model_args or {}) if of_timm else None,  # with its own number of classes
        # The base has a head of other classes
        "ignore_mismatched_sizes": of_timm or (config.architectures or [""])[0].endswith("Classification"),
        "id2label": dict(enumerate(classes)) if classes else None,
    }
    return {key: value for key, value in given.items() if value is not None and value is not False}
