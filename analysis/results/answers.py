"""What the first page of the results answers besides the findings: how VeRA differs on
one task, what it costs next to another row, and how adapters of about its size
compare."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

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

    comparison: Comparison
    against: str
    pairs: int
    mean: float
    interval: tuple[float, float]
    p: float
    holm: float
    comparisons: int


def single_task(finding: Finding, runs: pd.DataFrame) -> SingleTask | None:
    """The comparison of a finding with the most pairs; None where there is none, or its
    rows were measured in several ways. runs: of `frame.runs`."""
    comparison = finding.largest_comparison
    if comparison is None or comparison.pairs[0] is None:
        return None
    left, right = comparison.pairs[0].left.row, comparison.pairs[0].right.row
    is_compared = (runs.model == comparison.model) & (runs.task == comparison.task)
    compared = runs[is_compared].drop_duplicates("id")
    lines = paired_differences(compared, right, as_reference=True)
    lines_of_left = lines[lines.other == left]
    if len(lines_of_left) != 1:  # measured in several ways
        return None
    line = lines_of_left.iloc[0]
    return SingleTask(
        comparison,
        right,
        int(line.pairs),
        float(line["mean"]),
        (float(line.low), float(line.high)),
        float(line.p),
        float(line.holm),
        len(lines),
    )


@dataclass(frozen=True)
class Costs:
    """VeRA's cost divided by another row's.

    seconds: of training, by model and task, the median over pairs of runs of one seed
    on one kind of processor. bytes: of the adapter's file, at least and at most.
    """

    seconds: Mapping[str, float]
    bytes: tuple[float, float]

    @property
    def typical(self) -> float:
        """The median over tasks."""
        return median(self.seconds.values())

    @property
    def ends(self) -> tuple[str, str]:
        """The tasks where VeRA is fastest and slowest."""
        by_ratio = sorted(self.seconds, key=lambda task: self.seconds[task])
        return by_ratio[0], by_ratio[-1]


def costs_of(finding: Finding, runs: pd.DataFrame) -> Costs | None:
    """The costs of a finding's left row next to its right row; None where no pair ran
    on one kind of processor. runs: of `frame.runs`, a line for each run."""
    by_id = runs.drop_duplicates("id").set_index("id")
    by_task = dict[str, list[float]]()
    sizes = list[float]()
    for comparison in finding.comparisons:
        if comparison.excluded:
            continue
        for left, right in _pairs_of_ids(comparison):
            sizes.append(by_id.adapter_bytes[left] / by_id.adapter_bytes[right])
            if by_id.device[left] == by_id.device[right]:
                ratio = by_id.train_seconds[left] / by_id.train_seconds[right]
                by_task.setdefault(comparison.place, []).append(ratio)
    if not by_task:
        return None
    seconds = {task: median(ratios) for task, ratios in by_task.items()}
    return Costs(seconds, (min(sizes), max(sizes)))


def _pairs_of_ids(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The runs of each pair."""
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
        """The rows with the highest means above VeRA's."""
        return tuple(row for row in self.rows[:TOP] if row.mean.mean > 0)

    @property
    def above(self) -> tuple[RowOfSize, ...]:
        return tuple(row for row in self.rows if row.is_above)

    @property
    def below(self) -> tuple[RowOfSize, ...]:
        return tuple(row for row in self.rows if row.is_below)


def rows_of_size(compared: OverTasks | None, runs: pd.DataFrame) -> RowsOfSize | None:
    """The rows of about VeRA's size, or None where there is none. runs: of the study."""
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
