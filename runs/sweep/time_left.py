"""How long a sweep still takes: from its runs that have ended, and from how far those
are that are on."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from runs.record.text import duration
from runs.run.definition import Run

#: What runs of like duration share.
Cell = tuple[str, str, str]


def cell_of(run: Run) -> Cell:
    """The cell of a run, without its seed."""
    return run.row, run.model, run.task


@dataclass(frozen=True)
class RunningRun:
    """A run that is on. elapsed: its seconds until now, over all attempts. left: those that it expects, if
    it has said so."""

    run: Run
    elapsed: float
    left: float | None


class TimeLeft:
    """The durations of a sweep's runs, and what they say of the others."""

    def __init__(self) -> None:
        self._durations = defaultdict[Cell, list[float]](list)

    def add(self, run: Run, seconds: float) -> None:
        """Counts a run that has ended."""
        self._durations[cell_of(run)].append(seconds)

    def of_sweep(
        self, waiting: Iterable[Run], running: Sequence[RunningRun]
    ) -> float | None:
        """The seconds until all runs have ended, as many at once as are on now; None
        where none has said yet how long it takes."""
        durations = {cell: [*values] for cell, values in self._durations.items()}
        for entry in running:
            if entry.left is not None:
                seconds = entry.elapsed + entry.left
                durations.setdefault(cell_of(entry.run), []).append(seconds)
        if not durations:
            return None
        left = [self._left_of(entry, durations) for entry in running]
        total = sum(left) + sum(_expected(run, durations) for run in waiting)
        return max([total / max(len(running), 1), *left])

    def _left_of(
        self, entry: RunningRun, durations: Mapping[Cell, Sequence[float]]
    ) -> float:
        if entry.left is not None:
            return entry.left
        return max(_expected(entry.run, durations) - entry.elapsed, 0.0)


def _expected(run: Run, durations: Mapping[Cell, Sequence[float]]) -> float:
    """The duration of a run: of those of its cell, else of its task and model, else of
    all."""
    cell = cell_of(run)
    similar: list[float] = [*durations.get(cell, ())]
    if not similar:
        for (_, model, task), values in durations.items():
            if (model, task) == cell[1:]:
                similar += values
    if not similar:
        similar = [value for values in durations.values() for value in values]
    return mean(similar)


def sweep_words(ended: int, total: int, seconds: float | None) -> str:
    """How far a sweep is: 3 of 180 runs, about 2.0h left."""
    words = f"{ended} of {total} runs"
    return words if seconds is None else f"{words}, about {duration(seconds)} left"


def left_of(event: Mapping[str, Any]) -> float | None:
    """The seconds that a run's last event expects."""
    seconds = event.get("seconds_left")
    return float(seconds) if isinstance(seconds, int | float) else None


def seconds_of(event: Mapping[str, Any]) -> float:
    """The seconds that a run has trained and evaluated, by its last event; earlier
    attempts count, too."""
    seconds = event.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else 0.0
