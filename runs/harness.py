"""The tasks of EleutherAI's lm-evaluation-harness, and a model's results by them, for runs.lm_eval."""

import contextlib
import io
import itertools
import json
import logging
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from runs.command import did_you_mean
from runs.errors import UserError
from runs.record import describe, hash_of, write_atomically

#: Files of rows, and how datasets reads them.
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "fewshot_split")
#: Of a task's configuration, where its rows and its file are.
PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")


class Asked(NamedTuple):
    """A task of lm-eval, or a group of tasks with one result. loaded: by TaskManager. hash: of the tasks,
    their rows, and how they are asked."""

    name: str
    loaded: dict[str, Any]
    hash: str


def load(settings: Any) -> list[Asked]:
    """The tasks of `runs.lm_eval.Settings` with their rows; of a tag, and of a group without a result of its
    own, each task. Raises UserError for an unknown name, and for a task or rows that cannot be asked."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names, found = [name.strip() for name in settings.tasks.split(",")], dict[str, Asked]()
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)  # all take 7 s
    if not {*names} <= {*manager.all_tasks}:
        manager = TaskManager(include_path=settings.include_path)
    read = manager._factory._load_full_config

    def config_of(entry: Any, *overrides: Any) -> dict[str, Any]:
        if (entry.cfg or {}).get("unsafe_code"):  # before its code is imported
            raise UserError(f"{entry.name}: runs generated code (unsafe_code), which is not done here")
        config: dict[str, Any] = read(entry, *overrides)
        here = settings.data_dir and entry.kind.name != "GROUP"
        return config | rows_of(entry.name, config, settings) if here else config

    manager._factory._load_full_config = config_of
    for name in names:
        if name not in manager.task_index:
            near = did_you_mean(name, manager.all_tasks) or " lm-eval ls tasks lists them."
            raise UserError(f"tasks={name}: lm-eval has no such task.{near} Own ones: include_path=FOLDER")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # bars
                loaded = manager.load([name])
                whole = name in loaded["groups"] and loaded["groups"][name].has_aggregation
                each = {of: {"tasks": {of: task}, "groups": {}} for of, task in loaded["tasks"].items()}
                for of, part in ({name: loaded} if whole else each).items():
                    found[of] = Asked(of, part, prepared(part, settings))
        except UserError:
            raise
        except Exception as error:  # of datasets, the hub, YAML, a task's own code and templates
            why = f"num_fewshot={settings.num_fewshot}; {type(error).__name__}: {describe(error)[:200]}"
            mend = "Its rows: from the hub, or data_dir=FOLDER with a file of each split"
            raise UserError(f"{name}: cannot be asked ({why}). {mend}") from error
    return [*found.values()]


def rows_of(name: str, config: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """The keys of a task's configuration by which its rows come from the files of a folder, which are named
    by their splits; or from those of a folder in it. Raises UserError where there are none to be judged."""
    folder, inner = settings.data_dir, (str(config.get("dataset_name")), "data", ".")
    judged = config.get("test_split") or config.get("validation_split")
    for above, inside, (suffix, reader) in itertools.product((name, "."), inner, READERS.items()):
        files = dict[str, list[str]]()
        for path in sorted(Path(folder, above, inside).glob(f"*{suffix}")):
            split = re.sub(r"-\d+-of-\d+$", "", path.stem)  # train-00000-of-00002: of train
            if split in map(config.get, ("test_split", *SPLITS)):
                files.setdefault(split, []).append(str(path.resolve()))
        if judged in files:
            known = {"dataset_path": reader, "dataset_name": None, "dataset_kwargs": {"data_files": files}}
            shots = config.get("num_fewshot") if settings.num_fewshot is None else settings.num_fewshot
            unread = [key for key in SPLITS if not shots and config.get(key) not in files]  # no examples
            return {**known, "custom_dataset": None, **dict.fromkeys(unread)}
    raise UserError(f"{folder}: {name} reads the split {judged}, which no .jsonl, .json or .parquet is named")


def prepared(loaded: Mapping[str, Any], settings: Any) -> str:
    """Sets the tasks' number of examples, as lm-eval's own command does, and tries each task on a row.
    Returns the hash of what is asked, in which functions are by their source."""
    shots = settings.num_fewshot
    parts: list[Any] = [version("lm_eval"), settings.limit, settings.apply_chat_template]
    for of in loaded["tasks"].values():
        own = of.get_config("num_fewshot")
        of.set_config("num_fewshot", (own or 0) if own == 0 or shots is None else shots)
        of.build_all_requests(limit=1)
        config = {key: value for key, value in of.dump_config().items() if key not in PLACES}
        examples = [*(of.fewshot_docs() or [])] if of.get_config("num_fewshot") else []
        parts.append([config, of.VERSION, [*of.eval_docs][: settings.limit], examples])
    for group in loaded["groups"].values():
        parts.append([group.name, group.version, [vars(one) for one in group.aggregate_metric_list or ()]])
    text = json.dumps(parts, default=of.config.serialize_function)
    return hash_of(re.sub(r" at 0x[0-9a-f]+", "", text))[:16]  # another address in each process


def ask(asked: Asked, settings: Any, model: Any, tokenizer: Any, batch: int, folder: Path) -> dict[str, Any]:
    """A model's result; a file of rows and answers of each task goes into the folder. Raises
    UserError for what lm-eval cannot ask this model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    name, tasks, chat = asked.name, asked.loaded["tasks"], settings.apply_chat_template
    for one in tasks.values():
        one.set_fewshot_seed(seed=1234)
    how = {"limit": settings.limit, "apply_chat_template": chat, "fewshot_as_multiturn": chat}
    try:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        found: Any = lm_eval.evaluate(lm, asked.loaded, **how)
    except Exception as error:  # of a task's templates and code, for prompts that are too long, of memory
        why = f"{type(error).__name__}: {describe(error)[:200]}"
        raise UserError(f"{name}: lm-eval cannot ask this model ({why})") from error
    for task, rows in found["samples"].items():
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
        write_atomically(folder / (re.sub(r"[^\w.-]", "_", task) + ".jsonl"), "\n".join([*lines, ""]))
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
        "metrics": metrics(found["results"][name], found["higher_is_better"].get(name, {})),
    }


def metrics(values: Mapping[str, Any], higher: Mapping[str, bool | None]) -> list[dict[str, Any]]:
    """The metrics among a task's values, which have the names METRIC,FILTER and METRIC_stderr,FILTER."""
    known = {key: of for key, of in values.items() if "," in key}
    finite = {key: float(of) for key, of in known.items() if not isinstance(of, str) and math.isfinite(of)}
    found = []
    for metric, name in (key.split(",", 1) for key in known if "_stderr," not in key):
        numbers = {"value": finite.get(f"{metric},{name}"), "stderr": finite.get(f"{metric}_stderr,{name}")}
        found.append({"metric": metric, "filter": name, **numbers, "higher_is_better": higher.get(metric)})
    return found
