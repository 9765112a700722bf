"""Checks before the first run of a sweep starts."""

import os
from collections import defaultdict
from pathlib import Path

import tasks
from runs import models
from runs.errors import UserError
from runs.identity import hash_of, start_file
from runs.meta import refusal
from runs.methods import make_method
from runs.record import run_folder
from runs.run import Run
from tasks.images import preprocessing


def preflight(runs: list[Run]) -> None:
    """Fetches and checks the model, the data and the method of every run.

    Raises UserError with all that is missing at once."""
    import vera

    for run in runs:
        method = make_method(run.method)
        if run.start:
            vera.check_start(make_method(run.start.method), method, f"init_from={run.config['init_from']}")
        elif run.config["init_from"]:
            path = start_file(run)
            vera.check_start(vera.read_method(path), method, path)
    by_settings: dict[str, tasks.Task] = {}
    notes, missing = list[str](), list[str]()
    for run in _distinct(runs, "task"):
        try:
            task = tasks.load(run.config["task"])
        except tasks.DataError as error:
            after = next((r for r in runs if r.start and r.start.task == run.task), None)
            first = f"{after.row} starts from {run.label}: " if after and run.task != after.task else ""
            missing.append(f"{first}{error}")
            continue
        by_settings[hash_of(run.config["task"])] = task
        notes += [*task.notes, *task.advice]
    folders: dict[str, Path] = {}
    for run in _distinct(runs, "model"):
        try:
            folders[hash_of(run.config["model"])] = models.fetch(run.config["model"])
        except (tasks.DataError, UserError) as error:
            missing.append(str(error))
    missing += [why for run in _distinct(runs, "model", "method") if (why := refusal(run))]
    if missing:
        raise UserError("; ".join(dict.fromkeys(missing)))
    for run in _distinct(runs, "task", "model"):
        # Evaluation images are preprocessed once for all runs, which shows that they can be read
        if run.config["model"]["modality"] == "image":
            task = by_settings[hash_of(run.config["task"])]
            task.prepare(preprocessing(folders[hash_of(run.config["model"])]), 0)
            notes += task.notes
    gaps: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        gaps[run.recipe_gap][f"{run.row} on {run.task}"] = None
    notes += [f"{words} ({', '.join(of)})" for words, of in gaps.items() if words]
    for note in dict.fromkeys(notes):  # the image tasks of all seeds have the same notes
        print(f"note: {note}")


def _distinct(runs: list[Run], *parts: str) -> list[Run]:
    """One run for each combination of these parts of the configuration."""
    return list({hash_of([run.config[part] for part in parts]): run for run in runs}.values())


def check_folders(output: str, ids: list[str]) -> None:
    """Raises UserError where a file or the like has the name of a folder that the runs write to."""
    whole = Path(output)
    shared = (whole, *(whole / name for name in ("records", "locks", "runs", "sweeps")))
    users = [(folder, "runs keep their") for folder in shared]
    users += [(run_folder(output, run_id), f"the run {run_id} keeps its") for run_id in ids]
    for folder, user in users:
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is not a folder, but {user} files there. Move it away")
