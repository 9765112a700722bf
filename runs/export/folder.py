"""What belongs beside an adapter in peft's format: tokenizer or image preprocessing, and a card."""

from pathlib import Path
from typing import Any

from runs import models
from runs.export.card import card
from runs.models import Origin
from runs.record import Ledger, Record
from runs.training.context import Context
from tasks.images import ImageTask, write_preprocessing


def write_beside(
    context: Context,
    record: Record,
    ledger: Ledger,
    folder: Path,
    name: str,
    origin: Origin | None,
    licence: str | None,
    converted: str = "",
) -> None:
    """Writes the tokenizer, or how images are prepared, and the card. ledger: for the other seeds of the
    run's cell. name: what the card calls it: OWNER/NAME or a folder. converted: see `card`."""
    write_inputs(context, folder)
    written = card(record, ledger, name, origin, licence, loads(context, record), converted)
    (folder / "README.md").write_text(str(written), encoding="utf-8")


def write_inputs(context: Context, folder: Path) -> None:
    """Writes the tokenizer, or how images are prepared. timm's models have that in their own config.json,
    which a folder with the adapter alone has not."""
    from transformers import AutoTokenizer

    base = models.fetch(context.config["model"])
    if not isinstance(context.task, ImageTask):
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)
    elif (base / "preprocessor_config.json").is_file() or (folder / "config.json").is_file():
        write_preprocessing(base, folder, context.task.wanted)


def loads(context: Context, record: Record) -> dict[str, Any]:
    """The settings with which transformers loads the base model as the run had it."""
    classes = getattr(context.task, "classes", None)
    given: dict[str, Any] = {} if record["config"]["model"].get("quantise") else {"dtype": "float32"}
    if context.task.num_labels:
        given["num_labels"] = context.task.num_labels
    config = context.raw_model.config
    of_timm = config.model_type == "timm_wrapper"
    if of_timm:  # its own file has the number of classes here as well
        given["model_args"] = config.model_args or {}
    if of_timm or (config.architectures or [""])[0].endswith("Classification"):
        given["ignore_mismatched_sizes"] = True  # the base has a head of other classes
    if classes:
        given["id2label"] = dict(enumerate(classes))
    return given
