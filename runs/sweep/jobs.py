"""The runs of one command, and how each ends. One function counts and shows each end, whoever did the run."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runs.identity import hash_of
from runs.record import FINISHED, Record, finished_record, read_record, record_path, run_folder
from runs.record.text import duration
from runs.run import Run
from runs.sweep.claim import Claim
from runs.sweep.display import Display, differs, read_progress, result_words
from runs.tracking import Tracker, Tracking, of_run
from runs.training.files import tidy


@dataclass(frozen=True)
class Job:
    """A run of a sweep. head: how its lines begin, with its number and what tells it from the others."""

    head: str
    run: Run
    id: str

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

    @property
    def progress(self) -> dict[str, Any]:
        """The last event of its training; empty where nobody has begun it."""
        return read_progress(self.output, self.id)

    @property
    def claim(self) -> Claim:
        """The lock that its process takes."""
        return Claim(self.output, self.id)


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
    """What a worker needs to know. Paths begin at the command's folder."""

    jobs: list[Job]
    failed_before: dict[str, str | None]  # the attempts ("claim") of failed records from before, by run
    tracking: Tracking


def name_of(jobs: Sequence[Job]) -> str:
    """The name of a sweep and of its Slurm jobs: its preset, and a hash of its runs and their folder."""
    folder = str(Path(jobs[0].output).resolve())
    return f"{jobs[0].run.experiment or 'runs'}-{hash_of([folder, [job.id for job in jobs]])[:8]}"


def try_finish(
    job: Job, sweep: Sweep, outcome: Outcome, display: Display, seconds: float | None, error: str = ""
) -> bool:
    """Counts a job that has ended, shows its line, and tidies what its attempts left. Returns
    False while there is no record, and no error.

    seconds: how long it took, 0 where that is not known here; None where it was done before. error: why
    its process could write no record."""
    record = final_record(job, sweep.failed_before)
    if record is None and not error:
        return False
    if record is None or record["status"] == "failed":
        error = record["error"] if record else error
        outcome.failed.append((job.run, error, job.log))
        display.line(f"{job.head}  FAILED: {error} ({job.log})")
        return True
    tidy(job.output, record)
    if seconds is None:
        outcome.skipped += 1
        if (why := differs(record, job.run)) or not display.brief:
            there = f"already done ({result_words(record)}, run {job.id}), skipped"
            display.line(f"{job.head}  {': '.join(filter(None, [there, '; '.join(why)]))}")
    elif record["status"] == "diverged":
        outcome.diverged.append((job.run, record["error"], job.log))
        display.line(f"{job.head}  DIVERGED: {record['error']}")
    else:
        outcome.done += 1
        parts = ("train", "evaluate", "decode")
        seconds = seconds or sum(record["cost"].get(f"{part}_seconds", 0.0) for part in parts)
        display.line(f"{job.head}  {result_words(record)}  {duration(seconds)}  run {job.id}")
    return True


def send_to_agent(job: Job, sweep: Sweep) -> None:
    """Sends a run that this command did not do, where `wandb agent` started the command for it."""
    settings = of_run(sweep.tracking, job.run, [other.run for other in sweep.jobs])
    if settings.agent and (record := finished_record(job.output, job.id)):
        Tracker(settings, job.run, job.id, record).finish(record)


def final_record(job: Job, failed_before: dict[str, str | None], quiet: bool = False) -> Record | None:
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


@functools.cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr)
