"""Evaluates finished language models by tasks of EleutherAI's lm-evaluation-harness, in this process.

python -m runs.lm_eval RUN [RUN ...] tasks=gsm8k,arc_easy         run ids (or their beginnings)
python -m runs.lm_eval experiment=NAME tasks=mmlu num_fewshot=5   every finished run of a preset, or of
                                                                  whatever else names runs
python -m runs.lm_eval RUN tasks=gsm8k data_dir=/where/gsm8k      rows from a folder: test.jsonl, train.jsonl
python -m runs.lm_eval RUN tasks=mine include_path=/where/yamls   own tasks

One base model is in memory: it is evaluated (base=false: not), and then with each run's adapter. The values
go into the records (result.lm_eval), rows and answers into outputs/runs/RUN/lm_eval. The same command
continues after a kill: what was asked alike is not asked again. python -m analysis.tables lm_eval shows it.
Needs pip install '.[lm-eval]'. On GSM8K a model of MetaMathQA says "The answer is: N": see flexible-extract.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from runs.command import OfRecords, entry_point, setting
from runs.config.schema import Count
from runs.errors import UserError
from runs.evaluate import Report, amend, kept_file, read_line, records_of, run_of
from runs.harness import Asked, ask, load
from runs.methods import make_method
from runs.record import (
    MEASURE_SCHEMA,
    Record,
    evaluated,
    finished_record,
    hash_of,
    plural,
    run_folder,
    write_atomically,
    write_measure,
)
from runs.shared_files import alone, run_lock

Entries = dict[str, dict[str, Any]]


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
    add_bos_token: bool | None = setting(None, "whether a prompt begins with that token")
    max_length: Count | None = setting(None, "tokens of prompt and answer; null: the model's positions")
    base: bool = setting(True, "the base model, too, once for all of its runs")
    redo: bool = setting(False, "again, although it was asked alike")
    eval_batch: Count | None = setting(None, "prompts answered at once; null: as in the run's configuration")
    device: Literal["auto", "cpu", "cuda", "mps"] | None = setting(None, "where; null: as there")


def main(arguments: list[str]) -> int:
    from runs.sweep.display import Display, heads

    line = read_line(arguments, Settings)
    settings, output = line.settings, line.settings.output
    if "LOCAL_RANK" in os.environ:
        raise UserError("lm-eval asks in one process: python -m runs.lm_eval, without torchrun")
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install '.[lm-eval]'")
    if line.names:
        settings = replace(settings, data_dir=settings.data_dir or settings.run_data)
    elif settings.run_data:
        line = replace(line, overrides=(*line.overrides, f"task.data_dir={settings.run_data}"))
    records = {record["id"]: as_asked(record, settings) for record in records_of(line)}
    for record in records.values():
        if record["config"]["model"]["modality"] != "text generation" or record["parameters"]["head"]:
            other = f"run {record['id']} is {record['label']['model']} on {record['label']['task']}"
            raise UserError(f"{other}: lm-eval is for language models, and this one has classes")
        if record["parameters"]["adapter"]:  # it is there
            kept_file("adapter.safetensors", record, output)
    every = load(settings)  # before a model, since rows may be missing
    names = [
        f"{of['label']['row']} on {of['label']['task']} seed {of['cell']['seed']}" for of in records.values()
    ]
    head_of, display = dict(zip(records, heads(names), strict=True)), Display()
    for _, group in itertools.groupby(sorted(records.values(), key=base_of), base_of):
        runs = list(group)
        model = Model(runs[0])
        for record in runs:
            head = head_of[record["id"]]

            def report(event: Any, head: str = head) -> None:
                display.show([(head, event)])

            with alone(run_lock(output, f"{record['id']}-lm_eval"), f"lm-eval of {head}"):
                for asked in every:
                    found, note = evaluate(record, asked, settings, model, report)
                    for name, entry in found.items():
                        display.line(f"{head}  {name}{note}: {words(entry)}")
    return 0


def as_asked(record: Record, settings: Settings) -> Record:
    """The record with the command's own settings in its configuration."""
    given = {key: getattr(settings, key) for key in ("output", "eval_batch", "device")}
    return {**record, "config": record["config"] | {k: v for k, v in given.items() if v is not None}}


def base_of(record: Record) -> str:
    """A hash of the base model that a run adapts, and of how it is computed."""
    config = record["config"]
    model = [record["model"], config["model"].get("settings"), config["model"].get("quantise")]
    return hash_of([*model, config["train"]["precision"], config["device"]])[:16]


def words(entry: Mapping[str, Any]) -> str:
    """A result in a few words."""

    def number(value: float | None, error: float | None) -> str:
        return ("nan" if value is None else f"{value:.4f}") + ("" if error is None else f" +-{error:.4f}")

    found = []
    for of in entry["metrics"]:
        filtered = "" if of["filter"] == "none" else f",{of['filter']}"
        before = f" (before {number(of['before'], of['before_stderr'])})" if "before" in of else ""
        found.append(f"{of['metric']}{filtered} {number(of['value'], of['stderr'])}{before}")
    return f"{'; '.join(found)}; {plural(entry['rows'], 'row')}"


# --- what is missing is asked, and kept


def evaluate(
    record: Record, asked: Asked, settings: Settings, model: "Model", report: Report
) -> tuple[Entries, str]:
    """The results of a run, from its record where it was asked alike, and a note where all are from there."""
    output, run = settings.output, record["id"]
    known = {**evaluated(record), **evaluated(finished_record(output, run) or {})}
    found: Entries = {} if settings.redo else asked.alike(known)
    lacks_base = settings.base and not all("samples_before" in entry for entry in found.values())
    if found and not lacks_base:
        return found, " (is there already)"
    trained = bool(record["parameters"]["adapter"])
    if settings.base or not trained:
        before = base_results(record, asked, settings, model, report)
    if not found:
        folder = run_folder(output, run) / "lm_eval"
        found = model.asked(asked, settings, folder, report, record) if trained else before
    if settings.base or not trained:
        found = {name: with_base(entry, before[name]) for name, entry in found.items()}

    def added(now: Record) -> Record:
        return {"result": {**now["result"], "lm_eval": {**evaluated(now), **found}}}

    if not amend(output, run, added):  # a run that only a study has
        keep_beside(output, record, {**known, **found})
    return found, ""


def base_results(record: Record, asked: Asked, settings: Settings, model: "Model", report: Report) -> Entries:
    """The results of the base model, which are kept beside its answers."""
    folder = Path(settings.output) / "lm_eval" / base_of(record)
    path = folder / f"{asked.hash}.json"
    if asked.name not in model.before:
        known = {} if settings.redo or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
        found = asked.alike(known) or model.asked(asked, settings, folder, report)
        write_atomically(path, json.dumps(found) + "\n")
        model.before[asked.name] = found
    return model.before[asked.name]


def with_base(entry: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A result with the base model's beside it."""
    both = zip(entry["metrics"], before["metrics"], strict=True)
    metrics = [{**of, "before": base["value"], "before_stderr": base["stderr"]} for of, base in both]
    return {**entry, "samples_before": before["samples"], "metrics": metrics}


def keep_beside(output: str, record: Record, entries: Entries) -> None:
    """Writes the results of a run without a record in the folder, as a measure."""
    of = {key: record[key] for key in ("id", "cell", "label")} | {"adapter": {}}
    values = {"task": [*entries], "entry": [*entries.values()]}
    about = {"schema": MEASURE_SCHEMA, "kind": "lm_eval", "settings": {}, "seeds": {}}
    write_measure(
        output, {**about, "id": hash_of(["lm_eval", record["id"]])[:12], "of": [of], "values": values}
    )


# --- the model


class Model:
    """A base model, loaded once it is needed, that carries the adapter of one run after another.

    before: the base model's results by what was asked."""

    def __init__(self, record: Record) -> None:
        self.config, self.run = record["config"], run_of(record)
        self.loaded: tuple[Any, Any] | None = None
        self.before = dict[str, Entries]()

    @contextlib.contextmanager
    def carrying(self, record: Record | None) -> Iterator[tuple[Any, Any]]:
        """The model with a run's adapter, or as it is, and its tokenizer. Where a method trains base weights
        in place (full, BitFit), or peft has changed them, the model is loaded afresh for the next."""
        import torch

        import vera
        from runs.training.context import load_base, make_accelerator, seed_everything
        from vera.base_weights import base_names

        accelerator = make_accelerator(self.run)
        device = accelerator.device
        if self.loaded is None:
            self.loaded = load_base(self.config, device, self.config["seed"])
        model, tokenizer = self.loaded
        names, whole, changed = base_names(model), self.config["model"].get("quantise") is None, True
        try:
            if record:
                # As in a run: on the CPU, where peft draws what a file leaves out
                model.to("cpu" if whole and record["config"]["method"]["kind"] == "peft" else device)
                seed_everything(record["config"]["seed"] + 1)  # what the file lacks does not come back
                make_method(run_of(record).method).adapt(model)
                file = kept_file("adapter.safetensors", record, record["config"]["output"])
                vera.start_from(model, file)
            changed = not names <= base_names(model)
            model.to(device)
            with torch.no_grad(), vera.unchanged(model), accelerator.autocast():
                yield model, tokenizer
        finally:
            try:
                vera.unload(model)
            except vera.AdapterError:
                changed = True
            self.loaded = None if changed else self.loaded

    def asked(
        self, asked: Asked, settings: Settings, folder: Path, report: Report, record: Record | None = None
    ) -> Entries:
        """The results of a run, or of the base model; rows and answers go into the folder."""
        report({"phase": f"{asked.name}: loading"})
        batch = (record or {"config": self.config})["config"]["eval_batch"]
        phase = f"{asked.name}{'' if record else ' of the base model'}"
        with self.carrying(record) as carried:
            return ask(asked, settings, carried, batch, folder, phase, report)


if __name__ == "__main__":
    entry_point(main)
