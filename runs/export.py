"""Writes a finished run's adapter for use elsewhere.

python -m runs.export RUN peft FOLDER      adapter and head in peft's format:
                                           peft.PeftModel.from_pretrained(base, FOLDER)
python -m runs.export RUN merged FOLDER    the whole model, the adapter merged in:
                                           AutoModel...from_pretrained(FOLDER)
python -m runs.export RUN fp16 FILE        the adapter file in half precision (or bf16); prints the metric
                                           before and after

RUN is a run id (or its beginning), as in outputs/records.
"""

from pathlib import Path

from runs import models
from runs.command import OfRecords, entry_point, one_of, read
from runs.errors import UserError
from runs.evaluate import find, restore
from runs.record.text import megabytes
from tasks.images import ImageTask, write_preprocessing

FORMATS = ("peft", "merged", "fp16", "bf16")


class Settings(OfRecords):
    """None of its own."""


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN FORMAT PATH")
    name, form, path = line.names[0], one_of("format", line.names[1], FORMATS), Path(line.names[2])
    if path.exists() and (form.endswith("16") or any(path.iterdir())):
        raise UserError(f"{path}: is there already. Name another, or remove it")
    output = line.settings.output
    record = find(name, output)
    if not record["parameters"]["adapter"] and form != "merged":
        raise UserError(f"run {record['id']} ({record['label']['row']}) has no adapter to export")

    import torch
    from transformers import AutoTokenizer

    import vera
    from vera.checked_file import share

    settings = record["config"]["model"]
    if form == "merged" and settings.get("quantise"):
        # Whole weights take the adapter in; 4-bit ones would round it away
        record = {**record, "config": {**record["config"], "model": {**settings, "quantise": None}}}
        print("the adapter was trained over 4-bit weights; it is merged into the whole ones")
    context = restore(record, output)
    model, method = context.raw_model, context.method
    if form == "peft":
        package = models.packages(settings)
        hub = None if settings["path"] or package else settings["hub"]
        base_name = None if settings["path"] else package or hub  # None: the folder that it was loaded from
        vera.export_peft(model, path, base_name, settings["revision"] if hub else None)
        base = models.fetch(settings)
        print(f"for peft.PeftModel.from_pretrained(base, '{path}'), where base is the model of {base}")
    elif form == "merged":
        vera.unload(model, merge=True)
        classes, base = getattr(context.task, "classes", None), models.fetch(settings)
        if classes:
            model.config.id2label = dict(enumerate(classes))
            model.config.label2id = {c: i for i, c in enumerate(classes)}
        model.save_pretrained(path)
        for weights in path.glob("*.safetensors"):
            share(weights)
        if isinstance(context.task, ImageTask):
            write_preprocessing(base, path, context.task.wanted)
        else:
            AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(path)
    else:
        before = context.score()
        vera.save(model, method, path, {"fp16": torch.float16, "bf16": torch.bfloat16}[form])
        vera.load(model, path)
        after = context.score()
        scale = context.task.scale
        print(f"{context.task.metric}: {scale * before:.2f} before, {scale * after:.2f} from the {form} file")
    files = [path] if path.is_file() else list(path.iterdir())
    print(f"{path}: {megabytes(sum(file.stat().st_size for file in files))}")
    return 0


if __name__ == "__main__":
    entry_point(main)
