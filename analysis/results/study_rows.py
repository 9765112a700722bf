"""The rows of a study beside VeRA: on each task by pairs of runs of one seed, and over
tasks by a mixed model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import (
    comparable_costs,
    in_cells,
    mark_left_out,
    reported_cells,
    tasks_by_way,
    with_reported_scores,
)
from analysis.inference import (
    UNKNOWN,
    Mean,
    TwoWay,
    holm,
    mean_of,
    outlying_variances,
    two_way,
)
from analysis.paired import paired_differences
from analysis.results.comparisons import mark_collapsed
from runs.record.intervals import LEVEL

#: We pool the variance over the rows of a task if at least so many vary alike, and compare
#: rows over tasks if at least so many have all tasks.
MANY_ROWS = 10
#: A difference is firm if its p is below this, after Holm's correction.
SIGNIFICANCE = 1 - LEVEL


@dataclass(frozen=True)
class RowDifference:
    """A row of a study on one task, and its mean difference from VeRA.

    cell: its line of `frame.reported_cells`. mean: the difference, with an error from
    the variance pooled over the task's rows where there is one. p: of this mean, after
    Holm's correction over the whole study. paired, paired_p: the same by the differences
    of its own pairs alone (`paired.paired_differences`). at_end: whether its best learning
    rate is the lowest or the highest that was tried.

    VeRA itself and rows without a pair have unknown means (NaN).
    """

    cell: Any
    mean: Mean
    paired: Mean
    p: float
    paired_p: float
    at_end: bool

    @property
    def is_firm(self) -> bool:
        """Whether the difference is significant after Holm's correction."""
        return self.p < SIGNIFICANCE

    @property
    def is_firm_by_pairs(self) -> bool:
        return self.paired_p < SIGNIFICANCE


@dataclass(frozen=True)
class PooledVariance:
    """The variance of a run on one task, pooled over rows. variance: the analysis of rows
    by seeds, whose residual deviation is that of a run. outliers: the labels of the rows
    that are left out, because one of their runs collapsed or they vary more."""

    variance: TwoWay
    outliers: tuple[str, ...]


@dataclass(frozen=True)
class StudyRows:
    """Every row of a study on every task.

    rows: with their differences from VeRA. pooled: the variance of a run, by the label
    of each task on which there is one. cells: of the study (`frame.reported_cells`).
    poolable: the cells without the rows of `rows_not_pooled`."""

    rows: tuple[RowDifference, ...]
    pooled: Mapping[str, PooledVariance]
    cells: pd.DataFrame
    poolable: pd.DataFrame

    @property
    def comparisons(self) -> int:
        """How many differences Holm's correction is for."""
        return sum(not math.isnan(row.p) for row in self.rows)


def study_rows(runs: pd.DataFrame) -> StudyRows:
    """How much each row of a study differs from VeRA on each task. runs: of the study,
    every variant as a row of its own (`variants.every_variant`)."""
    cells = reported_cells(runs)
    # A task that was measured in several ways counts as several tasks.
    task_keys = tasks_by_way(cells)
    cells["task_label"] = tasks_by_way(cells, "task_label")
    results = mark_collapsed(with_reported_scores(mark_left_out(runs)))
    trials = with_reported_scores(runs[runs.kind == "trial"])
    differences = paired_differences(runs, "vera", as_reference=True)
    paired_by_row = differences.set_index(["model", "task", "other"])
    pooled = dict[str, PooledVariance]()
    rows = list[RowDifference]()
    poolable = list[int]()
    for (model, task_key), cells_on_task in cells.groupby(
        ["model", task_keys], sort=False
    ):
        runs_on_task = in_cells(results, cells_on_task)
        outliers = rows_not_pooled(runs_on_task)
        is_outlier = cells_on_task.row.isin(outliers)
        poolable += cells_on_task.index[~is_outlier].tolist()
        variance = pooled_variance(runs_on_task[~runs_on_task.row.isin(outliers)])
        if variance:
            labels = sorted(cells_on_task.label[is_outlier])
            task_label = cells_on_task.task_label.iloc[0]
            pooled[task_label] = PooledVariance(variance, (*labels,))
        smallest_first = cells_on_task.sort_values("parameters", kind="stable")
        for cell in comparable_costs(smallest_first).itertuples():
            # VeRA itself and rows without a pair stay unknown.
            paired = UNKNOWN
            paired_p = math.nan
            key = (model, task_key, cell.row)
            if key in paired_by_row.index:
                paired = mean_of(paired_by_row.differences[key])
                paired_p = float(paired_by_row.holm[key])
            # An outlier does not vary like the others, so it keeps its own pairs' error.
            mean = paired
            if variance and cell.row not in outliers:
                mean = _with_variance(paired, variance)
            own_p = float(mean.p())  # before Holm's correction, which needs every row
            at_end = is_best_rate_at_end(cell, trials)
            rows.append(RowDifference(cell, mean, paired, own_p, paired_p, at_end))
    corrected = holm([row.p for row in rows])
    corrected_rows = [
        replace(row, p=float(p)) for row, p in zip(rows, corrected, strict=True)
    ]
    return StudyRows((*corrected_rows,), pooled, cells, cells.loc[poolable])


def _with_variance(paired: Mean, variance: TwoWay) -> Mean:
    """A mean over pairs, with the error that follows from the pooled standard deviation
    of a run; unchanged for fewer than two pairs, which have no interval."""
    if not paired.freedom > 0:
        return paired
    pair_count = paired.freedom + 1
    # A difference of two runs has twice the variance of a run.
    error = variance.deviation * math.sqrt(2 / pair_count)
    return Mean(paired.mean, error, variance.freedom)


def rows_not_pooled(runs: pd.DataFrame) -> list[str]:
    """The rows of one task whose variance is not pooled: those with a collapsed run,
    and those that vary more than the others (`outlying_variances`). runs: results of the
    task, of `mark_collapsed`."""
    has_collapsed = runs.groupby("row").collapsed.any()
    numbers = runs[~runs.row.map(has_collapsed)].groupby("row").number
    variances = numbers.var()
    is_outlier = outlying_variances(variances, numbers.count() - 1)
    return [*has_collapsed.index[has_collapsed], *variances.index[is_outlier]]


def pooled_variance(runs: pd.DataFrame) -> TwoWay | None:
    """The variance of a run, pooled over the rows of one task that train an adapter; None
    if fewer than MANY_ROWS remain.

    The analysis takes only rows that have all of its seeds, so more seeds mean fewer
    rows. We choose the number of seeds that leaves the most degrees of freedom."""
    by_row = runs[runs.parameters > 0].pivot_table(
        index="row", columns="seed", values="number"
    )
    # the seeds that most rows have come first
    seeds = by_row.notna().sum().sort_values(ascending=False, kind="stable").index
    largest = by_row[:0]
    for count in range(2, len(seeds) + 1):
        complete = by_row[seeds[:count]].dropna()
        if residual_freedom(complete) > residual_freedom(largest):
            largest = complete
    return two_way(largest) if len(largest) >= MANY_ROWS else None


def residual_freedom(table: pd.DataFrame) -> int:
    """The residual degrees of freedom of a two-way table of rows by seeds; 0 for an empty
    one."""
    return max(len(table) - 1, 0) * max(table.shape[1] - 1, 0)


def is_best_rate_at_end(cell: Any, trials: pd.DataFrame) -> bool:
    """Whether the best learning rate of a cell's trials is the lowest or the highest
    that they tried; False if they tried one rate.

    A rate's score is its mean over seeds, at the learning rate of the head that suits it
    best. cell: of `frame.reported_cells`. trials: of the study, with their scores."""
    is_of_row = (
        (trials.conf_row == cell.conf_row)
        & (trials.task == cell.task)
        & (trials.model == cell.model)
    )
    trials = trials[is_of_row]
    # The label of a variant begins with that of its row: "VeRA r=256, lr 0.001". The comma
    # keeps r=2 and r=256 apart.
    is_of_variant = trials.label.map(
        lambda label: f"{cell.label},".startswith(f"{label},")
    )
    trials = trials[is_of_variant.astype(bool)]
    lower_is_better = trials.lower_is_better.astype(bool)
    signed = trials.number.where(~lower_is_better, -trials.number)
    rate = trials.lr_head if cell.method == "head" else trials.lr
    means = signed.groupby([rate, trials.lr_head], dropna=False).mean()
    score_by_rate = means.groupby(level=0).max().sort_index()
    if len(score_by_rate) < 2:
        return False
    best = score_by_rate.sort_values(ascending=False, kind="stable").index[0]
    return bool(best in (score_by_rate.index[0], score_by_rate.index[-1]))


# --- over tasks


@dataclass(frozen=True)
class OverTasks:
    """The rows of a study over its tasks, beside VeRA.

    tasks: their labels. means: the mean scores of the rows that have all tasks (lines), by
    model and task (columns), such that more is better. variance: the analysis of this
    table. rows: these rows without VeRA, the smallest first. labels, ids: the label of
    each row, and the ids of its runs. difference: each row's mean over tasks minus VeRA's;
    its mean is an array in the order of `rows`. p: of each, after Holm's correction.
    """

    tasks: tuple[str, ...]
    means: pd.DataFrame
    variance: TwoWay
    rows: tuple[str, ...]
    labels: Mapping[str, str]
    ids: Mapping[str, tuple[str, ...]]
    difference: Mean
    p: Any

    def lines(self) -> Iterator[tuple[str, Mean, float]]:
        """Each row with its difference from VeRA and the corrected p."""
        error, freedom = self.difference.error, self.difference.freedom
        for row, difference, p in zip(
            self.rows, self.difference.mean, self.p, strict=True
        ):
            yield row, Mean(difference, error, freedom), float(p)

    def firm_rows(self, sign: int) -> list[str]:
        """The labels of the rows that are significantly above (sign 1) or below (-1) VeRA,
        after Holm's correction."""
        return [
            self.labels[row]
            for row, mean, p in self.lines()
            if p < SIGNIFICANCE and np.sign(mean.mean) == sign
        ]


def rows_over_tasks(
    cells: pd.DataFrame,
    tasks: tuple[str, ...] = (),
    reference_cells: pd.DataFrame | None = None,
) -> OverTasks | None:
    """The rows of a study over its tasks, by a mixed model.

    Rows are fixed effects. Tasks, seeds, and what a row gains on one task are random
    effects. The model is fitted by the analysis of variance of the rows' means over
    seeds.

    Args:
        cells: of rows with similar variances (`StudyRows.poolable`).
        tasks: labels of tasks; by default all.
        reference_cells: cells of the study with the head alone and LoRA on each task.
            If they are given, each score is replaced by its share of the gain from the
            head alone to LoRA, in percent.

    Returns:
        Of the rows that have all tasks; None for fewer than MANY_ROWS rows, for one task,
        and where VeRA is not among the rows.
    """
    trained = cells[cells.parameters > 0]
    if tasks:
        trained = trained[trained.task_label.isin(tasks)]
    score = trained["mean"].where(
        ~trained.lower_is_better.astype(bool), -trained["mean"]
    )
    trained = trained.assign(score=score)
    if reference_cells is not None:
        trained = trained.assign(score=_share_of_gain(trained, reference_cells))
    means = trained.pivot_table(
        index="row", columns=["model_label", "task_label"], values="score", sort=False
    )
    # first the tasks that many rows have, then the rows that have all of these tasks
    means = means.loc[:, means.notna().sum() >= MANY_ROWS].dropna()
    if len(means) < MANY_ROWS or means.shape[1] < 2 or "vera" not in means.index:
        return None
    variance = two_way(means)
    by_row = trained.groupby("row")
    minus_vera = means.sub(means.loc["vera"]).mean(axis=1).drop("vera")
    sizes = by_row.parameters.first()[minus_vera.index]
    minus_vera = minus_vera[sizes.sort_values(kind="stable").index]
    # The residual variance is that of one score in `means`. A difference of two rows has
    # twice that, and is averaged over the columns.
    error = variance.deviation * math.sqrt(2 / means.shape[1])
    difference = Mean(minus_vera.to_numpy(), error, variance.freedom)
    return OverTasks(
        tasks=tuple(task for _, task in means.columns),
        means=means,
        variance=variance,
        rows=tuple(minus_vera.index),
        # Where a row has several settings on a task, its label there is longer.
        labels=by_row.label.agg(lambda labels: min(labels, key=len)).to_dict(),
        ids=by_row.ids.agg("sum").to_dict(),  # the sum of tuples joins them
        difference=difference,
        p=holm(difference.p()),
    )


def _share_of_gain(rows: pd.DataFrame, reference_cells: pd.DataFrame) -> pd.Series:
    """Where each row's score lies between that of the head alone (0) and LoRA's (100) on
    the same model and task. That is also right for scores of which less is better, since
    both differences change their sign.

    rows: cells. reference_cells: among others, those of the head and of LoRA."""
    by_task = reference_cells.pivot_table(
        index=["model_label", "task_label"], columns="row", values="mean"
    )
    models_and_tasks = pd.MultiIndex.from_frame(rows[["model_label", "task_label"]])
    head = by_task["head"].reindex(models_and_tasks).to_numpy()
    lora = by_task["lora"].reindex(models_and_tasks).to_numpy()
    return 100 * (rows["mean"] - head) / (lora - head)
