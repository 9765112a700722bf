"""Writes a finished run's adapter in peft's format or as a LoRA, or the whole model with
the adapter merged in."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runs import models
from runs.command.errors import UserError
from runs.evaluate import restore
from runs.publishing.card import CardOptions, model_card
from runs.record.ledger import read_ledger
from runs.record.schema import Record
from runs.record.text import megabytes
from tasks.images import ImageTask, write_preprocessing

if TYPE_CHECKING:
    import vera
    from runs.training.context import Context

#: On how many dev rows the outputs before and after a conversion are compared.
COMPARED_ROWS = 64
#: The largest rank of a LoRA that vLLM serves (its --max-lora-rank).
VLLM_RANK = 512
#: By how much rounding in float32 may change an output, relative to the largest one: a
#: thousand units in the last place. Merging changed the outputs of MiniLM by 0 to 24
#: units, over all methods, and those of models with 24 and 32 layers by 3 to 8, with
#: VeRA and LoRA.
ROUNDING = 1000 * 2.0**-23


@dataclass(frozen=True)
class AdapterChoices:
    """What a user chooses about an exported adapter.

    Attributes:
        base: the hub's name of the base model; None: what the record tells.
        licence: as the hub abbreviates it; None: the base model's.
        repository: OWNER/NAME on the hub, where the folder is to be pushed; None where
            it is not.
        as_lora: whether the adapter is converted to a LoRA.
        lora_rank: the LoRA's rank, or the share of the change that it keeps, as for
            `vera.export_lora`; None for a conversion of VeRA without loss.
    """

    base: str | None = None
    licence: str | None = None
    repository: str | None = None
    as_lora: bool = False
    lora_rank: int | float | None = None


def write_adapter(
    record: Record, folder: Path, output: str, choices: AdapterChoices
) -> None:
    """Writes a run's adapter in peft's format, with a model card and the files that
    prepare inputs. Prints what the user should know about it.

    Args:
        folder: where the adapter goes. It is made where it does not exist.
        output: the folder that holds the run's files.

    Raises:
        UserError: for a repository on the hub whose base model is not known.
    """
    import vera

    model = record["config"]["model"]
    origin = models.find_origin(model, record["model"], choices.base)
    _note_on_origin(record, origin, choices)
    licence = choices.licence or (origin.licence if origin else None)
    if licence is None:
        print("no licence is known, and the card names none (license=mit)")
    context = restore(record, output)
    unscale_answers(context)
    base, revision = (origin.name, origin.revision) if origin else (None, None)
    conversion_note = ""  # none for an adapter that is not converted
    if choices.as_lora:
        conversion_note = write_lora(context, choices.lora_rank, folder, base, revision)
        print(conversion_note)
    else:
        vera.export_peft(context.raw_model, folder, base, revision)
    write_inputs(context, folder)
    options = CardOptions(
        # no path of this machine in the card
        name=choices.repository or folder.resolve().name,
        origin=origin,
        licence=licence,
        loading=loading_settings(context),
        conversion_note=conversion_note,
    )
    card = model_card(record, read_ledger(output), options)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if not choices.repository:
        print(
            f"for peft.PeftModel.from_pretrained(base, '{folder}'), where base is the "
            f"model of {models.fetch(model)}"
        )


def _note_on_origin(
    record: Record, origin: models.Origin | None, choices: AdapterChoices
) -> None:
    """Prints what the user should know about the base model's name. Raises UserError
    where a repository needs the name and it is not known."""
    if origin is None and choices.repository:
        raise UserError(
            f"run {record['id']}: the hub's name of its base model is not known: name it, "
            "base=OWNER/NAME"
        )
    if origin is None:
        print(
            "the hub's name of the base model is not known: AutoPeftModel needs it "
            "(base=OWNER/NAME)"
        )
    elif origin.note and not choices.base:
        print(f"base model: {origin.name}. Note: {origin.note}")


def write_lora(
    context: "Context",
    rank: int | float | None,
    folder: Path,
    base: str | None,
    revision: str | None,
) -> str:
    """Writes the adapter of a restored run as a LoRA in peft's format, with its head.
    Then peft loads that file onto the run's model, to compare scores and outputs.

    Args:
        context: The run, restored. Its model has the LoRA afterwards.
        rank: As for `vera.export_lora`.
        folder: Where the adapter goes.
        base: As for `vera.export_lora`.
        revision: As for `vera.export_lora`.

    Returns:
        Sentences for a user: the rank, the size, what servers allow, and what is lost.

    Raises:
        AdapterError: The adapter cannot be converted; nothing is written then.
    """
    import peft

    import vera

    model = context.raw_model
    task = context.task
    score_before = context.score()
    outputs_before = dev_outputs(context)
    conversion = vera.export_lora(model, folder, rank, base, revision)
    if not conversion.change:  # the norm of all changes; there is nothing to compare
        return (
            "The adapter changes no weight: its kept epoch is one before its values had "
            "moved."
        )
    vera.unload(model)
    with warnings.catch_warnings():
        # peft warns of a base model that it cannot look up
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(model, folder)  # in place
    score_after = context.score()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    sentences = describe_conversion(conversion, rank, size)
    sentences.append(
        f"{task.metric}: {task.scale * score_before:.2f} before, "
        f"{task.scale * score_after:.2f} after."
    )
    sentences.append(
        OutputDifference.between(outputs_before, dev_outputs(context)).text
    )
    return " ".join(sentences)


def describe_conversion(
    conversion: "vera.Conversion", rank: int | float | None, size: int
) -> list[str]:
    """Sentences on a conversion to LoRA: the rank, the size, what servers allow, and
    what was lost. rank: the choice of the user; None for one without loss. size: of the
    file in bytes."""
    lora = f"The LoRA has rank {conversion.rank} and {megabytes(size)}."
    if conversion.rank > VLLM_RANK:
        limit = f"vLLM serves ranks up to {VLLM_RANK}: rank={VLLM_RANK} truncates it."
    else:
        limit = f"vLLM serves it with --max-lora-rank of at least {conversion.rank}."
    lost_share = conversion.error / conversion.change
    if rank is None:
        return [lora, limit, f"It is VeRA's change up to rounding ({lost_share:.0e})."]
    lost_by_layer = {}
    for name, layer in conversion.layers.items():
        lost_by_layer[name] = layer.error / layer.change if layer.change else 0.0
    worst = max(lost_by_layer, key=lambda name: lost_by_layer[name])
    loss = (
        f"The conversion to LoRA (rank={rank:g}) loses {lost_share:.2%} of the change "
        f"of the weights (Frobenius norm), at worst {lost_by_layer[worst]:.2%}, in "
        f"{worst}."
    )
    return [lora, limit, loss]


def write_merged(record: Record, folder: Path, output: str) -> None:
    """Writes a run's whole model with the adapter merged in, in float32 whatever the
    run computed in.

    Args:
        folder: where the model goes.
        output: the folder that holds the run's files.

    Raises:
        UserError: where merging changes its outputs by more than rounding; nothing is
            written then.
    """
    import vera

    config = record["config"].copy()
    config["train"] = {**config["train"], "precision": "fp32"}
    if config["model"].get("quantise"):
        # merged into 4-bit weights the adapter would be rounded away
        config["model"] = {**config["model"], "quantise": None}
        print(
            "the adapter was trained over 4-bit weights; it is merged into the whole "
            "ones"
        )
    context = restore({**record, "config": config}, output)
    model = context.raw_model
    model.float()
    outputs_before = dev_outputs(context)
    vera.unload(model, merge=True)
    difference = OutputDifference.between(outputs_before, dev_outputs(context))
    if not difference.is_rounding:
        raise UserError(
            f"run {record['id']} is not written: merged, it is another model. "
            f"{difference.text}"
        )
    print(difference.text)
    unscale_answers(context)
    classes = getattr(context.task, "classes", None)
    if classes:
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: index for index, name in enumerate(classes)}
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        # safetensors makes its files readable for their owner alone
        weights.chmod((folder / "config.json").stat().st_mode)
    write_inputs(context, folder)


def unscale_answers(context: "Context") -> None:
    """Changes the output layer of a regression that was trained on scaled labels, so
    that it predicts labels in their own units."""
    import vera

    if context.task.scaling:
        vera.unscale(vera.output_layer(context.raw_model), *context.task.scaling)
        context.task.scaling = None


@dataclass(frozen=True)
class OutputDifference:
    """By how much the outputs of two models for the same rows differ.

    Attributes:
        rows: how many.
        largest_change: the largest difference of an output, in absolute value.
        largest_output: the largest output of the first model, in absolute value.
    """

    rows: int
    largest_change: float
    largest_output: float

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> "OutputDifference":
        """The difference of two arrays of outputs (rows, outputs)."""
        change = float(abs(after - before).max())
        return cls(len(before), change, float(abs(before).max()))

    @property
    def is_rounding(self) -> bool:
        """Whether rounding alone may explain the difference."""
        return self.largest_change <= ROUNDING * self.largest_output

    @property
    def text(self) -> str:
        """The difference as a sentence."""
        return (
            f"Outputs of {self.rows} dev rows differ by at most "
            f"{self.largest_change:.2g}; the largest output is "
            f"{self.largest_output:.2g}."
        )


def dev_outputs(context: "Context") -> np.ndarray:
    """The model's outputs for the first COMPARED_ROWS dev rows.

    Returns:
        An array of shape (rows, outputs): logits or, for texts, each row's summed loss
        and how many tokens it sums.
    """
    import torch

    import vera

    model = context.raw_model
    task = context.task
    model.eval()
    count = min(COMPARED_ROWS, len(task.lengths("dev")))
    size = context.config["eval_batch"]
    parts = []
    with torch.no_grad(), vera.unchanged(model), context.accelerator.autocast():
        for start in range(0, count, size):
            rows = range(start, min(start + size, count))
            _, answers = task.answers(model, context.batch("dev", rows))
            parts.append(answers)
    return np.concatenate(parts)


def write_inputs(context: "Context", folder: Path) -> None:
    """Writes the tokenizer, or the settings by which images are prepared.

    transformers keeps these settings in preprocessor_config.json, and timm in a model's
    config.json. With a base model of timm, a folder that holds only the adapter has
    neither file, and gets no settings."""
    from transformers import AutoTokenizer

    base = models.fetch(context.config["model"])
    if not isinstance(context.task, ImageTask):
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        tokenizer.save_pretrained(folder)
        return
    has_own_file = (base / "preprocessor_config.json").is_file()
    if has_own_file or (folder / "config.json").is_file():
        write_preprocessing(base, folder, context.task.preprocessing)


def loading_settings(context: "Context") -> dict[str, Any]:
    """The arguments of from_pretrained with which transformers loads the base model as the
    run had it, for the card."""
    config = context.raw_model.config
    settings = dict[str, Any]()
    if not context.config["model"].get("quantise"):
        settings["dtype"] = models.DTYPES[models.dtype_of(context.config)]
    if context.task.num_labels:
        settings["num_labels"] = context.task.num_labels
    is_timm = config.model_type == "timm_wrapper"
    if is_timm:  # they include the number of classes
        settings["model_args"] = config.model_args or {}
    architecture = (config.architectures or [""])[0]
    if is_timm or architecture.endswith("Classification"):
        # The base model has a head, which may be for another number of classes
        settings["ignore_mismatched_sizes"] = True
    classes = getattr(context.task, "classes", None)
    if classes:
        settings["id2label"] = dict(enumerate(classes))
    return settings
