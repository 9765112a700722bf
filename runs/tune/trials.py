"""The trials of a cell, one after another. A trial is one run for each seed; their records are its result."""

import math
import statistics
from dataclasses import dataclass

from runs.config import Launch
from runs.record import Record, seed_value
from runs.record.text import duration, plural
from runs.run import with_starts
from runs.sweep.sweep import sweep
from runs.tracking import Tracking
from runs.tune.cells import Cell, Point


@dataclass(frozen=True)
class Trial:
    """A point of a cell's grid, the ids of its runs, and the records of those that have finished."""

    point: Point
    ids: list[str]
    records: list[Record]

    @property
    def done(self) -> bool:
        """Whether all of its runs have finished."""
        return len(self.records) == len(self.ids)

    @property
    def values(self) -> list[float]:
        """Of each finished run the metric on the held-out rows, unscaled, at the epoch that the task's table
        reports; the worst value for one that diverged in its first epoch."""
        return [seed_value(record) for record in self.records]

    @property
    def value(self) -> float | None:
        """The mean over the seeds; None where a run is missing, or finished without the metric."""
        mean = statistics.fmean(self.values) if self.done else math.nan
        return None if math.isnan(mean) else mean

    @property
    def state(self) -> str:
        """complete, no number (finished without the metric), or failed."""
        return "complete" if self.value is not None else "no number" if self.done else "failed"

    @property
    def diverged(self) -> int:
        """How many of its runs diverged."""
        return sum(record["status"] == "diverged" for record in self.records)


def trials_of(cell: Cell) -> list[Trial]:
    """The trials of a cell, in grid order."""
    return [Trial(point, ids, cell.records(point)) for point, ids in cell.ids.items()]


def search(cell: Cell) -> list[str]:
    """Does the trials that are not done. Returns a line for each run that failed."""
    left = [trial.point for trial in trials_of(cell) if not trial.done]
    total = len(cell.trials)
    done = total - len(left)
    size = f"{plural(total, 'trial')} of {plural(cell.seeds, 'run')}"
    print(f"{cell.name}: {size}, {done} done before", flush=True)
    failed: list[str] = []
    for number, point in enumerate(left, done + 1):
        seconds = seconds_left(cell)
        time = f"  left: {duration(seconds)}" if seconds else ""
        setting = " ".join(cell.overrides_of(point))
        print(f"[trial {number}/{total}] {setting}{time}", flush=True)
        runs = with_starts(cell.trials[point])
        outcome = sweep(runs, part=True, launch=Launch(tracking=Tracking(mode="off")))
        failed += [f"{setting}, {run.label}: {error} ({log})" for run, error, log in outcome.failed]
    return failed


def seconds_left(cell: Cell) -> float | None:
    """The expected time of the runs without a record, from the mean of those with one; None without any."""
    costs = [record["cost"] for record in cell.records(*cell.trials)]
    seconds = [cost["train_seconds"] + cost["evaluate_seconds"] for cost in costs]
    return statistics.fmean(seconds) * (len(cell.runs) - len(seconds)) if seconds else None
