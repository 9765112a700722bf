"""The runs of a folder that have begun and have no record yet: they are training now,
or were stopped before their end."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from runs.record.cell import shown_model
from runs.record.files import read_yaml
from runs.record.ledger import run_folder


@dataclass(frozen=True)
class BegunRun:
    """A run that has begun and has no record. model, task: as tables name them.
    command: what you type to continue the run."""

    id: str
    model: str
    task: str
    command: str


def begun_runs(output: str | Path) -> list[BegunRun]:
    """The runs of an output folder that have begun and have no record, sorted by id. A
    run whose files cannot be read is left out."""
    recorded_ids = {Path(name).stem for name in _file_names(Path(output, "records"))}
    runs = list[BegunRun]()
    for run_id in sorted(_file_names(Path(output, "runs")) - recorded_ids):
        folder = run_folder(output, run_id)
        # A run that finishes loses its attempts: a folder without any is of a run whose
        # record was removed, and does not wait to be continued
        if not (folder / "attempts").is_dir():
            continue
        try:
            config = read_yaml(folder / "config.yaml")
            overrides = read_yaml(folder / "overrides.yaml")
            run = BegunRun(
                run_id,
                shown_model(config["model"]["name"], config["model"]),
                str(config["task"]["name"]),
                f"vera-bench {shlex.join(map(str, overrides))}",
            )
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            continue
        runs.append(run)
    return runs


def _file_names(folder: Path) -> set[str]:
    """The names of what is in a folder; none if there is no such folder."""
    return {*os.listdir(folder)} if folder.is_dir() else set()
