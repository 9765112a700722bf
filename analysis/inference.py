"""Intervals, tests and the two rules of judgement, on plain numbers: a cell against the paper's, a finding
over paired runs.

A cell is compared by the difference of two statistics, each with the variance of what it is: the mean of n
normals has sd^2 / n, their median `median_variance(n)` times that (1.43 at n=5). Student's t with Welch's
degrees of freedom (Welch 1947; Satterthwaite 1946) gives the 95% interval. A finding is compared by the mean
difference of two rows over the seeds of both, by pair (Student's t) and unpaired (Welch's)."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import (
    bdtr,
    ndtr,
    stdtr,
    stdtrit,
)  # scipy.stats takes a second to import: where it is needed

from runs.record import LEVEL

#: Pairs from which on a finding's word is bold: with fewer, one more seed often changes it.
FIRM_PAIRS = 5


@cache
def median_variance(n: int) -> float:
    """Variance of the median of n standard normals, times n: 1 at n=1 and 2, 1.434 at n=5, towards pi / 2.

    By numerical integration of the density of the middle order statistics (David and Nagaraja 2003, chapter
    2)."""
    if n == 1:
        return 1.0
    grid = np.linspace(-7, 7, 1401)
    density, below = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), ndtr(grid)
    if n % 2:
        weight = density * (below * (1 - below)) ** (n // 2)
        return float(n * (grid**2 * weight).sum() / weight.sum())
    half = n // 2 - 1
    first, second = density * below**half, density * (1 - below) ** half
    # The two in the middle, the lower one first
    joint = np.outer(first, second) * (grid[:, None] < grid[None, :])
    joint += np.diag(first * second) / 2
    middle = (grid[:, None] + grid[None, :]) / 2
    return float(n * (middle**2 * joint).sum() / joint.sum())


def welch_half(variances: Any, freedoms: Any, level: float = LEVEL) -> Any:
    """Half the width of the interval of a sum or difference of independent estimates, by Student's t with
    Welch's degrees of freedom. variances, freedoms: of each estimate, along the first axis; further axes
    are other intervals. 0 where no estimate varies, NaN where a variance is not known."""
    variances, freedoms = np.asarray(variances, dtype=float), np.asarray(freedoms, dtype=float)
    total = variances.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (variances**2 / freedoms).sum(axis=0)
        half = stdtrit(df, (1 + level) / 2) * np.sqrt(total)
    return np.where(total == 0, 0.0, half)


def outside_by_chance(seeds: int) -> float:
    """How often a perfect replication is "outside our interval", which leaves out that the paper's number, of
    as many seeds, varies as much as ours."""
    return float(2 * stdtr(seeds - 1, -stdtrit(seeds - 1, (1 + LEVEL) / 2) / math.sqrt(2)))


# --- over seeds and tasks

#: For probabilities of improvement: they take a resample of both sides in each task.
IMPROVEMENT_RESAMPLES = 2000


def sign_test(differences: Iterable[float]) -> float:
    """The exact two-sided p of the sign test, without differences of zero; 1 where none is left."""
    signs = [difference > 0 for difference in differences if difference != 0]
    fewer = min(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * float(bdtr(fewer, len(signs), 0.5))) if signs else 1.0


def smallest_p(n: int) -> float:
    """The smallest p that the sign test can have with n pairs."""
    return min(1.0, 2.0 ** (1 - n))


def improvement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs of runs, the mean over tasks. pairs: for each task the values of
    the runs of X and of Y."""
    return float(np.mean([_above(x, y) for x, y in pairs]))


def improvement_interval(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[float, float] | None:
    """Stratified percentile bootstrap: the runs of each side and task are resampled. None where a side has
    one run."""
    if any(len(x) < 2 or len(y) < 2 for x, y in pairs):
        return None
    random, means = np.random.default_rng(0), np.zeros(IMPROVEMENT_RESAMPLES)
    for x, y in pairs:
        both = [np.asarray(side, dtype=float) for side in (x, y)]
        means += _above(
            *(side[random.integers(0, len(side), (IMPROVEMENT_RESAMPLES, len(side)))] for side in both)
        )
    low, high = np.percentile(means / len(pairs), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _above(x: Any, y: Any) -> Any:
    """The share of pairs in which x is above y, along the last axis; of equals half."""
    x, y = np.asarray(x)[..., :, None], np.asarray(y)[..., None, :]
    return ((x > y) + (x == y) / 2).mean(axis=(-2, -1))


# --- several rows at once


@dataclass(frozen=True)
class Ranks:
    """Rows ranked within blocks: the mean rank of each (1 is the highest value, ties share theirs), the p of
    Friedman's test that all rows are alike, and the critical difference of two mean ranks (Nemenyi)."""

    mean: list[float]
    p: float
    critical: float


def friedman(values: Sequence[Sequence[float]]) -> Ranks:
    """Friedman's test with Nemenyi's critical difference at 5% (Demsar 2006, "Statistical Comparisons of
    Classifiers over Multiple Data Sets", section 3.2.2). values: for each row, three at least, its value in
    each block. The p is chi-squared's, corrected for ties; 1 where every block ties all rows."""
    from scipy import stats

    of, blocks = np.asarray(values, dtype=float), len(values[0])
    rows = len(values)
    same = bool((of == of[0]).all())
    studentised = stats.studentized_range.ppf(LEVEL, rows, np.inf) / math.sqrt(2)
    return Ranks(
        stats.rankdata(-of, axis=0).mean(axis=1).tolist(),
        1.0 if same else float(stats.friedmanchisquare(*of).pvalue),
        float(studentised * math.sqrt(rows * (rows + 1) / (6 * blocks))),
    )


# --- findings

#: An interval of a mean difference; None where there are too few values for one.
Interval = tuple[float, float] | None


def paired_interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Two-sided interval of the mean of paired differences, by Student's t; None for fewer than two pairs and
    where a difference is not finite (a diverged run's perplexity is infinite)."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    return _interval(statistics.fmean(differences), [differences], level)


def unpaired_interval(pairs: Sequence[tuple[float, float]], level: float = LEVEL) -> Interval:
    """Two-sided interval of the mean of X less the mean of Y by Welch's t, as though no run of one had a seed
    of the other. pairs: X and Y by seed. None where `paired_interval` is."""
    sides: Any = tuple(zip(*pairs, strict=True))
    if len(pairs) < 2 or not all(math.isfinite(value) for side in sides for value in side):
        return None
    return _interval(statistics.fmean(sides[0]) - statistics.fmean(sides[1]), sides, level)


def _interval(mean: float, sides: Sequence[Sequence[float]], level: float) -> tuple[float, float]:
    """Of a mean, or a difference of means, by Student's t with Welch's degrees of freedom."""
    variances = [statistics.variance(side) / len(side) for side in sides]
    half = float(welch_half(variances, [len(side) - 1 for side in sides], level))
    return mean - half, mean + half


def is_near(pairs: Sequence[tuple[float, float]], margin: float) -> bool | None:
    """Whether X is near Y, by pair and unpaired: True where both one-sided 95% bounds of the mean difference
    are above -margin, False where both other bounds are below it, else None. pairs: X and Y by seed."""
    return _beyond(-margin, *both_intervals(pairs, 2 * LEVEL - 1))


def is_above(pairs: Sequence[tuple[float, float]]) -> bool | None:
    """Whether X is above Y, by pair and unpaired: True where both 95% intervals of the mean difference are
    above 0, False where both are below, else None. pairs: X and Y by seed."""
    return _beyond(0.0, *both_intervals(pairs))


def is_positive(values: Sequence[float]) -> bool | None:
    """True where the 95% interval of the mean is above 0, False where it is below, else None."""
    return _beyond(0.0, paired_interval(values))


def both_intervals(pairs: Sequence[tuple[float, float]], level: float = LEVEL) -> tuple[Interval, Interval]:
    """The interval of the mean difference by pair, and unpaired. What one of the two alone decides is not
    decided."""
    return paired_interval([x - y for x, y in pairs], level), unpaired_interval(pairs, level)


def _beyond(limit: float, *intervals: Interval) -> bool | None:
    """True where all intervals are above the limit, False where all are below, else None."""
    known = [interval for interval in intervals if interval]
    if len(known) < len(intervals):
        return None
    if all(low > limit for low, _ in known):
        return True
    return False if all(high < limit for _, high in known) else None
