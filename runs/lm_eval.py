"""Evaluates finished language models by tasks of EleutherAI's lm-evaluation-harness, in this process.

python -m runs.lm_eval RUN [RUN ...] tasks=gsm8k,arc_easy         run ids (or their beginnings)
python -m runs.lm_eval experiment=NAME tasks=mmlu num_fewshot=5   every finished run of a preset, or of
                                                                  whatever else names runs
python -m runs.lm_eval RUN tasks=gsm8k data_dir=/where/gsm8k      rows from a folder: test.jsonl, train.jsonl
python -m runs.lm_eval RUN tasks=mine include_path=/where/yamls   own tasks

One base model is in memory: it is evaluated (base=false: not), and then with each run's adapter. The values
go into the records, rows and answers into outputs/runs/RUN/lm_eval. What was asked alike is not asked again.
python -m analysis.tables lm_eval shows it. Needs pip install '.[lm-eval]'.
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
from runs.evaluate import amend, kept_file, read_line, records_of, run_of
from runs.harness import Asked, ask, load
from runs.methods import make_method
from runs.record import Record, adding, evaluated, hash_of, plural, run_folder, write_atomically, write_beside
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
    from transformers import AutoTokenizer

    from runs.models import fetch
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
    given = {k: of for k in ("output", "eval_batch", "device") if (of := getattr(settings, k)) is not None}
    records = {of["id"]: {**of, "config": of["config"] | given} for of in records_of(line)}
    for record in records.values():
        if record["config"]["model"]["modality"] != "text generation" or record["parameters"]["head"]:
            raise UserError(f"run {record['id']} is of a model with classes: lm-eval is for language models")
        if record["parameters"]["adapter"]:  # it is there
            kept_file("adapter.safetensors", record, output)
        if settings.apply_chat_template:
            folder = fetch(record["config"]["model"])
            if not AutoTokenizer.from_pretrained(folder, local_files_only=True).chat_template:
                raise UserError(f"apply_chat_template=true: {record['label']['model']} has no chat template")
    display, every = Display(), load(settings)  # before a model, since rows may be missing
    name = "{0[label][row]} on {0[label][task]} seed {0[cell][seed]}"
    head_of = dict(zip(records, heads([*map(name.format, records.values())]), strict=True))
    for _, group in itertools.groupby(sorted(records.values(), key=base_of), base_of):
        runs = list(group)
        model = Model(runs[0], settings, display)
        for record in runs:
            head = model.head = head_of[record["id"]]
            with alone(run_lock(output, f"{record['id']}-lm_eval"), f"lm-eval of {head}"):
                for asked in every:
                    count = len(model.written)
                    found = evaluate(record, asked, settings, model)
                    note = "" if len(model.written) > count else " (is there already)"
                    for name, entry in found.items():
                        display.line(f"{head}  {name}{note}: {words(entry)}")
    return 0


def base_of(record: Record) -> str:
    """A hash of the base model that a run adapts, and of how it is computed."""
    config = record["config"]
    model = [record["model"], config["model"].get("settings"), config["model"].get("quantise")]
    return hash_of([*model, config["train"]["precision"], config["device"]])[:16]


def words(entry: Mapping[str, Any]) -> str:
    """A result in a few words."""

    def number(value: float | None, error: float | None) -> str:
        return ("nan" if value is None else f"{value:.4f}") + ("" if error is None else f" +-{error:.4f}")

    found = [plural(entry["rows"], "row")]
    for of in entry["metrics"]:
        before = f" (before {number(of['before'], of['before_stderr'])})" if "before" in of else ""
        name = f"{of['metric']},{of['filter']}".removesuffix(",none")
        found.insert(-1, f"{name} {number(of['value'], of['stderr'])}{before}")
    return "; ".join(found)


def evaluate(record: Record, asked: Asked, settings: Settings, model: "Model") -> Entries:
    """The results of a run with the base model's; what was asked alike is from its record or its folder."""
    run, trained = record["id"], bool(record["parameters"]["adapter"])
    found: Entries = {} if settings.redo else asked.alike(evaluated(record))
    if found and not (settings.base and any("samples_before" not in entry for entry in found.values())):
        return found
    before = model.results(asked) if settings.base or not trained else {}
    found = found or (model.results(asked, record) if trained else before)
    found = {name: with_base(entry, before[name]) for name, entry in found.items()} if before else found
    if not amend(settings.output, run, lambda now: {"result": adding(now, evaluated(now), found)}):
        record["result"] = adding(record, evaluated(record), found)
        write_beside(settings.output, record)
    return found


def with_base(entry: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A result with the base model's beside it."""
    both = zip(entry["metrics"], before["metrics"], strict=True)
    metrics = [{**of, "before": base["value"], "before_stderr": base["stderr"]} for of, base in both]
    return {**entry, "samples_before": before["samples"], "metrics": metrics}


class Model:
    """A base model, loaded once it is needed, that carries the adapter of one run after another.

    written: the files of results that this command has asked for."""

    def __init__(self, record: Record, settings: Settings, display: Any) -> None:
        self.settings, self.config, self.base = settings, record["config"], base_of(record)
        self.run, self.display, self.head = run_of(record), display, ""
        self.loaded: tuple[Any, Any] | None = None
        self.written = set[Path]()

    @contextlib.contextmanager
    def carrying(self, record: Record | None) -> Iterator[tuple[Any, Any]]:
        """The model with a run's adapter, or as it is, and its tokenizer. Where a method trains base weights
        in place (full, BitFit), or peft has changed them, the model is loaded afresh for the next."""
        import vera
        from runs.training.context import load_base, make_accelerator, seed_everything
        from vera.base_weights import base_names

        accelerator = make_accelerator(self.run)
        device = accelerator.device
        self.loaded = self.loaded or load_base(self.config, device, self.config["seed"])
        model, tokenizer = self.loaded
        names, whole, changed = base_names(model), self.config["model"].get("quantise") is None, True
        try:
            if record:
                # As in a run: on the CPU, where peft draws what a file leaves out
                model.to("cpu" if whole and record["config"]["method"]["kind"] == "peft" else device)
                seed_everything(record["config"]["seed"] + 1)  # what the file lacks does not come back
                make_method(run_of(record).method).adapt(model)
                vera.start_from(model, kept_file("adapter.safetensors", record, self.settings.output))
            changed = not names <= base_names(model)
            model.to(device)
            with vera.unchanged(model), accelerator.autocast():
                yield model, tokenizer
        finally:
            try:
                vera.unload(model)
            except vera.AdapterError:
                changed = True
            self.loaded = None if changed else self.loaded

    def report(self, event: dict[str, Any]) -> None:
        self.display.show([(self.head, event)])

    def results(self, asked: Asked, record: Record | None = None) -> Entries:
        """The results of a run, or of the base model: from its folder, where rows and answers are, too."""
        settings, of = self.settings, record or {"config": self.config}
        above = run_folder(settings.output, of["id"]) if record else Path(settings.output)
        folder = above / "lm_eval" / ("" if record else self.base) / asked.hash
        path, adapter = folder / "results.json", of.get("files", {}).get("adapter.safetensors")
        if path.is_file() and (path in self.written or not settings.redo):
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["adapter"] == adapter:  # or the run was made again
                return dict(kept["results"])
        self.report({"phase": f"{asked.name}: loading"})
        phase = f"{asked.name}{'' if record else ' of the base model'}"
        with self.carrying(record) as carried:
            found = ask(asked, settings, carried, of["config"]["eval_batch"], folder, phase, self.report)
        write_atomically(path, json.dumps({"adapter": adapter, "results": found}) + "\n")
        self.written.add(path)
        return found


if __name__ == "__main__":
    entry_point(main)
