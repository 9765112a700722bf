"""The number that a cell reports, by seed, and two rows of one model compared over the seeds that both
have."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.cells import Cell, Key, over_shared_seeds, reported_epoch
from analysis.inference import improvement, improvement_interval, sign_test
from runs.record import Metric, median_interval


@dataclass(frozen=True)
class Series:
    """The number that a cell's table reports, by seed, in points: its name, whether less is better, and its
    decimals.

    unknown: seeds that finished without that number. No statistic counts them; tables name them.
    """

    name: str
    values: dict[int, float]
    less: bool = False
    decimals: int = 1
    unknown: tuple[int, ...] = ()


def series(cell: Cell, which: str | None = None, select: str | None = None) -> Series:
    """By seed: BLEU of the last epoch where texts were scored, else the metric of the epoch that the task's
    table reports. which ("best", "last") and select ("paper", "crossfit"; by default the cell's own) ask for
    another epoch. A diverged seed counts as in Cell.values."""
    if which is None and any(record.get("texts") for record in cell.records):
        name, metric, values = "BLEU, last epoch", Metric("BLEU"), cell.scores("bleu")
    else:
        metric, which = Metric.of_record(cell.records[0]), which or reported_epoch(cell.records[0])
        name = f"{metric.name}, {which} epoch"
        values = dict(zip(cell.seed_numbers, cell.values(which, select), strict=True))
    known = {seed: value for seed, value in values.items() if not math.isnan(value)}
    unknown = tuple(seed for seed in cell.seed_numbers if seed not in known)
    return Series(name, known, not metric.higher_is_better, metric.decimals, unknown)


# --- comparisons


@dataclass(frozen=True)
class Comparison:
    """One row against another on a task, or pooled over tasks (task "all"). A positive difference means that
    the first is better, also of metrics of which less is better. `p` cannot go below smallest_p(pairs)."""

    model: str
    other: str
    task: str
    labels: tuple[str, str]
    values: tuple[tuple[float, float], ...]  # of each pair, by task and seed; more is better
    differences: tuple[float, ...]
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


def compare(by_key: Mapping[Key, Cell], row: str = "vera") -> list[Comparison]:
    """A row against every other of the same model: on each task where both have runs, and over these tasks
    together.

    Differences are paired by task and seed; a seed that one side lacks, or that was measured on other data,
    counts nowhere. Tasks are pooled where each row has one size on them, and their metrics one direction. The
    pooled sign test takes the pairs of all tasks as independent: runs of one seed on two tasks share no draw
    but the seed's number."""
    comparisons = []
    for model in sorted({key[0] for key in by_key}):
        tasks = [key[2] for key in by_key if key[:2] == (model, row)]
        for other in sorted({key[1] for key in by_key if key[0] == model} - {row}):
            alike: dict[tuple[Any, ...], list[_Pair]] = defaultdict(list)
            for task in (task for task in tasks if (model, other, task) in by_key):
                pair = _Pair(task, by_key[model, row, task], by_key[model, other, task])
                if pair.differences:
                    comparisons.append(_comparison(model, other, task, [pair]))
                    alike[pair.cell.label, pair.other.label, series(pair.cell).less].append(pair)
            several = (pairs for pairs in alike.values() if len(pairs) > 1)
            comparisons += [_comparison(model, other, "all", pairs) for pairs in several]
    return comparisons


class _Pair:
    """Two cells of a task over the seeds that both have, measured on the same (`measured_on`): the values of
    each side, such that more is better, and their differences. Without seeds where the cells report unlike
    numbers: one has texts scored, the other has not."""

    def __init__(self, task: str, cell: Cell, other: Cell) -> None:
        self.task, self.cell, self.other = task, cell, other
        numbers = [series(one) for one in over_shared_seeds([cell, other]) if one.records]
        shared = list[int]()
        if len({of.name for of in numbers}) == 1:
            shared = sorted(set.intersection(*({*of.values} for of in numbers)))
        values = [[-of.values[seed] if of.less else of.values[seed] for seed in shared] for of in numbers]
        self.sides = (values[0], values[1]) if shared else ([], [])
        # Equal values first: two diverged runs may both be infinite.
        self.differences = [0.0 if a == b else a - b for a, b in zip(*self.sides, strict=True)]


def _comparison(model: str, other: str, task: str, pairs: Sequence[_Pair]) -> Comparison:
    differences = [difference for pair in pairs for difference in pair.differences]
    sides = [pair.sides for pair in pairs]
    cells = [cell for pair in pairs for cell in (pair.cell, pair.other)]
    return Comparison(
        model,
        other,
        task,
        (pairs[0].cell.label, pairs[0].other.label),
        tuple(values for pair in pairs for values in zip(*pair.sides, strict=True)),
        tuple(differences),
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
        statistics.median(differences),
        median_interval(differences),
        sign_test(differences),
        improvement(sides),
        improvement_interval(sides),
        min(series(cell).decimals for cell in cells),
        tuple(run for cell in cells for run in cell.ids),
    )
