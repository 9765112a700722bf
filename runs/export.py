"""Takes a finished run's adapter elsewhere.

python -m runs.export RUN peft FOLDER      adapter and head in peft's format:
                                           peft.PeftModel.from_pretrained(base, FOLDER)
python -m runs.export RUN merged FOLDER    the whole model, the adapter merged in:
                                           AutoModel...from_pretrained(FOLDER)
python -m runs.export RUN fp16 FILE        the adapter file in half precision (or bf16), and what that costs
                                           in the metric

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
    name, form, place = line.names[0], one_of("format", line.names[1], FORMATS), Path(line.names[2])
    if place.exists() and (form.endswith("16") or any(place.iterdir())):
        raise UserError(f"{place}: is there already. Name another, or remove it")
    output = line.settings.output
    record = find(name, output)
    if not record["parameters"]["adapter"] and form != "merged":
        raise UserError(f"run {record['id']} ({record['label']['row']}) has no adapter to export")

    import torch
    from transformers import AutoTokenizer

    import vera
    from vera.checked_file import share

    quantised = form == "merged" and record["config"]["model"].get("quantise")
    if quantised:  # whole weights take the adapter in; 4-bit ones would round it away
        record = {
            **record,
            "config": {**record["config"], "model": {**record["config"]["model"], "quantise": None}},
        }
        print("the adapter was trained over 4-bit weights; it is merged into the whole ones")
    context = restore(record, output)
    model, method = context.raw_model, context.method
    if form == "peft":
        of = record["config"]["model"]
        # Its folder in a package says less
        packed = of["package"] or (of.get("wheel") or "").partition("==")[0]
        hub = None if of["path"] or packed else of["hub"]
        known_as = None if of["path"] else packed or hub
        vera.export_peft(model, place, known_as, of["revision"] if hub else None)
        base = models.fetch(of)
        print(f"for peft.PeftModel.from_pretrained(base, '{place}'), where base is the model of {base}")
    elif form == "merged":
        vera.unload(model, merge=True)
        classes, base = getattr(context.task, "classes", None), models.fetch(record["config"]["model"])
        if classes:
            model.config.id2label = dict(enumerate(classes))
            model.config.label2id = {c: i for i, c in enumerate(classes)}
        model.save_pretrained(place)
        for weights in place.glob("*.safetensors"):
            share(weights)
        if isinstance(context.task, ImageTask):
            write_preprocessing(base, place, context.task.wanted)
        else:
            AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(place)
    else:
        before = context.score()
        vera.save(model, method, place, {"fp16": torch.float16, "bf16": torch.bfloat16}[form])
        vera.load(model, place)
        after = context.score()
        scale = context.task.scale
        print(f"{context.task.metric}: {scale * before:.2f} before, {scale * after:.2f} from the {form} file")
    files = [place] if place.is_file() else list(place.iterdir())
    print(f"{place}: {megabytes(sum(file.stat().st_size for file in files))}")
    return 0


if __name__ == "__main__":
    entry_point(main)
