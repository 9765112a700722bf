"""Evaluates finished language models by tasks of EleutherAI's lm-evaluation-harness, in this process.

python -m runs.lm_eval RUN [RUN ...] tasks=gsm8k,arc_easy      run ids (or their beginnings)
python -m runs.lm_eval experiment=NAME tasks=mmlu              every finished run of whatever composes runs
python -m runs.lm_eval RUN tasks=gsm8k data_dir=/where/gsm8k   rows from a folder: test.jsonl, train.jsonl
python -m runs.lm_eval RUN tasks=mine include_path=/where/yamls

One base model is in memory: it is evaluated, and then with each run's adapter. Results go into the records
(analysis.tables lm_eval), rows and answers into outputs/runs/RUN/lm_eval. Needs pip install '.[lm-eval]'.
"""

import contextlib
import itertools
import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from runs.command import OfRecords, entry_point, setting
from runs.config.schema import Count
from runs.errors import UserError
from runs.evaluate import amend, kept_file, read_line, records_of, run_of
from runs.harness import Asked, ask, load
from runs.methods import make_method
from runs.record import Record, adding, evaluated, hash_of, run_folder, write_atomically, write_beside


@dataclass(frozen=True)
class Settings(OfRecords):
    """The tasks, and how they are asked. What is null is as lm-eval has it."""

    tasks: str = setting("", "of lm-eval, such as gsm8k,mmlu (lm-eval ls tasks lists them)")
    num_fewshot: NonNegativeInt | None = setting(None, "examples in a prompt; null: the task's own number")
    limit: Count | None = setting(None, "the first rows of each task alone, to try it")
    data_dir: str | None = setting(None, "a folder with the tasks' rows, in place of the hub")
    run_data: str | None = setting(None, "after ids the same; else the data of the runs", "task.data_dir")
    include_path: str | None = setting(None, "a folder with YAML files of own tasks")
    apply_chat_template: bool = setting(False, "prompts by the tokenizer's chat template")
    redo: bool = setting(False, "again, although it was asked alike")
    eval_batch: Count | None = setting(None, "prompts answered at once; null: as in the run's configuration")


def main(arguments: list[str]) -> int:
    line = read_line(arguments, Settings)
    settings = line.settings
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install '.[lm-eval]'")
    if line.names:
        settings = replace(settings, data_dir=settings.data_dir or settings.run_data)
    elif settings.run_data:
        line = replace(line, overrides=(*line.overrides, f"task.data_dir={settings.run_data}"))
    records = records_of(line)
    for record in records:
        if record["config"]["model"]["modality"] != "text generation" or record["parameters"]["head"]:
            raise UserError(f"run {record['id']} is of a model with classes: lm-eval is for language models")
        if record["parameters"]["adapter"]:  # it is there
            kept_file("adapter.safetensors", record, settings.output)
    every = load(settings)  # before a model, since rows may be missing
    for _, runs in itertools.groupby(sorted(records, key=base_of), base_of):
        model = Model(settings)
        for record, asked in itertools.product(runs, every):
            found, of = model.evaluate(record, asked), record["label"]
            name, before = f"{of['row']} on {of['task']} seed {record['cell']['seed']}", found["before"]
            print(f"{name}: {asked.name} {words(found['metrics'])} (before: {words(before['metrics'])})")
    return 0


def base_of(record: Record) -> str:
    """A hash of the base model that a run adapts, and of how it is computed."""
    config = record["config"]
    model = [record["model"], config["model"].get("settings"), config["model"].get("quantise")]
    return hash_of([*model, config["train"]["precision"], config["device"]])[:16]


def words(metrics: list[dict[str, Any]]) -> str:
    """Metrics in a few words: acc,none 0.3541 +-0.0131."""
    numbers = ([of[key] for key in ("value", "stderr") if of[key] is not None] for of in metrics)
    texts = (" +-".join(f"{number:.4f}" for number in each) or "nan" for each in numbers)
    return "; ".join(f"{of['metric']},{of['filter']} {text}" for of, text in zip(metrics, texts, strict=True))


class Model:
    """A base model, loaded once it is needed, that carries the adapter of one run after another."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded: tuple[Any, Any] | None = None  # with its tokenizer
        self.known = dict[str, dict[str, Any]]()  # its own results, by the hash of what was asked

    def evaluate(self, record: Record, asked: Asked) -> dict[str, Any]:
        """The result of a run with the base model's: from its record, or asked for and put there."""
        output, key = self.settings.output, (asked.name, asked.hash)
        found = next((of for of in evaluated(record) if (of["task"], of["asked"]) == key), None)
        if self.settings.redo or not found:
            before = self.before(record, asked)
            after = self.ask(record, asked) if record["parameters"]["adapter"] else before
            found = {**after, "before": {name: before[name] for name in ("metrics", "samples")}}
            if not amend(output, record["id"], lambda now: {"result": adding(now, evaluated(now), [found])}):
                write_beside(output, record, found)
        return found

    def before(self, record: Record, asked: Asked) -> dict[str, Any]:
        """The result of a run's base model, which a file keeps for other runs."""
        path = Path(self.settings.output, "lm_eval", base_of(record), asked.hash, "results.json")
        if asked.hash not in self.known:
            if self.settings.redo or not path.is_file():
                write_atomically(path, json.dumps(self.ask(record, asked, path.parent)) + "\n")
            self.known[asked.hash] = json.loads(path.read_text(encoding="utf-8"))
        return self.known[asked.hash]

    def ask(self, record: Record, asked: Asked, base: Path | None = None) -> dict[str, Any]:
        """The result of a run; or of the base model alone, whose files go into the folder base. Where base
        weights were trained in place (full, BitFit), or changed by peft, the model is loaded afresh."""
        import vera
        from runs.training.context import load_base, make_accelerator, seed_everything
        from vera.base_weights import base_names

        output, config, run = self.settings.output, record["config"], run_of(record)
        print(f"{asked.name} of {record['label']['model']}{'' if base else ', ' + record['label']['row']}")
        accelerator = make_accelerator(run)
        model, tokenizer = self.loaded or load_base(config, accelerator.device, config["seed"])
        names = base_names(model)
        if not base:
            # As in a run: on the CPU, where peft draws what a file leaves out
            on_cpu = config["method"]["kind"] == "peft" and config["model"].get("quantise") is None
            model.to("cpu" if on_cpu else accelerator.device)
            seed_everything(config["seed"] + 1)  # what the file lacks does not come back
            make_method(run.method).adapt(model)
            vera.start_from(model, kept_file("adapter.safetensors", record, output))
        same, self.loaded = names <= base_names(model), None
        model.to(accelerator.device)
        batch = self.settings.eval_batch or config["eval_batch"]
        folder = base or run_folder(output, record["id"]) / "lm_eval" / asked.hash
        seed_everything(1234)  # as lm-eval's own command seeds torch and numpy
        with vera.unchanged(model), accelerator.autocast():
            found = ask(asked, self.settings, model, tokenizer, batch, folder)
        with contextlib.suppress(vera.AdapterError):
            vera.unload(model)
            self.loaded = (model, tokenizer) if same else None
        return found


if __name__ == "__main__":
    entry_point(main)
