"""The tasks of EleutherAI's lm-evaluation-harness, and a model that answers them, for runs.lm_eval."""

import contextlib
import functools
import inspect
import io
import json
import logging
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs.command import did_you_mean
from runs.errors import UserError
from runs.evaluate import Report
from runs.record import describe, hash_of, write_atomically

#: Files of rows, and how datasets reads them.
READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
#: Of a task's configuration, where its rows and its file are.
PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")
#: The settings that change an answer, beside the number of examples, which is the task's then.
ASKING = ("limit", "apply_chat_template", "add_bos_token", "max_length")
#: Keys of tasks that run generated code, or take pictures or sounds.
REFUSED = ("unsafe_code", "doc_to_image", "doc_to_audio")


@dataclass(frozen=True)
class Asked:
    """A task of lm-eval, or a group or tag with its tasks. loaded: by TaskManager. results: the names that
    get a result, each with those of its tasks. hash: of the tasks, their rows, and how they are asked."""

    name: str
    loaded: Any
    results: dict[str, list[str]]
    hash: str

    def alike(self, known: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The known results, if all are there and were asked alike; or none."""
        found = {of: known[of] for of in self.results if of in known and known[of]["asked"] == self.hash}
        return found if found.keys() == self.results.keys() else {}


def load(settings: Any) -> list[Asked]:
    """The tasks of `runs.lm_eval.Settings`, with their rows. Raises UserError for an unknown name, for
    rows that cannot be loaded, and for a task of what is not done here."""
    import datasets
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    names = dict.fromkeys(name.strip() for name in settings.tasks.split(",") if name.strip())
    if not names:
        raise UserError("which tasks? tasks=gsm8k,arc_easy (lm-eval ls tasks lists them)")
    for key in ("include_path", "data_dir"):
        if (folder := getattr(settings, key)) and not Path(folder).is_dir():
            raise UserError(f"{key}={folder}: no such folder")
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)  # all take 7 s
    if not names.keys() <= {*manager.all_tasks}:
        manager = TaskManager(include_path=settings.include_path)
    index, found = manager.task_index, list[Asked]()
    for name in names:
        if name not in index:
            near = did_you_mean(name, manager.all_tasks)
            raise UserError(f"lm-eval has no task {name!r}.{near} Own ones: include_path=FOLDER")
        try:
            for task in leaves(index, name):
                if has := next(filter(index[task].cfg.get, REFUSED), None):  # before its code is imported
                    raise UserError(f"{task}: has {has}, which is not done here")
                if settings.data_dir:
                    read_from(index[task], Path(settings.data_dir), settings.num_fewshot)
            found.append(asked(name, manager.load([name]), settings))
        except UserError:
            raise
        except Exception as error:  # of datasets, the hub, YAML and a task's own code
            why = f"{type(error).__name__}: {describe(error)[:200]}"
            mend = "Without the hub: data_dir=FOLDER with its rows, or an own YAML in include_path="
            raise UserError(f"{name}: cannot be loaded ({why}). {mend}") from error
    return found


def asked(name: str, loaded: Any, settings: Any) -> Asked:
    """What was loaded, with its number of examples. Raises UserError where there are fewer."""
    shots, parts, results = settings.num_fewshot, list[Any](), {of: [of] for of in loaded["tasks"]}
    for of in loaded["tasks"].values():
        own = of.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):  # as lm-eval's own command
            of.set_config("num_fewshot", shots or 0)
        count = of.get_config("num_fewshot")
        examples = [*(of.fewshot_docs() or [])] if count else []
        how = of.config.fewshot_config  # of the judged split one more is drawn: no row is its own example
        needed = count and count + (how.split == of.config.test_split and how.sampler == "default")
        if len(examples) < needed:
            raise UserError(f"{of.task_name}: num_fewshot={count} takes {needed} of {len(examples)} examples")
        config = {k: v for k, v in of.config.to_dict(keep_callable=True).items() if k not in PLACES}
        parts.append([config, of.VERSION, [*of.eval_docs][: settings.limit], examples])
    if name in loaded["groups"] and loaded["groups"][name].has_aggregation:
        results = {name: [*results]}
        for of in loaded["groups"].values():
            parts.append([of.name, of.version, [vars(one) for one in of.aggregate_metric_list or ()]])
    how = [version("lm_eval"), *(getattr(settings, key) for key in ASKING)]
    return Asked(name, loaded, results, hash_of(json.loads(json.dumps([how, parts], default=plain)))[:16])


def plain(value: Any) -> Any:
    """What JSON lacks, in words that are the same in every process: functions by their source."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def leaves(index: Mapping[str, Any], name: str) -> Iterator[str]:
    """The tasks of a task, group or tag."""
    if index[name].kind.name not in ("GROUP", "TAG"):
        yield name
        return
    for part in [*sorted(index[name].tags)] if index[name].kind.name == "TAG" else index[name].cfg["task"]:
        child = part if isinstance(part, str) else part.get("group", part.get("task"))
        yield from leaves(index, child) if child in index else ()


def read_from(entry: Any, folder: Path, shots: int | None) -> None:
    """Changes a task's entry such that its rows come from a folder's files, which are named by their splits;
    or from those of a folder in it. Raises UserError where a split is missing that is read."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.yaml_path is None:  # done already, for another group
        return
    config = load_yaml(entry.yaml_path)
    if "class" in config:
        raise UserError(f"{entry.name}: rows come from lm-eval's code, which data_dir= does not change")
    inner = (str(config.get("dataset_name")), "data", ".")
    places = [above / name for above in (folder / entry.name, folder) for name in inner]
    found = [one for place in places for one in files_of(place).items()]
    judged = config.get("test_split") or config.get("validation_split")
    reader, files = next((one for one in found if judged in one[1]), ("", {}))
    examples = config.get("num_fewshot") if shots is None or config.get("num_fewshot") == 0 else shots
    missing = [key for key in SPLITS if config.get(key) and config[key] not in files]
    if lacking := [config[key] for key in missing if examples or config[key] == judged]:
        name = f"{lacking[0]}.jsonl, .json or .parquet, which {entry.name} reads"
        there = ", ".join(sorted({split for _, of in found for split in of})) or "none"
        raise UserError(f"{folder}: no {name}. Splits that are there: {there}")
    config |= dict.fromkeys(missing) | {"dataset_path": reader, "dataset_name": None}
    entry.cfg = config | {"dataset_kwargs": {"data_files": files}, "custom_dataset": None}
    entry.yaml_path = None


def files_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The files of rows in a folder, by their reader and split: train-00000-of-00002.parquet is of train."""
    found = dict[str, dict[str, list[str]]]()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if reader := READERS.get(path.suffix):
            split = re.sub(r"-\d+-of-\d+$", "", path.stem)
            found.setdefault(reader, {}).setdefault(split, []).append(str(path.resolve()))
    return found


class Bar:
    """Replaces tqdm within lm-eval, and reports."""

    def __init__(self, tell: Report, rows: Any = None, total: int = 0, **_: Any) -> None:
        self.tell, self.rows, self.begun = tell, rows, time.monotonic()
        self.done, self.of = 0, total or len(rows)

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            yield row
            self.update()

    def update(self, count: int = 1) -> None:
        self.done += count
        left = (time.monotonic() - self.begun) / max(self.done, 1) * (self.of - self.done)
        self.tell({"done": self.done, "of": self.of, "seconds_left": left})

    def close(self) -> None: ...


def ask(
    asked: Asked, settings: Any, of: tuple[Any, Any], batch: int, folder: Path, phase: str, report: Report
) -> dict[str, dict[str, Any]]:
    """The results of a model with its tokenizer, by their names; a file of rows and answers of each task goes
    into the folder. All generators are seeded as by lm-eval's own command."""
    import lm_eval
    import numpy as np
    import torch
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    streams = sys.stdout, sys.stderr

    def tell(event: dict[str, Any]) -> None:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            report({"phase": phase, **event})

    for module in (huggingface, model, task):
        module.tqdm = functools.partial(Bar, tell)
    how, chat = {key: getattr(settings, key) for key in ASKING[2:]}, settings.apply_chat_template
    lm = huggingface.HFLM(pretrained=of[0], tokenizer=of[1], batch_size=batch, **how)
    random.seed(0)
    np.random.seed(1234)
    torch.manual_seed(1234)
    for one in asked.loaded["tasks"].values():
        one.set_fewshot_seed(seed=1234)
    chosen = {"limit": settings.limit, "apply_chat_template": chat, "fewshot_as_multiturn": chat}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            results: Any = lm_eval.evaluate(lm, asked.loaded, **chosen)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of a task's templates and code, and for prompts that are too long
            why = f"{type(error).__name__}: {describe(error)[:200]}; a row may lack a column"
            raise UserError(f"{asked.name}: lm-eval cannot ask this model ({why})") from error
    hashes = {name: write_samples(folder, name, rows) for name, rows in results["samples"].items()}
    how |= {"max_length": lm.max_length, "apply_chat_template": chat, "batch": batch}
    about = {"asked": asked.hash, "lm_eval": version("lm_eval"), "limit": settings.limit, "settings": how}
    return {
        name: {
            **about,
            "version": results["versions"].get(name),
            "shots": results["n-shot"].get(name),
            "rows": sum(results["n-samples"][of]["effective"] for of in tasks),
            "samples": hashes[name] if tasks == [name] else hash_of([hashes[of] for of in tasks]),
            "metrics": metrics(results["results"][name], results["higher_is_better"].get(name, {})),
        }
        for name, tasks in asked.results.items()
    }


def metrics(values: Mapping[str, Any], higher: Mapping[str, bool | None]) -> list[dict[str, Any]]:
    """The metrics among a task's values, which have the names METRIC,FILTER and METRIC_stderr,FILTER."""

    def number(value: Any) -> float | None:
        return float(value) if not isinstance(value, str | None) and math.isfinite(value) else None

    found = []
    for key in values:
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            of = {"value": number(values[key]), "stderr": number(values.get(f"{metric}_stderr,{name}"))}
            found.append({"metric": metric, "filter": name, **of, "higher_is_better": higher.get(metric)})
    return found


def write_samples(folder: Path, task: str, samples: list[dict[str, Any]]) -> str:
    """Writes a task's rows and answers; the hash of rows, targets and answers."""
    lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in samples]
    write_atomically(folder / (re.sub(r"[^\w.-]", "_", task) + ".jsonl"), "\n".join([*lines, ""]))
    content = [[of[key] for key in ("doc", "target", "filter", "resps", "filtered_resps")] for of in samples]
    return hash_of(json.loads(json.dumps(content, default=str)))
