"""The runs of one command, and how each ends."""

import functools
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runs.config import Run
from runs.errors import UserError
from runs.identity import one_look, run_id
from runs.record import FINISHED, Record, read_record, record_path, write_atomically
from runs.sources import changed_words
from runs.sweep import progress
from runs.sweep.display import result_words
from runs.sweep.leases import Watcher


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its place in it from 1, its id, and the words that tell it from others of the same
    row and task."""

    position: int
    run: Run
    id: str
    words: str = ""


@dataclass
class Outcome:
    """How the runs of one command ended."""

    done: int = 0
    skipped: int = 0
    diverged: list[tuple[Run, str, str]] = field(default_factory=list)
    failed: list[tuple[Run, str, str]] = field(default_factory=list)  # the run, its error, its log
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return 143 if self.interrupted else 1 if self.failed else 0


@dataclass(frozen=True)
class Sweep:
    """What executors are given: the jobs, and whose failed records stood there before (these are tried
    again)."""

    jobs: list[Job]
    failed_before: dict[str, str | None]
    lease_seconds: float
    tracking: str | None

    def save(self, path: Path) -> None:
        """For executors that are other processes, maybe on other machines, and the folder that paths begin
        at."""
        write_atomically(path, json.dumps(asdict(self) | {"folder": os.getcwd()}))

    @staticmethod
    def load(path: Path) -> "Sweep":
        """Reads what `save` wrote, and goes to its folder."""
        found = json.loads(path.read_text(encoding="utf-8"))
        os.chdir(found.pop("folder"))
        return Sweep(
            **found | {"jobs": [Job(**job | {"run": run_from(job["run"])}) for job in found["jobs"]]}
        )


def run_from(plain: dict[str, Any]) -> Run:
    """A run from the plain values that dataclasses.asdict makes of it."""
    return Run(**plain | {"start": run_from(plain["start"]) if plain["start"] else None})


def settled_record(job: Job, failed_before: dict[str, str | None], quiet: bool = False) -> Record | None:
    """The record of a job that needs no more: finished, or failed since the sweep began. A damaged one counts
    as none."""
    path = record_path(job.run.config["output"], job.id)
    try:
        record = read_record(path)
    except ValueError as error:
        if path.is_file() and not quiet:
            _say_once(f"{error}: the run is done again")
        return None
    before = job.id in failed_before and failed_before[job.id] == record.get("claim")
    return record if record["status"] in FINISHED or not before else None


def failure(record: Record) -> str | None:
    """The error of a failed run's record; None of a finished one's."""
    return str(record["error"]) if record["status"] == "failed" else None


def skipped_words(record: Record) -> str:
    """The line of a run that has its record already."""
    words = f"already done ({result_words(record)}, run {record['id']}), skipped"
    return ": ".join(filter(None, [words, changed_words(record)]))


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def tidy(job: Job, record: Record, watcher: Watcher) -> None:
    """Removes what a finished run no longer needs, and what killed processes left of it. Whoever sees its
    record may."""
    output = job.run.config["output"]
    kept = record.get("config", job.run.config)["keep"]  # the command at hand may keep another epoch
    progress.clear(output, job.id, kept)
    progress.sweep_up(output, job.id)
    watcher.forget(job.id)


def settled_id(run: Run) -> str:
    """The id of a run whose model and data the preflight has brought here."""
    settled = run_id(run)
    if settled is None:
        raise UserError(
            f"{run.label}: the revision of its data cannot be told. Name one: task.revision= or"
            " model.revision="
        )
    return settled


def finished_record(run: Run) -> Record | None:
    """The record of a run that needs no other try. One that cannot be read counts as none."""
    found = run_id(run)
    path = record_path(run.config["output"], found) if found else None
    if path is None or not path.is_file():
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None  # which the executor says
    return record if record["status"] in FINISHED else None


def telling_words(runs: list[Run]) -> list[str]:
    """The words of each run that not all of a sweep have, but for those that its row, model and task say
    already."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    groups = ("method", "model", "task", "recipe", "seed")
    return [
        " ".join(w for w in run.overrides if w not in common and w.partition("=")[0] not in groups)
        for run in runs
    ]


@one_look()
def check_ids(runs: list[Run]) -> None:
    """Raises UserError where two runs of a sweep are the same one."""
    seen: dict[str, Run] = {}
    for run in runs:
        found = run_id(run)
        if found in seen and found is not None:
            raise UserError(f"{run.label} appears twice in this sweep")
        seen[found or ""] = run
