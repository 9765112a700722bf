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

#: Files of rows, and how datasets reads them.
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "fewshot_split")
#: The keys of a task's configuration that say where its rows and its file are.
PLACES = (
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "custom_dataset",
    "metadata",
)


@dataclass(frozen=True)
class TaskSettings(RecordSettings):
    """The tasks, and how they are asked. What is null is as lm-eval has it."""

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
    """A task, or a group with one result. hash: of tasks, rows and how they are
    asked."""

    name: str
    loaded: LoadedTasks
    hash: str


def load_tasks(settings: TaskSettings) -> list[AskedTask]:
    """The tasks of a command with their rows; of a tag, and of a group without a result
    of its own, each task. Raises UserError for an unknown name, and for a task or rows
    that cannot be asked."""
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
            with contextlib.redirect_stderr(io.StringIO()):  # bars
                loaded = manager.load([name])
                for part_name, part in _with_own_result(name, loaded).items():
                    content = _prepare(part, settings)
                    asked_tasks[part_name] = AskedTask(part_name, part, content)
        except UserError:
            raise
        except Exception as error:
            # of datasets, the hub, YAML, a task's own code and templates
            raise UserError(
                f"{name}: cannot be asked (num_fewshot={settings.num_fewshot}; "
                f"{type(error).__name__}: {describe(error)[:200]}). Its rows: from the "
                "hub, or data_dir=FOLDER with a file of each split"
            ) from error
    return list(asked_tasks.values())


def _task_manager(names: Sequence[str], settings: TaskSettings) -> "TaskManager":
    """The index of lm-eval's tasks, which refuses unsafe code, and reads rows from
    files where they are given."""
    from lm_eval.tasks import TaskManager

    # all of lm-eval's own take 7 s
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)
    if names != [""] and not {*names} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=settings.include_path)
    read_config = manager._factory._load_full_config

    def read_checked_config(entry: Any, *overrides: object) -> dict[str, Any]:
        if (entry.cfg or {}).get("unsafe_code"):  # before its code is imported
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


def _with_own_result(name: str, loaded: LoadedTasks) -> dict[str, LoadedTasks]:
    """What has a result of its own: a group that is aggregated, else each task."""
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
    """The keys of a task's configuration by which its rows come from the files of a
    folder, which are named by their splits; or from those of a folder in it. Raises
    UserError where there are none to be judged."""
    judged_split = config.get("test_split") or config.get("validation_split")
    splits = [config.get(key) for key in ("test_split", *SPLITS)]
    folders = []
    for parent in (name, "."):
        for child in (str(config.get("dataset_name")), "data", "."):
            folders.append(Path(str(settings.data_dir), parent, child))
    for folder, (suffix, reader) in itertools.product(folders, READERS.items()):
        files: dict[str, list[str]] = {}
        for path in sorted(folder.glob(f"*{suffix}")):
            # train-00000-of-00002: of train
            split = re.sub(r"-\d+-of-\d+$", "", path.stem)
            if split in splits:
                files.setdefault(split, []).append(str(path.resolve()))
        if judged_split not in files:
            continue
        rows = {
            "dataset_path": reader,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            "custom_dataset": None,
        }
        shots = settings.num_fewshot
        if shots is None:
            shots = config.get("num_fewshot")
        for key in SPLITS:
            # without examples in the prompt no split is read for them
            if not shots and config.get(key) not in files:
                rows[key] = None
        return rows
    raise UserError(
        f"{settings.data_dir}: {name} reads the split {judged_split}, which no .jsonl, "
        ".json or .parquet is named"
    )


def _prepare(loaded: LoadedTasks, settings: TaskSettings) -> str:
    """Sets the tasks' number of examples, as lm-eval's own command does, and tries each
    task on a row. Returns the hash of what is asked, in which functions are by their
    source."""
    parts: list[object] = [
        version("lm_eval"),
        settings.limit,
        settings.apply_chat_template,
    ]
    tasks = list(loaded["tasks"].values())
    for task in tasks:
        shots = task.get_config("num_fewshot") or 0
        takes_none = task.get_config("num_fewshot") == 0
        if settings.num_fewshot is not None and not takes_none:
            shots = settings.num_fewshot
        task.set_config("num_fewshot", shots)
        task.build_all_requests(limit=1)
        parts.append(_content(task, settings.limit))
    for group in loaded["groups"].values():
        metrics = [vars(metric) for metric in group.aggregate_metric_list or ()]
        parts.append([group.name, group.version, metrics])
    text = json.dumps(parts, default=tasks[0].config.serialize_function)
    # another address in each process
    return hash_of(re.sub(r" at 0x[0-9a-f]+", "", text))[:16]


def _content(task: Any, limit: int | None) -> list[object]:
    """What defines a task's questions: its configuration, version, rows and
    examples."""
    config = dict(task.dump_config())
    for key in PLACES:
        config.pop(key, None)
    examples = []
    if task.get_config("num_fewshot"):
        examples = list(task.fewshot_docs() or [])
    return [config, task.VERSION, list(task.eval_docs)[:limit], examples]
