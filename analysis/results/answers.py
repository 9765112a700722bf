"""What the first page of the results answers besides the findings: how VeRA differs on
one task, what it costs next to another row, and which small adapters are better."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import pandas as pd

from analysis.inference import Mean
from analysis.paired import paired_differences
from analysis.results.claims import Comparison, Finding
from analysis.results.study_rows import SIGNIFICANCE, OverTasks

#: How many adapters the page names at most: those with the highest means.
NAMED_ADAPTERS = 3


@dataclass(frozen=True)
class SingleTask:
    """The difference of two rows on one task, as `vera-bench table against=ROW` prints it
    for that model and task.

    against: the row that is subtracted. pairs: how many pairs of runs. mean, interval:
    of their differences, with its 95% CI. p: of this comparison alone; holm: p
    corrected for all `comparisons` of the table.
    """

    #: The studies whose pages say how we chose the number of seeds after seeing some of
    #: the pairs, by model and task.
    SEEDS_CHOSEN_LATER: ClassVar[dict[tuple[str, str], str]] = {
        ("minilm", "mrpc"): "glue_minilm"
    }

    comparison: Comparison
    against: str
    pairs: int
    mean: float
    interval: tuple[float, float]
    p: float
    holm: float
    comparisons: int

    @property
    def study_with_later_seeds(self) -> str | None:
        """The study whose page says how we chose the number of seeds after seeing some of
        the pairs; None if we chose it before."""
        model_and_task = (self.comparison.model, self.comparison.task)
        return self.SEEDS_CHOSEN_LATER.get(model_and_task)


def single_task(finding: Finding, runs: pd.DataFrame) -> SingleTask | None:
    """The first two rows of the finding's comparison with the most pairs. None where
    there is none, or where these rows were measured in several ways, each of which has a
    difference. runs: of `frame.runs`; a run may be in it for each study that has published
    it."""
    comparison = finding.largest_comparison
    if comparison is None or comparison.pairs[0] is None:
        return None
    left = comparison.pairs[0].left.row
    right = comparison.pairs[0].right.row
    is_of_task = (runs.model == comparison.model) & (runs.task == comparison.task)
    runs_of_task = runs[is_of_task].drop_duplicates("id")
    # Every row of the task minus the right one: Holm's correction is for all of them.
    lines = paired_differences(runs_of_task, right, as_reference=True)
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

    time_ratios: of the training times, by model and task: the median over pairs of runs
    of one seed on one kind of processor. size_range: the lowest and the highest ratio
    of the sizes of adapter files.
    """

    time_ratios: Mapping[str, float]
    size_range: tuple[float, float]

    @property
    def median_time_ratio(self) -> float:
        """The ratio of the training times: the median over models and tasks."""
        return median(self.time_ratios.values())

    @property
    def extreme_tasks(self) -> tuple[str, str]:
        """The tasks on which VeRA is fastest and slowest, relative to the other row: keys
        of `time_ratios`."""
        by_ratio = sorted(self.time_ratios, key=lambda task: self.time_ratios[task])
        return by_ratio[0], by_ratio[-1]


def costs_of(finding: Finding, runs: pd.DataFrame) -> Costs | None:
    """The costs of a finding's left row divided by those of its right row; None where
    no pair ran on one kind of processor. runs: of `frame.runs`; a run may be in it for
    each study that has published it."""
    facts = runs.drop_duplicates("id").set_index("id")
    size_ratios = list[float]()
    time_ratios = dict[str, list[float]]()
    for comparison in finding.comparisons:
        if comparison.excluded:
            continue
        for left, right in _pairs_of_ids(comparison):
            size_ratios.append(facts.adapter_bytes[left] / facts.adapter_bytes[right])
            if facts.device[left] == facts.device[right]:
                ratio = facts.train_seconds[left] / facts.train_seconds[right]
                time_ratios.setdefault(comparison.place, []).append(ratio)
    if not time_ratios:
        return None
    medians = {task: median(ratios) for task, ratios in time_ratios.items()}
    return Costs(medians, (min(size_ratios), max(size_ratios)))


def _pairs_of_ids(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The ids of both runs of each pair of a comparison."""
    for pairs in comparison.pairs:
        if pairs is not None:
            yield from zip(pairs.left.ids, pairs.right.ids, strict=True)


@dataclass(frozen=True)
class SmallAdapter:
    """A row of a study with at most twice VeRA's parameters.

    difference: its mean minus VeRA's, over the tasks of the study. p: of the difference,
    after Holm's correction for all rows of the study, large ones too."""

    label: str
    parameters: float
    difference: Mean
    p: float

    @property
    def is_above(self) -> bool:
        """Whether it is significantly better than VeRA."""
        return self.p < SIGNIFICANCE and self.difference.mean > 0

    @property
    def is_below(self) -> bool:
        """Whether it is significantly worse than VeRA."""
        return self.p < SIGNIFICANCE and self.difference.mean < 0


@dataclass(frozen=True)
class SmallAdapters:
    """Every small adapter of a study, the highest mean first.

    Attributes:
        tasks: The labels of the study's tasks.
        vera_parameters: How many VeRA trains.
        rows: The adapters that are compared over the tasks.
        unpooled: The labels of other small adapters that ran on every task. The
            comparison leaves them out, because on some task a run of them collapsed or
            they vary more than the others (`study_rows.rows_not_pooled`).
    """

    tasks: tuple[str, ...]
    vera_parameters: float
    rows: tuple[SmallAdapter, ...]
    unpooled: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[float, float]:
        """The least and the most parameters of a row."""
        counts = [row.parameters for row in self.rows]
        return min(counts), max(counts)

    @property
    def top(self) -> tuple[SmallAdapter, ...]:
        """Those of the first NAMED_ADAPTERS rows whose mean is above VeRA's,
        significantly or not."""
        first_rows = self.rows[:NAMED_ADAPTERS]
        return tuple(row for row in first_rows if row.difference.mean > 0)

    @property
    def above(self) -> tuple[SmallAdapter, ...]:
        return tuple(row for row in self.rows if row.is_above)

    @property
    def below(self) -> tuple[SmallAdapter, ...]:
        return tuple(row for row in self.rows if row.is_below)


def small_adapters(
    over_tasks: OverTasks | None, cells: pd.DataFrame
) -> SmallAdapters | None:
    """The rows of a study with at most twice VeRA's parameters. None if none of them is
    compared over the tasks, even if some are `SmallAdapters.unpooled`.

    over_tasks: the study's rows over its tasks; None where it has too few. cells: of the
    study (`frame.reported_cells`)."""
    if over_tasks is None:
        return None
    parameters_by_row = cells.groupby("row").parameters.first()
    vera_parameters = float(parameters_by_row["vera"])
    rows = list[SmallAdapter]()
    for row, difference, p in over_tasks.lines():
        parameters = float(parameters_by_row[row])
        if parameters <= 2 * vera_parameters:
            label = over_tasks.labels[row]
            rows.append(SmallAdapter(label, parameters, difference, p))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.difference.mean)
    unpooled = list[str]()
    for row, cells_of_row in cells.groupby("row", sort=False):
        # a row with 0 parameters trains no adapter
        is_small = 0 < parameters_by_row[row] <= 2 * vera_parameters
        ran_on_all_tasks = {*over_tasks.tasks} <= {*cells_of_row.task_label}
        if is_small and ran_on_all_tasks and row not in over_tasks.means.index:
            unpooled.append(str(cells_of_row.label.iloc[0]))
    return SmallAdapters(
        over_tasks.tasks, vera_parameters, (*rows,), (*sorted(unpooled),)
    )
