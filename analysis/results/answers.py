"""What the first page of the results answers besides the findings: how VeRA differs on
one task, what it costs next to another row, and how adapters of about its size
compare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import pandas as pd

from analysis.inference import Mean
from analysis.paired import paired_differences
from analysis.results.claims import Comparison, Finding
from analysis.results.study_rows import SIGNIFICANCE, OverTasks

#: How many rows with the highest means the page names.
TOP = 3


@dataclass(frozen=True)
class SingleTask:
    """The difference of two rows on one task, as `vera-bench table against=ROW` prints it
    for that model and task.

    against: the row that is subtracted. pairs: how many. p: of this comparison alone;
    holm: corrected for all `comparisons` of the table.
    """

    #: The comparisons, by model and task, whose pages say that some of their seeds had
    #: been seen when the others were chosen.
    CHOSEN_LATER: ClassVar[set[tuple[str, str]]] = {("minilm", "mrpc")}

    comparison: Comparison
    against: str
    pairs: int
    mean: float
    interval: tuple[float, float]
    p: float
    holm: float
    comparisons: int

    @property
    def chosen_later(self) -> bool:
        """Whether the question was asked after some of its pairs had been seen."""
        return (self.comparison.model, self.comparison.task) in self.CHOSEN_LATER


def single_task(finding: Finding, runs: pd.DataFrame) -> SingleTask | None:
    """The comparison of a finding with the most pairs; None where there is none, or its
    rows were measured in several ways. runs: of `frame.runs`."""
    comparison = finding.largest_comparison
    if comparison is None or comparison.pairs[0] is None:
        return None
    left = comparison.pairs[0].left.row
    right = comparison.pairs[0].right.row
    is_compared = (runs.model == comparison.model) & (runs.task == comparison.task)
    compared = runs[is_compared].drop_duplicates("id")
    lines = paired_differences(compared, right, as_reference=True)
    lines_of_left = lines[lines.other == left]
    if len(lines_of_left) != 1:  # measured in several ways
        return None
    line = lines_of_left.iloc[0]
    return SingleTask(
        comparison=comparison,
        against=right,
        pairs=int(line.pairs),
        mean=float(line["mean"]),
        interval=(float(line.low), float(line.high)),
        p=float(line.p),
        holm=float(line.holm),
        comparisons=len(lines),
    )


@dataclass(frozen=True)
class Costs:
    """VeRA's costs divided by another row's.

    seconds: the ratio of the times of training, by model and task: the median over pairs
    of runs of one seed on one kind of processor. bytes: the lowest and the highest ratio
    of the sizes of adapter files.
    """

    seconds: Mapping[str, float]
    bytes: tuple[float, float]

    @property
    def median_ratio(self) -> float:
        """The ratio of the times of training: the median over tasks."""
        return median(self.seconds.values())

    @property
    def extreme_tasks(self) -> tuple[str, str]:
        """The tasks on which VeRA is fastest and slowest, relative to the other row."""
        by_ratio = sorted(self.seconds, key=lambda task: self.seconds[task])
        return by_ratio[0], by_ratio[-1]


def costs_of(finding: Finding, runs: pd.DataFrame) -> Costs | None:
    """The costs of a finding's left row next to its right row; None where no pair ran
    on one kind of processor. runs: of `frame.runs`, a line for each run."""
    facts = runs.drop_duplicates("id").set_index("id")
    byte_ratios = list[float]()
    second_ratios = dict[str, list[float]]()
    for comparison in finding.comparisons:
        if comparison.excluded:
            continue
        for left, right in _pairs_of_ids(comparison):
            byte_ratios.append(facts.adapter_bytes[left] / facts.adapter_bytes[right])
            if facts.device[left] == facts.device[right]:
                ratio = facts.train_seconds[left] / facts.train_seconds[right]
                second_ratios.setdefault(comparison.place, []).append(ratio)
    if not second_ratios:
        return None
    seconds = {task: median(ratios) for task, ratios in second_ratios.items()}
    return Costs(seconds, (min(byte_ratios), max(byte_ratios)))


def _pairs_of_ids(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The ids of both runs of each pair of a comparison."""
    for pairs in comparison.pairs:
        if pairs is not None:
            yield from zip(pairs.left.ids, pairs.right.ids, strict=True)


@dataclass(frozen=True)
class RowOfSize:
    """An adapter of about VeRA's size, over the tasks of a study: its difference from
    VeRA, and p after Holm's correction for all rows of the study."""

    label: str
    parameters: float
    mean: Mean
    p: float

    @property
    def is_above(self) -> bool:
        return self.p < SIGNIFICANCE and self.mean.mean > 0

    @property
    def is_below(self) -> bool:
        return self.p < SIGNIFICANCE and self.mean.mean < 0


@dataclass(frozen=True)
class RowsOfSize:
    """The rows of a study of at most twice VeRA's parameters, the highest mean first."""

    tasks: tuple[str, ...]
    vera_parameters: float
    rows: tuple[RowOfSize, ...]

    @property
    def parameters(self) -> tuple[float, float]:
        """The least and the most parameters of a row."""
        counts = [row.parameters for row in self.rows]
        return min(counts), max(counts)

    @property
    def top(self) -> tuple[RowOfSize, ...]:
        """Of the TOP rows with the highest means those whose mean is above VeRA's."""
        return tuple(row for row in self.rows[:TOP] if row.mean.mean > 0)

    @property
    def above(self) -> tuple[RowOfSize, ...]:
        return tuple(row for row in self.rows if row.is_above)

    @property
    def below(self) -> tuple[RowOfSize, ...]:
        return tuple(row for row in self.rows if row.is_below)


def rows_of_size(compared: OverTasks | None, runs: pd.DataFrame) -> RowsOfSize | None:
    """The rows of about VeRA's size; None if there is none. compared: the rows of the
    study over its tasks. runs: of the study."""
    if compared is None:
        return None
    parameters_by_id = runs.drop_duplicates("id").set_index("id").parameters
    vera_parameters = float(runs[runs.row == "vera"].parameters.iloc[0])
    rows = list[RowOfSize]()
    for row, mean, p in compared.lines():
        first_id = compared.ids[row][0]
        parameters = float(parameters_by_id[first_id])
        if parameters <= 2 * vera_parameters:
            rows.append(RowOfSize(compared.labels[row], parameters, mean, p))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.mean.mean)
    return RowsOfSize(compared.tasks, vera_parameters, (*rows,))
