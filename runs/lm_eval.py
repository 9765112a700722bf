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

import contextlib
import io
import itertools
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import NonNegativeInt

from runs.command.errors import UserError
from runs.command.parser import OfRecords, did_you_mean, entry_point, setting
from runs.evaluate import (
    amend,
    finished_records,
    kept_file,
    read_line,
    run_from_record,
)
from runs.models import dtype_of
from runs.record.cell import hash_of
from runs.record.keys import Count
from runs.record.ledger import (
    adding,
    evaluated,
    run_folder,
    write_atomically,
    write_beside,
)
from runs.record.schema import Record
from runs.record.text import describe
from runs.run.methods import make_method

#: Files of rows, and how datasets reads them.
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "fewshot_split")
#: Of a task's configuration, where its rows and its file are.
PLACES = (
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "custom_dataset",
    "metadata",
)


@dataclass(frozen=True)
class Settings(OfRecords):
    """The tasks, and how they are asked. What is null is as lm-eval has it."""

    tasks: str = setting(
        "", "of lm-eval, such as gsm8k,mmlu (lm-eval ls tasks lists them)"
    )
    num_fewshot: NonNegativeInt | None = setting(
        None, "examples in a prompt; null: the task's own number"
    )
    limit: Count | None = setting(None, "the first rows of each task alone, to try it")
    data_dir: str | None = setting(
        None, "a folder with the tasks' rows, in place of the hub"
    )
    run_data: str | None = setting(
        None, "after ids the same; else the data of the runs", "task.data_dir"
    )
    include_path: str | None = setting(None, "a folder with YAML files of own tasks")
    apply_chat_template: bool = setting(
        False, "prompts by the tokenizer's chat template"
    )
    redo: bool = setting(False, "again, although it was asked alike")
    eval_batch: Count | None = setting(
        None, "prompts answered at once; null: as in the run's configuration"
    )


def main(arguments: list[str]) -> int:
    line = read_line(arguments, Settings)
    settings = line.settings
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install '.[lm-eval]'")
    if line.names:
        settings = replace(settings, data_dir=settings.data_dir or settings.run_data)
    elif settings.run_data:
        line = replace(
            line, overrides=(*line.overrides, f"task.data_dir={settings.run_data}")
        )
    records = finished_records(line)
    for record in records:
        if (
            record["config"]["model"]["modality"] != "text generation"
            or record["parameters"]["head"]
        ):
            raise UserError(
                f"run {record['id']} is of a model with classes: lm-eval is for language models"
            )
        if record["parameters"]["adapter"]:  # it is there
            kept_file("adapter.safetensors", record, settings.output)
    every = load(settings)  # before a model, since rows may be missing
    for _, runs in itertools.groupby(sorted(records, key=base_of), base_of):
        model = Model(settings)
        for record, asked in itertools.product(runs, every):
            found, of = model.evaluate(record, asked), record["label"]
            name, before = (
                f"{of['row']} on {of['task']} seed {record['cell']['seed']}",
                found["before"],
            )
            print(
                f"{name}: {asked.name} {words(found['metrics'])} (before: {words(before['metrics'])})"
            )
    return 0


def base_of(record: Record) -> str:
    """A hash of the base model that a run adapts, and of how it is computed."""
    config = record["config"]
    model = [
        record["model"],
        config["model"].get("settings"),
        config["model"].get("quantise"),
    ]
    if dtype_of(config) != "fp32":
        model.append(dtype_of(config))
    return hash_of([*model, config["train"]["precision"], config["device"]])[:16]


def words(metrics: list[dict[str, Any]]) -> str:
    """Metrics in a few words: acc,none 0.3541 +-0.0131."""
    numbers = (
        [of[key] for key in ("value", "stderr") if of[key] is not None]
        for of in metrics
    )
    texts = (
        " +-".join(f"{number:.4f}" for number in each) or "nan" for each in numbers
    )
    return "; ".join(
        f"{of['metric']},{of['filter']} {text}"
        for of, text in zip(metrics, texts, strict=True)
    )


class Asked(NamedTuple):
    """A task, or a group with one result. loaded: by TaskManager. hash: of tasks, rows
    and how asked."""

    name: str
    loaded: dict[str, Any]
    hash: str


class Model:
    """A base model, loaded once it is needed, that carries the adapter of one run after
    another."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.loaded: tuple[Any, Any] | None = None  # with its tokenizer
        # its own results, by the hash of what was asked
        self.known = dict[str, dict[str, Any]]()

    def evaluate(self, record: Record, asked: Asked) -> dict[str, Any]:
        """The result of a run with the base model's: from its record, or asked for and
        put there."""
        output, key = self.settings.output, (asked.name, asked.hash)
        found = next(
            (of for of in evaluated(record) if (of["task"], of["asked"]) == key), None
        )
        if self.settings.redo or not found:
            before = self.before(record, asked)
            after = (
                self.ask(record, asked) if record["parameters"]["adapter"] else before
            )
            found = {
                **after,
                "before": {name: before[name] for name in ("metrics", "samples")},
            }
            if not amend(
                output,
                record["id"],
                lambda now: {"result": adding(now, evaluated(now), [found])},
            ):
                write_beside(output, record, found)
        return found

    def before(self, record: Record, asked: Asked) -> dict[str, Any]:
        """The result of a run's base model, which a file keeps for other runs."""
        path = Path(
            self.settings.output, "lm_eval", base_of(record), asked.hash, "results.json"
        )
        if asked.hash not in self.known:
            if self.settings.redo or not path.is_file():
                write_atomically(
                    path, json.dumps(self.ask(record, asked, path.parent)) + "\n"
                )
            self.known[asked.hash] = json.loads(path.read_text(encoding="utf-8"))
        return self.known[asked.hash]

    def ask(
        self, record: Record, asked: Asked, base: Path | None = None
    ) -> dict[str, Any]:
        """The result of a run; or of the base model alone, whose files go into the
        folder base. Where base weights were trained in place (full, BitFit), or changed
        by peft, the model is loaded afresh."""
        import vera
        from runs.training.context import load_base, make_accelerator, seed_everything
        from vera.base_weights import base_names

        output, config, run = (
            self.settings.output,
            record["config"],
            run_from_record(record),
        )
        print(
            f"{asked.name} of {record['label']['model']}{'' if base else ', ' + record['label']['row']}"
        )
        accelerator = make_accelerator(run)
        model, tokenizer = self.loaded or load_base(
            config, accelerator.device, config["seed"]
        )
        names = base_names(model)
        if not base:
            # As in a run: on the CPU, where peft draws what a file leaves out
            on_cpu = (
                config["method"]["kind"] == "peft"
                and config["model"].get("quantise") is None
            )
            model.to("cpu" if on_cpu else accelerator.device)
            # what the file lacks does not come back
            seed_everything(config["seed"] + 1)
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


# --- the tasks, and a model's results by them


def load(settings: Settings) -> list[Asked]:
    """The tasks of a command with their rows; of a tag, and of a group without a result
    of its own, each task. Raises UserError for an unknown name, and for a task or rows
    that cannot be asked."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names, found = (
        [name.strip() for name in settings.tasks.split(",")],
        dict[str, Asked](),
    )
    # all take 7 s
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)
    if names != [""] and not {*names} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=settings.include_path)
    read = manager._factory._load_full_config

    def config_of(entry: Any, *overrides: Any) -> dict[str, Any]:
        if (entry.cfg or {}).get("unsafe_code"):  # before its code is imported
            raise UserError(
                f"{entry.name}: runs generated code (unsafe_code), which is not done here"
            )
        config: dict[str, Any] = read(entry, *overrides)
        here = settings.data_dir and entry.kind.name != "GROUP"
        return config | rows_of(entry.name, config, settings) if here else config

    manager._factory._load_full_config = config_of
    for name in names:
        if name not in manager.task_index:
            near = (
                did_you_mean(name, manager.all_tasks) or " lm-eval ls tasks lists them."
            )
            raise UserError(
                f"tasks={name}: lm-eval has no such task.{near} Own ones: include_path=FOLDER"
            )
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # bars
                loaded = manager.load([name])
                whole = (
                    name in loaded["groups"] and loaded["groups"][name].has_aggregation
                )
                each = {
                    of: {"tasks": {of: task}, "groups": {}}
                    for of, task in loaded["tasks"].items()
                }
                for of, part in ({name: loaded} if whole else each).items():
                    found[of] = Asked(of, part, prepared(part, settings))
        except UserError:
            raise
        except Exception as error:
            # of datasets, the hub, YAML, a task's own code and templates
            why = f"num_fewshot={settings.num_fewshot}; {type(error).__name__}: {describe(error)[:200]}"
            mend = (
                "Its rows: from the hub, or data_dir=FOLDER with a file of each split"
            )
            raise UserError(f"{name}: cannot be asked ({why}). {mend}") from error
    return [*found.values()]


def rows_of(name: str, config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The keys of a task's configuration by which its rows come from the files of a
    folder, which are named by their splits; or from those of a folder in it. Raises
    UserError where there are none to be judged."""
    folder, inner = (
        str(settings.data_dir),
        (str(config.get("dataset_name")), "data", "."),
    )
    judged = config.get("test_split") or config.get("validation_split")
    for above, inside, (suffix, reader) in itertools.product(
        (name, "."), inner, READERS.items()
    ):
        files = dict[str, list[str]]()
        for path in sorted(Path(folder, above, inside).glob(f"*{suffix}")):
            # train-00000-of-00002: of train
            split = re.sub(r"-\d+-of-\d+$", "", path.stem)
            if split in map(config.get, ("test_split", *SPLITS)):
                files.setdefault(split, []).append(str(path.resolve()))
        if judged in files:
            known = {
                "dataset_path": reader,
                "dataset_name": None,
                "dataset_kwargs": {"data_files": files},
            }
            shots = (
                config.get("num_fewshot")
                if settings.num_fewshot is None
                else settings.num_fewshot
            )
            # no examples
            unread = [
                key for key in SPLITS if not shots and config.get(key) not in files
            ]
            return {**known, "custom_dataset": None, **dict.fromkeys(unread)}
    raise UserError(
        f"{folder}: {name} reads the split {judged}, which no .jsonl, .json or .parquet is named"
    )


def prepared(loaded: Mapping[str, Any], settings: Settings) -> str:
    """Sets the tasks' number of examples, as lm-eval's own command does, and tries each
    task on a row. Returns the hash of what is asked, in which functions are by their
    source."""
    shots = settings.num_fewshot
    parts: list[Any] = [
        version("lm_eval"),
        settings.limit,
        settings.apply_chat_template,
    ]
    for of in loaded["tasks"].values():
        own = of.get_config("num_fewshot")
        of.set_config("num_fewshot", (own or 0) if own == 0 or shots is None else shots)
        of.build_all_requests(limit=1)
        config = {
            key: value for key, value in of.dump_config().items() if key not in PLACES
        }
        examples = [*(of.fewshot_docs() or [])] if of.get_config("num_fewshot") else []
        parts.append([config, of.VERSION, [*of.eval_docs][: settings.limit], examples])
    for group in loaded["groups"].values():
        parts.append(
            [
                group.name,
                group.version,
                [vars(one) for one in group.aggregate_metric_list or ()],
            ]
        )
    text = json.dumps(parts, default=of.config.serialize_function)
    # another address in each process
    return hash_of(re.sub(r" at 0x[0-9a-f]+", "", text))[:16]


def ask(
    asked: Asked,
    settings: Settings,
    model: Any,
    tokenizer: Any,
    batch: int,
    folder: Path,
) -> Record:
    """A model's result; files of rows and answers go into the folder. UserError where
    it cannot be asked."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    name, tasks, chat = asked.name, asked.loaded["tasks"], settings.apply_chat_template
    for one in tasks.values():
        one.set_fewshot_seed(seed=1234)
    how = {
        "limit": settings.limit,
        "apply_chat_template": chat,
        "fewshot_as_multiturn": chat,
    }
    try:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        found: Any = lm_eval.evaluate(lm, asked.loaded, **how)
    except Exception as error:
        # of a task's templates and code, for prompts that are too long, of memory
        why = f"{type(error).__name__}: {describe(error)[:200]}"
        raise UserError(f"{name}: lm-eval cannot ask this model ({why})") from error
    for task, rows in found["samples"].items():
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
        write_atomically(
            folder / (re.sub(r"[^\w.-]", "_", task) + ".jsonl"), "\n".join([*lines, ""])
        )
    return {
        "task": name,
        "asked": asked.hash,
        "lm_eval": version("lm_eval"),
        "version": found["versions"].get(name),
        "shots": found["n-shot"].get(name),
        "limit": settings.limit,
        "rows": sum(found["n-samples"][task]["effective"] for task in tasks),
        "settings": {"apply_chat_template": chat, "batch": batch},
        "samples": hash_of(json.dumps(found["samples"], default=str)),
        "metrics": metrics(
            found["results"][name], found["higher_is_better"].get(name, {})
        ),
    }


def metrics(
    values: Mapping[str, Any], higher: Mapping[str, bool | None]
) -> list[dict[str, Any]]:
    """The metrics among a task's values, which have the names METRIC,FILTER and
    METRIC_stderr,FILTER."""
    known = {key: of for key, of in values.items() if "," in key}
    finite = {
        key: float(of)
        for key, of in known.items()
        if not isinstance(of, str) and math.isfinite(of)
    }
    found = []
    for metric, name in (key.split(",", 1) for key in known if "_stderr," not in key):
        numbers = {
            "value": finite.get(f"{metric},{name}"),
            "stderr": finite.get(f"{metric}_stderr,{name}"),
        }
        found.append(
            {
                "metric": metric,
                "filter": name,
                **numbers,
                "higher_is_better": higher.get(metric),
            }
        )
    return found


if __name__ == "__main__":
    entry_point(main)
