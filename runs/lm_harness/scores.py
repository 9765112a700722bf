"""What runs, and the base models below them, score on tasks of lm-evaluation-harness."""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.command.parser import setting
from runs.evaluate import amend, kept_file, run_from_record
from runs.lm_harness.tasks import AskedTask, TaskSettings
from runs.models import dtype_of
from runs.record.cell import hash_of
from runs.record.files import write_atomically
from runs.record.keys import Count
from runs.record.ledger import run_folder, write_lm_eval_measure
from runs.record.lm_eval import lm_eval_results, with_lm_eval
from runs.record.schema import (
    AddedKeys,
    EvaluationMetric,
    LmEvalResult,
    Record,
    TaskScores,
)
from runs.record.text import describe
from runs.run.methods import method_of_settings


@dataclass(frozen=True)
class ScoreSettings(TaskSettings):
    """The tasks, how a model is asked, and how its answers are computed."""

    redo: bool = setting(False, "again, although it was asked alike")
    eval_batch: Count | None = setting(None, "prompts at once (null: as in the run)")


def base_hash(record: Record) -> str:
    """A hash of the base model that a run adapts, and of its precision and device: runs
    with the same hash share the base model's results."""
    config = record["config"]
    model = config["model"]
    # record["model"] is the hash of the model's weights
    parts = [record["model"], model.get("settings"), model.get("quantise")]
    # Hashes from before model.dtype have no part for it, and stand for fp32
    if dtype_of(config) != "fp32":
        parts.append(dtype_of(config))
    precision = config["train"]["precision"]
    return hash_of([*parts, precision, config["device"]])[:16]


class Evaluator:
    """Evaluates the runs of one base model. It loads the model when it is first needed,
    and puts the adapter of one run after another on it."""

    def __init__(self, settings: ScoreSettings) -> None:
        self.settings = settings
        self._model_and_tokenizer: tuple[Any, Any] | None = None
        #: The base model's results, by the hash of what was asked.
        self._base_results: dict[str, TaskScores] = {}

    def evaluate(self, record: Record, task: AskedTask) -> LmEvalResult:
        """The result of a run on a task, with its base model's result. It is read from
        the record, or else computed and added to it."""
        output = self.settings.output
        if not self.settings.redo:
            for recorded in lm_eval_results(record):
                if (recorded["task"], recorded["asked"]) == (task.name, task.hash):
                    return recorded
        base_result = self._base_result(record, task)
        # a run without an adapter (method=none) is its base model
        scores = base_result
        if record["parameters"]["adapter"]:
            folder = run_folder(output, record["id"]) / "lm_eval" / task.hash
            scores = self._compute_result(record, task, folder, with_adapter=True)
        result: LmEvalResult = {
            **scores,
            "before": {
                "metrics": base_result["metrics"],
                "samples": base_result["samples"],
            },
        }

        # `amend` calls it under the run's lock, with the record as it is by then
        def new_keys(current: Record) -> AddedKeys:
            return {"result": with_lm_eval(current, lm_eval_results(current), [result])}

        # a published run without a record on this machine gets a file of its own
        if not amend(output, record["id"], new_keys):
            write_lm_eval_measure(output, record, result)
        return result

    def _base_result(self, record: Record, task: AskedTask) -> TaskScores:
        """The result of a run's base model on a task. It is read from a file, or else
        computed and written there, for all runs of this base model."""
        if task.hash not in self._base_results:
            folder = Path(self.settings.output, "lm_eval", base_hash(record), task.hash)
            path = folder / "results.json"
            if self.settings.redo or not path.is_file():
                result = self._compute_result(record, task, folder, with_adapter=False)
                write_atomically(path, json.dumps(result) + "\n")
            saved = json.loads(path.read_text(encoding="utf-8"))
            self._base_results[task.hash] = saved
        return self._base_results[task.hash]

    def _compute_result(
        self, record: Record, task: AskedTask, folder: Path, with_adapter: bool
    ) -> TaskScores:
        """Computes the result of a run, or of its base model alone. folder: where rows
        and answers are written. A model whose base weights were trained in place (full,
        BitFit) or changed by peft is not used again: the next call loads it."""
        import vera
        from runs.training.context import load_base, make_accelerator, seed_everything
        from vera.base_weights import untouched_base_names

        config = record["config"]
        label = record["label"]
        row = f", {label['row']}" if with_adapter else ""
        print(f"{task.name} of {label['model']}{row}")
        accelerator = make_accelerator(run_from_record(record))
        model, tokenizer = self._model_and_tokenizer or load_base(
            config, accelerator.device, config["seed"]
        )
        untouched_before = untouched_base_names(model)
        if with_adapter:
            self._adapt(model, record, accelerator.device)
        keeps_base_weights = untouched_before <= untouched_base_names(model)
        # until the adapter is taken off again, which an error below may prevent
        self._model_and_tokenizer = None
        model.to(accelerator.device)
        batch = self.settings.eval_batch or config["eval_batch"]
        seed_everything(1234)  # as lm-eval's own command seeds torch and numpy
        with vera.unchanged(model), accelerator.autocast():
            result = ask(task, self.settings, model, tokenizer, batch, folder)
        # a method that cannot be taken off leaves nothing to use again
        with contextlib.suppress(vera.AdapterError):
            vera.unload(model)
            if keeps_base_weights:
                self._model_and_tokenizer = (model, tokenizer)
        return result

    def _adapt(self, model: Any, record: Record, device: Any) -> None:
        """Gives the base model the adapter of a run."""
        import vera
        from runs.training.context import seed_everything

        config = record["config"]
        # as in a run: on the CPU, where peft draws what a file does not contain
        is_peft = config["method"]["kind"] == "peft"
        if is_peft and config["model"].get("quantise") is None:
            device = "cpu"
        model.to(device)
        # another seed than the run's, so that values which the file lacks are not drawn
        # again by chance
        seed_everything(config["seed"] + 1)
        method_of_settings(run_from_record(record).method).adapt(model)
        path = kept_file("adapter.safetensors", record, self.settings.output)
        vera.start_from(model, path)


def ask(
    task: AskedTask,
    settings: TaskSettings,
    model: Any,
    tokenizer: Any,
    batch: int,
    folder: Path,
) -> TaskScores:
    """Has lm-eval evaluate a model on a task, and writes rows and answers into the
    folder. batch: how many prompts at once. Raises UserError where lm-eval cannot ask the
    model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    name = task.name
    tasks = task.loaded["tasks"]
    has_chat = settings.apply_chat_template
    for loaded_task in tasks.values():
        loaded_task.set_fewshot_seed(seed=1234)  # as lm-eval's own command does
    try:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        results: Any = lm_eval.evaluate(
            lm,
            task.loaded,
            limit=settings.limit,
            apply_chat_template=has_chat,
            fewshot_as_multiturn=has_chat,
        )
    except Exception as error:
        # from a task's templates and code, prompts that are too long, or full memory
        reason = f"{type(error).__name__}: {describe(error)[:200]}"
        raise UserError(f"{name}: lm-eval cannot ask this model ({reason})") from error
    _write_samples(results["samples"], folder)
    counts = [results["n-samples"][task_name]["effective"] for task_name in tasks]
    directions = results["higher_is_better"].get(name, {})
    return {
        "task": name,
        "asked": task.hash,
        "lm_eval": version("lm_eval"),
        "version": results["versions"].get(name),
        "shots": results["n-shot"].get(name),
        "limit": settings.limit,
        "rows": sum(counts),
        "settings": {"apply_chat_template": has_chat, "batch": batch},
        "samples": hash_of(json.dumps(results["samples"], default=str)),
        "metrics": _metrics(results["results"][name], directions),
    }


def _write_samples(samples: Mapping[str, list[object]], folder: Path) -> None:
    """Writes a file of rows and answers for each task, a line each."""
    for task_name, rows in samples.items():
        lines = []
        for row in rows:
            lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        file_name = re.sub(r"[^\w.-]", "_", task_name) + ".jsonl"
        write_atomically(folder / file_name, "".join(lines))


def _metrics(
    values: Mapping[str, Any], directions: Mapping[str, bool | None]
) -> list[EvaluationMetric]:
    """The metrics among a task's values, which have the names METRIC,FILTER and
    METRIC_stderr,FILTER. directions: whether higher is better, by metric."""
    metrics: list[EvaluationMetric] = []
    for key, value in values.items():
        name, comma, filter_name = key.partition(",")
        if not comma or "_stderr," in key:
            continue
        metrics.append(
            {
                "metric": name,
                "filter": filter_name,
                "value": _finite(value),
                "stderr": _finite(values.get(f"{name}_stderr,{filter_name}")),
                "higher_is_better": directions.get(name),
            }
        )
    return metrics


def _finite(value: str | float | None) -> float | None:
    """The value if it is a finite number, else None. Where a metric has no standard
    error, lm-eval has a text."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return None
    return float(value)


def metrics_text(metrics: list[EvaluationMetric]) -> str:
    """Metrics in one line: acc,none 0.3541 +-0.0131."""
    parts = []
    for metric in metrics:
        text = "nan"
        if metric["value"] is not None:
            text = f"{metric['value']:.4f}"
        if metric["stderr"] is not None:
            text += f" +-{metric['stderr']:.4f}"
        parts.append(f"{metric['metric']},{metric['filter']} {text}")
    return "; ".join(parts)
