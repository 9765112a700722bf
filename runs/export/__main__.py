"""Writes a finished run's adapter for use elsewhere, or publishes it.

python -m runs.export RUN peft FOLDER      adapter and head in peft's format, with tokenizer and model card:
                                           peft.PeftModel.from_pretrained(base, FOLDER)
python -m runs.export RUN hub OWNER/NAME   the same folder, pushed to the Hugging Face hub (private=true: only
                                           its owner sees it)
python -m runs.export RUN lora FOLDER rank=8
                                           converted to LoRA by peft, for servers that know only LoRA; prints
                                           what that loses
python -m runs.export RUN merged FOLDER    the whole model, the adapter merged in:
                                           AutoModel...from_pretrained(FOLDER); prints by how much its
                                           outputs differ, and refuses more than rounding

RUN is a run id (or its beginning), as in outputs/records.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runs import models
from runs.command import OfRecords, entry_point, one_of, read, setting
from runs.errors import UserError
from runs.evaluate import find, restore
from runs.record import Record, read_ledger
from runs.record.text import megabytes

if TYPE_CHECKING:
    from runs.training.context import Context

#: The formats, and the settings that each of them takes.
FORMATS = {
    "peft": ("base", "license"),
    "hub": ("base", "license", "private"),
    "lora": ("base", "license", "rank"),
    "merged": (),
}


@dataclass(frozen=True)
class Settings(OfRecords):
    """Settings of the command."""

    private: bool = setting(False, "hub: a repository that is made is private")
    rank: int | float | None = setting(
        None, "lora: the rank of every layer, or below 1 the share of each layer's squared singular values"
    )
    base: str | None = setting(
        None, "the base model on the hub, where the run's is not known: OWNER/NAME or OWNER/NAME@REVISION"
    )
    license: str | None = setting(
        None, "the adapter's licence as the hub abbreviates it; by default the base model's"
    )


def main(arguments: list[str]) -> int:
    from runs.export.push import check_name, push

    line = read(arguments, Settings, names="RUN FORMAT PATH")
    name, form, target = line.names[0], one_of("format", line.names[1], FORMATS), line.names[2]
    settings, output, path = line.settings, line.settings.output, Path(target)
    _check(form, settings, line.given)
    if form == "hub":
        check_name(target)
    elif path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: is there already. Name another, or remove it")
    record = find(name, output)
    if not record["parameters"]["adapter"] and form != "merged":
        raise UserError(f"run {record['id']} ({record['label']['row']}) has no adapter to export")
    if form == "merged":
        _merge(record, path, output)
    else:
        path = Path(output) / "exports" / record["id"] if form == "hub" else path
        _travel(record, form, path, target, settings)
        if form == "hub":
            command = shlex.join(["python", "-m", "runs.export", *arguments])
            print(push(path, target, settings.private, f"Run {record['id']} of vera-bench", command))
    if form != "hub":
        print(f"{path}: {megabytes(sum(file.stat().st_size for file in path.iterdir()))}")
    return 0


def _check(form: str, settings: Settings, given: dict[str, object]) -> None:
    """Raises UserError for settings that do not belong to the format, or are none."""
    for key in sorted(given.keys() - {"output", "debug", *FORMATS[form]}):
        takers = ", ".join(name for name, keys in FORMATS.items() if key in keys)
        raise UserError(f"{key}= belongs to {takers}, not to {form}")
    rank = settings.rank
    if form == "lora" and rank is None:
        raise UserError("rank is missing: runs.export RUN lora FOLDER rank=8")
    if rank is not None and (rank <= 0 or (isinstance(rank, float) and rank > 1)):
        raise UserError(f"rank={rank}: should be a whole number from 1 on, or a share above 0 and up to 1")
    if settings.base and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", settings.base):
        raise UserError(f"base={settings.base}: should be OWNER/NAME or OWNER/NAME@REVISION on the hub")


def _travel(record: Record, form: str, path: Path, target: str, settings: Settings) -> None:
    """Writes a folder in peft's format, with tokenizer or image preprocessing and a card."""
    import vera
    from runs.export.card import card
    from runs.export.folder import loads, write_inputs, write_lora

    model = record["config"]["model"]
    origin = models.origin(model, record["model"], settings.base)
    if origin is None and form == "hub":
        unknown = "which model of the hub its base is, is not known: name it, base=OWNER/NAME"
        raise UserError(f"run {record['id']}: {unknown}")
    if origin is None:
        print("which model of the hub the base is, is not known: AutoPeftModel needs it (base=OWNER/NAME)")
    elif origin.note and not settings.base:
        print(f"base model: {origin.name}. Note: {origin.note}")
    licence = settings.license or (origin.licence if origin else None)
    if licence is None:
        print("no licence is known, and the card names none (license=mit)")
    ledger, context = read_ledger(settings.output), restore(record, settings.output)
    base, lost = (origin.name, origin.revision) if origin else (None, None), ""
    if settings.rank is not None:
        lost = write_lora(context, settings.rank, path, *base)
        print(lost)
    else:
        vera.export_peft(context.raw_model, path, *base)
    write_inputs(context, path)
    named = target if form == "hub" else path.resolve().name  # no path of this machine in the card
    text = card(record, ledger, named, origin, licence, loads(context), lost)
    (path / "README.md").write_text(text, encoding="utf-8")
    if form != "hub":
        where = models.fetch(model)
        print(f"for peft.PeftModel.from_pretrained(base, '{path}'), where base is the model of {where}")


def _merge(record: Record, path: Path, output: str) -> None:
    """Writes the whole model with the adapter merged in."""
    import vera
    from runs.export.folder import difference, outputs, write_inputs

    config = record["config"]
    # The folder's weights are float32, whatever the run computed in
    config = {**config, "train": {**config["train"], "precision": "fp32"}}
    if config["model"].get("quantise"):
        # Whole weights take the adapter in; 4-bit ones would round it away
        config["model"] = {**config["model"], "quantise": None}
        print("the adapter was trained over 4-bit weights; it is merged into the whole ones")
    context: Context = restore({**record, "config": config}, output)
    model, before = context.raw_model, outputs(context)
    vera.unload(model, merge=True)
    rounding, told = difference(before, outputs(context))
    if not rounding:
        raise UserError(f"run {record['id']} is not written: merged, it is another model. {told}")
    print(told)
    if classes := getattr(context.task, "classes", None):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {c: i for i, c in enumerate(classes)}
    model.save_pretrained(path)
    for weights in path.glob("*.safetensors"):
        weights.chmod((path / "config.json").stat().st_mode)  # safetensors' own are for the owner alone
    write_inputs(context, path)


if __name__ == "__main__":
    entry_point(main)
