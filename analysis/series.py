"""The number that a cell reports, by seed, and two rows of one model compared over the seeds that both
have."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.cells import Cell, Key
from analysis.inference import improvement, improvement_interval, median_interval, sign_test
from runs.record import Metric


@dataclass(frozen=True)
class Series:
    """The number that a cell's table reports, by seed, in points: its name, whether less is better, and its
    decimals.

    unknown: seeds that finished without that number. They are in no statistic, and are named beside it.
    """

    name: str
    values: dict[int, float]
    less: bool = False
    decimals: int = 1
    unknown: tuple[int, ...] = ()


def series(cell: Cell, which: str | None = None, select: str | None = None) -> Series:
    """By seed: BLEU of the last epoch where texts were scored, else the metric of the epoch that the task's
    table reports. `which` ("best", "last") and `select` ("paper", "crossfit"; the cell's own) ask for another
    epoch.

    A diverged seed counts by what it had before, or 0, as in the tables; of perplexity, as infinity.
    """
    if which is None and any(record.get("texts") for record in cell.records):
        name, metric, values = "BLEU, last epoch", Metric("BLEU"), cell.scores("bleu")
    else:
        metric, which = Metric.of_record(cell.records[0]), which or cell.records[0]["result"]["reported"]
        name = f"{metric.name}, {which} epoch"
        values = dict(zip(cell.seed_numbers, cell.values(which, select), strict=True))
    known = {seed: value for seed, value in values.items() if not math.isnan(value)}
    unknown = tuple(seed for seed in cell.seed_numbers if seed not in known)
    return Series(name, known, not metric.higher_is_better, metric.decimals, unknown)


# --- comparisons


@dataclass(frozen=True)
class Comparison:
    """One row against another on a task, or pooled over tasks (task "all"). Positive: the first is better,
    less is better or not. `p` cannot go below smallest_p(pairs)."""

    model: str
    row: str
    other: str
    task: str
    labels: tuple[str, str]
    differences: tuple[float, ...]  # of each pair, by task and seed
    wins: int
    losses: int
    difference: float
    interval: tuple[float, float] | None
    p: float
    improvement: float
    improvement_interval: tuple[float, float] | None
    decimals: int
    ids: tuple[str, ...] = field(default=(), repr=False)

    @property
    def pairs(self) -> int:
        """How many seeds both have."""
        return len(self.differences)


def compare(found: Mapping[Key, Cell], row: str = "vera") -> list[Comparison]:
    """A row against every other of the same model: on each task where both have runs, and over these tasks
    together.

    Differences are paired by task and seed; a seed that one side lacks is in nothing. Tasks are taken
    together where both rows have one size on them, and their numbers one sign. The pooled sign test takes the
    pairs of all tasks as independent: runs of one seed on two tasks share no draw but the seed's number."""
    out = []
    for model in sorted({key[0] for key in found}):
        tasks = [key[2] for key in found if key[:2] == (model, row)]
        for other in sorted({key[1] for key in found if key[0] == model} - {row}):
            lines = [
                (task, found[model, row, task], found[model, other, task])
                for task in tasks
                if (model, other, task) in found
            ]
            usable = [(task, *_both(a, b), a, b) for task, a, b in lines]
            usable = [line for line in usable if line[1]]
            for task, differences, sides, a, b in usable:
                out.append(_comparison(model, row, other, task, [differences], [sides], [(a, b)]))
            alike: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
            for line in usable:
                a, b = line[3:]
                alike[a.label, b.label, series(a).less].append(line)
            for of_size in alike.values():
                if len(of_size) > 1:
                    both = [(a, b) for *_, a, b in of_size]
                    out.append(
                        _comparison(
                            model, row, other, "all", [u[1] for u in of_size], [u[2] for u in of_size], both
                        )
                    )
    return out


def _both(a: Cell, b: Cell) -> tuple[list[float], tuple[list[float], list[float]]]:
    """The paired differences of two cells, and the values of each side over the seeds of the pairs; the sign
    such that more is better."""
    mine, others = series(a), series(b)
    if mine.name != others.name:  # one has texts scored, the other has not
        return [], ([], [])
    sign = -1.0 if mine.less else 1.0
    shared = sorted(set(mine.values) & set(others.values))
    apart = [
        sign * (mine.values[s] - others.values[s]) if mine.values[s] != others.values[s] else 0.0
        for s in shared
    ]
    return apart, ([sign * mine.values[s] for s in shared], [sign * others.values[s] for s in shared])


def _comparison(
    model: str,
    row: str,
    other: str,
    task: str,
    differences: list[list[float]],
    sides: list[tuple[list[float], list[float]]],
    cells_: list[tuple[Cell, Cell]],
) -> Comparison:
    flat = [difference for of_task in differences for difference in of_task]
    return Comparison(
        model,
        row,
        other,
        task,
        (cells_[0][0].label, cells_[0][1].label),
        tuple(flat),
        sum(d > 0 for d in flat),
        sum(d < 0 for d in flat),
        statistics.median(flat),
        median_interval(flat),
        sign_test(flat),
        improvement(sides),
        improvement_interval(sides),
        min(series(cell).decimals for both in cells_ for cell in both),
        tuple(run for both in cells_ for cell in both for run in cell.ids),
    )
