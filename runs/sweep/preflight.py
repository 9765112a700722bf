"""The checks of models, data and methods before the first run of a command. What is
missing is reported at once, before anything trains."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tasks
from runs import models
from runs.command.errors import UserError
from runs.record.cell import hash_of
from runs.run.definition import Run
from runs.run.identity import start_file
from runs.run.methods import method_of_settings, method_problem
from runs.run.provenance import code_state
from tasks.images import preprocessing


class Loaded(NamedTuple):
    """What was loaded for the runs of a command.

    Attributes:
        tasks: The tasks, by the hash of their settings.
        models: The folders of the models, by the hash of their settings.
        errors: Why others could not be loaded, one sentence each.
    """

    tasks: dict[str, tasks.Task]
    models: dict[str, Path]
    errors: list[str]


def preflight(runs: list[Run]) -> None:
    """Fetches and checks the model, the data and the method of every run, and prints
    notes. Raises one UserError that names everything that is missing."""
    for run in runs:
        _check_start(run)
    loaded = _load(runs)
    errors = [*loaded.errors]
    for run in _distinct(runs, "model", "method"):
        reason = method_problem(run)
        if reason:
            errors.append(reason)
    if errors:
        raise UserError("; ".join(dict.fromkeys(errors)))
    notes = [*_notes_of_tasks(runs, loaded), *_notes_on_changed_code()]
    notes += _notes_on_recipes(runs)
    # The tasks of several seeds may have the same notes: print each once
    for note in dict.fromkeys(notes):
        print(f"note: {note}")


def downloads_before(runs: Sequence[Run]) -> list[str]:
    """What may be downloaded before these runs, such as "model minilm" and "data of sst2":
    models that are not on this machine, and data sets that are no local files."""
    names = dict[str, None]()
    for run in runs:
        if models.locate(run.config["model"]) is None:
            names[f"model {run.model}"] = None
    for run in runs:
        if not tasks.source(run.config["task"]).files:
            names[f"data of {run.config['task']['name']}"] = None
    return [*names]


def _check_start(run: Run) -> None:
    """Raises UserError where the run's method cannot be made, and AdapterError where it
    cannot start from the adapter that the run names."""
    import vera

    method = method_of_settings(run.method)
    source: str | Path
    if run.start:
        start_method = method_of_settings(run.start.method)
        source = f"init_from={run.config['init_from']}"
    elif run.config["init_from"]:
        source = start_file(run)
        start_method = vera.read_method(source)
    else:
        return
    vera.check_start(start_method, method, source)


def _load(runs: list[Run]) -> Loaded:
    """Loads each task, and fetches each model, once."""
    loaded = Loaded({}, {}, [])
    for run in _distinct(runs, "task"):
        settings = run.config["task"]
        try:
            loaded.tasks[hash_of(settings)] = tasks.load(settings)
        except (tasks.DataError, UserError) as error:
            loaded.errors.append(f"{_follower_prefix(run, runs)}{error}")
    for run in _distinct(runs, "model"):
        model = run.config["model"]
        try:
            loaded.models[hash_of(model)] = models.fetch(model)
        except (tasks.DataError, UserError) as error:
            loaded.errors.append(str(error))
    return loaded


def _follower_prefix(run: Run, runs: Sequence[Run]) -> str:
    """What to put before an error of a run's task if a run of another task starts from
    a run of this one: "vera starts from LoRA on MNLI, seed 0: ". Otherwise "", since the
    command names the task itself."""
    for follower in runs:
        start = follower.start
        if start and start.task == run.task and follower.task != run.task:
            return f"{follower.row} starts from {run.label}: "
    return ""


def _notes_of_tasks(runs: list[Run], loaded: Loaded) -> list[str]:
    """The tasks' notes and advice. Prepares each task of images on the way."""
    notes = list[str]()
    for run in _distinct(runs, "task", "model"):
        task = loaded.tasks[hash_of(run.config["task"])]
        if run.config["model"]["modality"] == "image":
            # Prepared images are kept for all runs, and an unreadable one is found. They
            # have no tokens to cut at max_length
            folder = loaded.models[hash_of(run.config["model"])]
            task.prepare(preprocessing(folder), max_length=0)
        notes += [*task.notes, *task.advice]
    return notes


def _notes_on_changed_code() -> list[str]:
    """A note where files of the project itself have been changed."""
    altered = code_state().get("altered")
    if not altered:
        return []
    files = str(altered[0])
    if len(altered) > 1:
        files += f" and {len(altered) - 1} more"
    reason = "A result of changed code cannot be published (vera-bench publish check=)"
    return [f"{files}: changed, though part of the project itself. {reason}"]


def _notes_on_recipes(runs: list[Run]) -> list[str]:
    """What recipes lack (`Run.recipe_gap`), each with the rows and tasks concerned."""
    rows_by_gap = defaultdict[str, list[str]](list)
    for run in runs:
        row = f"{run.row} on {run.task}"
        if run.recipe_gap and row not in rows_by_gap[run.recipe_gap]:
            rows_by_gap[run.recipe_gap].append(row)
    return [f"{gap} ({', '.join(rows)})" for gap, rows in rows_by_gap.items()]


def _distinct(runs: list[Run], *parts: str) -> list[Run]:
    """One run for each content of these parts of the configuration, such as "task", in
    the order in which the contents first occur."""
    runs_by_content = dict[str, Run]()
    for run in runs:
        config: Mapping[str, object] = run.config
        runs_by_content[hash_of([config[part] for part in parts])] = run
    return list(runs_by_content.values())
