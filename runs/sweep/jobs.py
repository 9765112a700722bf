"""The runs of one command: their ids, and how each ends. One function settles a run, whoever did it."""

import functools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runs.errors import UserError
from runs.identity import hash_of, identify
from runs.record import FINISHED, Record, read_record, record_path, run_folder, write_atomically
from runs.run import Run, run_from
from runs.sweep import progress
from runs.sweep.display import Display
from runs.sweep.leases import Watcher
from runs.tracking import Tracking


@dataclass(frozen=True)
class Job:
    """A run of a sweep."""

    position: int  # in the sweep, from 1
    run: Run
    id: str
    words: str = ""  # the overrides that distinguish it from others of the same row and task

    @property
    def output(self) -> str:
        return str(self.run.config["output"])

    @property
    def record(self) -> Path:
        """The path of its record."""
        return record_path(self.output, self.id)

    @property
    def log(self) -> str:
        """The path of its log."""
        return str(run_folder(self.output, self.id) / "log.txt")


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
        """143 where the command was interrupted, 1 where a run failed. One that diverged is a result."""
        return 143 if self.interrupted else 1 if self.failed else 0


@dataclass(frozen=True)
class Sweep:
    """What an executor needs to know."""

    jobs: list[Job]
    failed_before: dict[str, str | None]  # the owners ("claim") of failed records from before, by run
    lease_seconds: float
    tracking: Tracking

    def save(self, path: Path) -> None:
        """Writes this, and the folder that paths begin at, for executors in other processes, maybe on other
        machines."""
        write_atomically(path, json.dumps(asdict(self) | {"folder": os.getcwd()}))

    @staticmethod
    def load(path: Path) -> "Sweep":
        """Reads what `save` wrote, and changes to its folder."""
        plain = json.loads(path.read_text(encoding="utf-8"))
        os.chdir(plain.pop("folder"))
        jobs = [Job(**job | {"run": run_from(job["run"])}) for job in plain["jobs"]]
        return Sweep(**plain | {"jobs": jobs, "tracking": Tracking(**plain["tracking"])})


def name_of(jobs: Sequence[Job]) -> str:
    """The name of a sweep and of its Slurm jobs: its preset, and a hash of its runs and their folder."""
    folder = str(Path(jobs[0].output).resolve())
    return f"{jobs[0].run.experiment or 'runs'}-{hash_of([folder, [job.id for job in jobs]])[:8]}"


# --- ids


def final_ids(runs: Sequence[Run], ids: Sequence[str | None] | None = None) -> list[str]:
    """The ids of runs whose models and data the preflight has fetched.

    ids: those that were known before. Raises UserError for a run without a pinned revision."""
    ids = ids or [None] * len(runs)
    others = iter(identify([run for run, run_id in zip(runs, ids, strict=True) if run_id is None]))
    final = list[str]()
    for run, known in zip(runs, ids, strict=True):
        run_id = known or next(others)
        if run_id is None:
            raise UserError(
                f"{run.label}: the revision of its data cannot be told. Name one: task.revision= or"
                " model.revision="
            )
        final.append(run_id)
    return final


def check_ids(runs: Sequence[Run], ids: Sequence[str | None]) -> None:
    """Raises UserError where two runs have the same id."""
    seen = set[str]()
    for run, run_id in zip(runs, ids, strict=True):
        if run_id in seen:
            raise UserError(f"{run.label} appears twice in this sweep")
        if run_id is not None:
            seen.add(run_id)


def distinguishing_words(runs: Sequence[Run]) -> list[str]:
    """For each run the overrides that the others lack, without those that a line shows anyway: row, model,
    task and seed."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    groups = ("method", "method.config_class", "model", "task", "recipe", "seed")
    return [
        " ".join(w for w in run.overrides if w not in common and w.partition("=")[0] not in groups)
        for run in runs
    ]


# --- how it ends


def settle(
    job: Job, sweep: Sweep, outcome: Outcome, display: Display, watcher: Watcher | None, seconds: float | None
) -> bool:
    """Settles a job that has ended: counts it, shows its line, and removes the files that its run needed to
    continue. Returns False while there is no record, and nothing else in the record's place.

    seconds: the time that it took, where this command did it; None where it was done before or elsewhere.
    watcher: None where somebody else removes the files."""
    record = settled_record(job, sweep.failed_before)
    error = progress.obstacle(job.record) if record is None else record["error"]
    if record is None and error is None:
        return False
    display.start(job.position, job.run, job.words)
    if record is None or record["status"] == "failed":
        outcome.failed.append((job.run, str(error), job.log))
        display.line(f"FAILED: {error} ({job.log})")
        return True
    if watcher:
        _tidy(job, record, watcher)
    if seconds is None:
        outcome.skipped += 1
        display.skipped(record, job.run)
    elif record["status"] == "diverged":
        outcome.diverged.append((job.run, record["error"], job.log))
        display.line(f"DIVERGED: {record['error']}")
    else:
        outcome.done += 1
        display.done(record, seconds)
    return True


def settled_record(job: Job, failed_before: dict[str, str | None], quiet: bool = False) -> Record | None:
    """The record of a job that has ended: finished, or failed since the sweep began. A damaged one counts as
    none; quiet: without a line."""
    try:
        record = read_record(job.record)
    except ValueError as error:
        if job.record.is_file() and not quiet:
            _print_once(f"{error}: the run is done again")
        return None
    before = job.id in failed_before and failed_before[job.id] == record.get("claim")
    return record if record["status"] in FINISHED or not before else None


def finished_record(output: str, run_id: str | None) -> Record | None:
    """The record of a finished run. One that cannot be read counts as none, and the executor names it."""
    try:
        record = read_record(record_path(output, run_id)) if run_id else None
    except ValueError:
        return None
    return record if record and record["status"] in FINISHED else None


@functools.cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)


def _tidy(job: Job, record: Record, watcher: Watcher) -> None:
    """Removes the files that a finished run no longer needs, and what killed processes left of it. Every
    command that sees its record may do so."""
    # The record's `keep`: this command's may be another, since it is no part of the id
    progress.clear(job.output, job.id, record["config"]["keep"])
    progress.sweep_up(job.output, job.id)
    watcher.forget(job.id)
