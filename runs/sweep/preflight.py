"""What is checked before the first run of a sweep starts."""

import json
import os
from pathlib import Path

import tasks
from runs import models
from runs.config import Run
from runs.errors import UserError
from runs.identity import hash_of, start_file
from runs.methods import make_method
from runs.pairs import refusal
from runs.record import run_folder
from runs.sweep.jobs import Job
from tasks.images import preprocessing


def preflight(runs: list[Run]) -> dict[str, tasks.Task]:
    """Fetches and checks the model, the data and the method of every run, before the first one starts.

    Returns each task.
    """
    import vera

    for run in runs:
        method = make_method(run.method)
        if run.start:
            vera.check_start(make_method(run.start.method), method, f"init_from={run.config['init_from']}")
        elif run.config["init_from"]:
            path = start_file(run)
            vera.check_start(vera.read_method(path), method, path)
    found, notes = {}, list[str]()
    missing = []  # all that lacks, at once: a user should not mend one thing to hear of the next
    loaded: dict[str, tasks.Task] = {}
    for run in _distinct(runs, "task"):
        try:
            task = loaded[hash_of(run.config["task"])] = found[run.task] = tasks.load(run.config["task"])
            notes += [*task.notes, *task.advice]
        except tasks.DataError as error:
            after = next((r for r in runs if r.start and r.start.task == run.task), None)
            missing.append(
                f"{after.row} starts from {run.label}: {error}"
                if after and run.task != after.task
                else str(error)
            )
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
        # Evaluation images are made ready once for all runs, and can be read
        if run.config["model"]["modality"] == "image":
            task = loaded[hash_of(run.config["task"])]
            task.prepare(preprocessing(folders[hash_of(run.config["model"])]), 0)
            notes += task.notes
    for note in dict.fromkeys(notes):  # each seed draws images of its own, and has the same to say of them
        print(f"note: {note}")
    return found


def _distinct(runs: list[Run], *parts: str) -> list[Run]:
    return list(
        {json.dumps([run.config[part] for part in parts], sort_keys=True): run for run in runs}.values()
    )


def check_folders(jobs: list[Job]) -> None:
    """Raises UserError where something else stands in the place of a folder that the runs write to."""
    output = Path(jobs[0].run.config["output"])
    for folder in (output, *(output / name for name in ("records", "leases", "runs", "sweeps"))):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is no folder, and stands where runs keep their files. Move it away")
    for job in jobs:
        folder = run_folder(output, job.id)
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(
                f"{folder} is no folder, and stands where the run {job.id} keeps its files. Move it away"
            )
