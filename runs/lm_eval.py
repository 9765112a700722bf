"""Evaluates finished language models on tasks of EleutherAI's lm-evaluation-harness,
in this process.

vera-bench lm-eval RUN [RUN ...] tasks=gsm8k,arc_easy
    RUN is a run id, or its beginning, as in outputs/records
vera-bench lm-eval experiment=NAME tasks=mmlu
    every finished run of a preset, or of other overrides
vera-bench lm-eval RUN tasks=gsm8k data_dir=/where/gsm8k
    rows from a folder that holds test.jsonl and train.jsonl
vera-bench lm-eval RUN tasks=mine include_path=/where/yamls
    tasks of your own

The base model is loaded once. It is evaluated by itself, and then with the adapter of
each run. Results go into the records (`vera-bench table lm_eval` shows them), rows and
answers into outputs/runs/RUN/lm_eval. You need pip install '.[lm-eval]' for it.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from importlib.util import find_spec

from runs.command.errors import UserError
from runs.command.parser import entry_point, setting
from runs.evaluate import finished_records, kept_file, read_line
from runs.lm_harness.scores import (
    Evaluator,
    ScoreSettings,
    base_hash,
    metrics_text,
)
from runs.lm_harness.tasks import load_tasks
from runs.record.schema import LmEvalResult, Record


@dataclass(frozen=True)
class Settings(ScoreSettings):
    """The settings of an evaluation, and task.data_dir=. Beside run ids this means the
    same as data_dir=; beside overrides it is one of them, and says where the runs have
    their own data."""

    run_data: str | None = setting(
        None, "the same; for overrides the runs' data", "task.data_dir"
    )


def main(arguments: list[str]) -> int:
    line = read_line(arguments, Settings)
    settings = line.settings
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install '.[lm-eval]'")
    # task.data_dir= is lm-eval's data beside run ids, and the runs' beside overrides
    if line.positional:
        settings = replace(settings, data_dir=settings.data_dir or settings.run_data)
    elif settings.run_data:
        data_override = f"task.data_dir={settings.run_data}"
        line = replace(line, overrides=(*line.overrides, data_override))
    records = finished_records(line)
    for record in records:
        _check_record(record, settings.output)
    tasks = load_tasks(settings)  # before a model, since rows may be missing
    records_by_base = defaultdict[str, list[Record]](list)
    for record in records:
        records_by_base[base_hash(record)].append(record)
    for base in sorted(records_by_base):
        evaluator = Evaluator(settings)
        for record in records_by_base[base]:
            for task in tasks:
                print(_result_line(record, evaluator.evaluate(record, task)))
    return 0


def _check_record(record: Record, output: str) -> None:
    """Raises UserError for a run whose model is no language model, or whose adapter is
    missing."""
    is_language_model = record["config"]["model"]["modality"] == "text generation"
    if not is_language_model or record["parameters"]["head"]:
        raise UserError(
            f"run {record['id']} is of a model with classes: lm-eval is for language "
            "models"
        )
    if record["parameters"]["adapter"]:
        kept_file("adapter.safetensors", record, output)


def _result_line(record: Record, result: LmEvalResult) -> str:
    """A run's metrics on a task, and those of its base model, in one line."""
    label = record["label"]
    name = f"{label['row']} on {label['task']} seed {record['cell']['seed']}"
    metrics = metrics_text(result["metrics"])
    metrics_before = metrics_text(result["before"]["metrics"])
    return f"{name}: {result['task']} {metrics} (before: {metrics_before})"


if __name__ == "__main__":
    entry_point(main)
