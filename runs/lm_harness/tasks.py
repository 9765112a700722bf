"""The tasks of lm-evaluation-harness that a command names, with their rows."""

import contextlib
import io
import itertools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pydantic import NonNegativeInt

from runs.command.advice import did_you_mean
from runs.command.errors import UserError
from runs.command.parser import RecordSettings, setting
from runs.record.cell import hash_of
from runs.record.keys import Count
from runs.record.text import describe

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

#: The endings of files with rows, and the format under which datasets reads them.
FORMATS_OF_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
#: The keys of a task's configuration that name splits, except the one that is scored.
SPLIT_KEYS = ("training_split", "validation_split", "fewshot_split")
#: The keys of a task's configuration that say where its rows and its file are.
LOCATION_KEYS = (
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "custom_dataset",
    "metadata",
)


@dataclass(frozen=True)
class TaskSettings(RecordSettings):
    """The tasks, and how a model is asked. null: as lm-eval's configuration of the task
    has it."""

    tasks: str = setting("", "such as gsm8k,mmlu (lm-eval ls tasks)")
    num_fewshot: NonNegativeInt | None = setting(
        None, "examples in a prompt (null: the task's)"
    )
    limit: Count | None = setting(None, "so many rows of each task alone")
    data_dir: str | None = setting(None, "the tasks' rows, if not the hub's")
    include_path: str | None = setting(None, "a folder with YAML files of own tasks")
    apply_chat_template: bool = setting(False, "the tokenizer's template")


class LoadedTasks(TypedDict):
    """Tasks and groups by name, as TaskManager.load returns them."""

    tasks: dict[str, Any]
    groups: dict[str, Any]


class AskedTask(NamedTuple):
    """A task, or a group of tasks that has one result. loaded: its tasks, with the group.
    hash: of the tasks, their rows, and the settings of the prompts."""

    name: str
    loaded: LoadedTasks
    hash: str


def load_tasks(settings: TaskSettings) -> list[AskedTask]:
    """The tasks of a command with their rows. A tag, and a group without a result of
    its own, stand for each of their tasks. Raises UserError for an unknown name, and
    where a task or its rows cannot be loaded."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = [name.strip() for name in settings.tasks.split(",")]
    manager = _task_manager(names, settings)
    asked_tasks: dict[str, AskedTask] = {}
    for name in names:
        if name not in manager.task_index:
            advice = did_you_mean(name, manager.all_tasks)
            if not advice:
                advice = " lm-eval ls tasks lists them."
            raise UserError(
                f"tasks={name}: lm-eval has no such task.{advice} Own ones: "
                "include_path=FOLDER"
            )
        try:
            # without the progress bars
            with contextlib.redirect_stderr(io.StringIO()):
                loaded = manager.load([name])
                for part_name, part in _split_by_result(name, loaded).items():
                    content_hash = _prepare_tasks(part, settings)
                    asked_tasks[part_name] = AskedTask(part_name, part, content_hash)
        except UserError:
            raise
        except Exception as error:
            # from datasets, the hub, YAML, a task's own code and templates
            raise UserError(
                f"{name}: cannot be asked (num_fewshot={settings.num_fewshot}; "
                f"{type(error).__name__}: {describe(error)[:200]}). Its rows: from the "
                "hub, or data_dir=FOLDER with a file of each split"
            ) from error
    return list(asked_tasks.values())


def _task_manager(names: Sequence[str], settings: TaskSettings) -> "TaskManager":
    """The index of lm-eval's tasks. It refuses tasks with unsafe code, and has them read
    their rows from files where data_dir= gives some."""
    from lm_eval.tasks import TaskManager

    # the user's own tasks alone, if these are enough: lm-eval's take 7 s
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)
    names_no_task = not any(names)  # tasks= is empty, which the caller refuses
    if not names_no_task and not {*names} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=settings.include_path)
    # lm-eval reads the configuration of every task and group by this method
    read_config = manager._factory._load_full_config

    def read_checked_config(entry: Any, *overrides: object) -> dict[str, Any]:
        """Stands in for lm-eval's method: the same configuration, checked and with the
        rows of data_dir=."""
        # before the task's code is imported
        if (entry.cfg or {}).get("unsafe_code"):
            raise UserError(
                f"{entry.name}: runs generated code (unsafe_code), which is not done "
                "here"
            )
        config: dict[str, Any] = read_config(entry, *overrides)
        if settings.data_dir is None or entry.kind.name == "GROUP":
            return config
        return config | _rows_from_files(entry.name, config, settings)

    manager._factory._load_full_config = read_checked_config
    return manager


def _split_by_result(name: str, loaded: LoadedTasks) -> dict[str, LoadedTasks]:
    """What a name stands for, split into the parts that lm-eval gives one result each, by
    name: the whole group if its results are aggregated, else each task."""
    group = loaded["groups"].get(name)
    if group is not None and group.has_aggregation:
        return {name: loaded}
    parts: dict[str, LoadedTasks] = {}
    for task_name, task in loaded["tasks"].items():
        parts[task_name] = {"tasks": {task_name: task}, "groups": {}}
    return parts


def _rows_from_files(
    name: str, config: Mapping[str, Any], settings: TaskSettings
) -> dict[str, Any]:
    """The keys of a task's configuration that make it read its rows from files, with their
    values. The files are in data_dir= or a folder in it, and named by their splits.
    Raises UserError where there is no file for the split that is scored.

    name: of the task. config: its configuration."""
    scored_split = config.get("test_split") or config.get("validation_split")
    splits = [config.get(key) for key in ("test_split", *SPLIT_KEYS)]
    # The task's own folder is tried first, then data_dir= itself. In each, the folder of
    # the task's part of a data set (dataset_name) comes before the others.
    folders = []
    for parent in (name, "."):
        for child in (str(config.get("dataset_name")), "data", "."):
            folders.append(Path(str(settings.data_dir), parent, child))
    for folder, (suffix, reader) in itertools.product(
        folders, FORMATS_OF_FILES.items()
    ):
        files: dict[str, list[str]] = {}
        for path in sorted(folder.glob(f"*{suffix}")):
            # train-00000-of-00002 is a part of train
            split = re.sub(r"-\d+-of-\d+$", "", path.stem)
            if split in splits:
                files.setdefault(split, []).append(str(path.resolve()))
        if scored_split not in files:
            continue
        replaced_keys = {
            "dataset_path": reader,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            "custom_dataset": None,
        }
        shots = settings.num_fewshot
        if shots is None:
            shots = config.get("num_fewshot")
        for key in SPLIT_KEYS:
            # a missing split is not read where the prompt has no examples
            if not shots and config.get(key) not in files:
                replaced_keys[key] = None
        return replaced_keys
    raise UserError(
        f"{settings.data_dir}: {name} reads the split {scored_split}, which no .jsonl, "
        ".json or .parquet is named"
    )


def _prepare_tasks(loaded: LoadedTasks, settings: TaskSettings) -> str:
    """Sets the number of examples in the tasks' prompts, as lm-eval's own command does,
    and builds the first prompt of each task, so that an error comes before a model is
    loaded. Returns the hash of everything that defines the prompts, with functions as
    their source."""
    parts: list[object] = [
        version("lm_eval"),
        settings.limit,
        settings.apply_chat_template,
    ]
    tasks = list(loaded["tasks"].values())
    for task in tasks:
        shots = task.get_config("num_fewshot")
        # a task whose configuration says 0 never gets examples
        if settings.num_fewshot is not None and shots != 0:
            shots = settings.num_fewshot
        task.set_config("num_fewshot", shots or 0)
        task.build_all_requests(limit=1)
        parts.append(_task_content(task, settings.limit))
    for group in loaded["groups"].values():
        metrics = [vars(metric) for metric in group.aggregate_metric_list or ()]
        parts.append([group.name, group.version, metrics])
    text = json.dumps(parts, default=tasks[0].config.serialize_function)
    # the address of an object differs between processes
    return hash_of(re.sub(r" at 0x[0-9a-f]+", "", text))[:16]


def _task_content(task: Any, limit: int | None) -> list[object]:
    """What defines a task's prompts: its configuration, version, rows and examples."""
    config = dict(task.dump_config())
    for key in LOCATION_KEYS:
        config.pop(key, None)
    examples = []
    if task.get_config("num_fewshot"):
        examples = list(task.fewshot_docs() or [])
    return [config, task.VERSION, list(task.eval_docs)[:limit], examples]
