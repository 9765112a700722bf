"""Intervals, tests and verdict rules on plain numbers. docs/statistics.md explains the
rules; tests/analysis/test_inference.py simulates how often each of them errs.

A cell is compared with the paper's by the difference of two statistics. Each has the
variance of what it is: the mean of n normals has sd^2 / n, their median
`median_variance(n)` times that (1.43 at n=5). Student's t with Welch's degrees of
freedom (Welch 1947; Satterthwaite 1946) gives the 95% interval."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.scipy_special import special
from runs.record.intervals import LEVEL

Array = NDArray[np.float64]

#: A verdict on at least so many pairs is shown in bold: with fewer, one more seed often
#: changes it.
FIRM_PAIRS = 5
#: Two rows are equivalent if they differ by less than this many points.
EQUIVALENCE_MARGIN = 1.0
#: Below this p a variance is not pooled with the others, as in ISO 5725-2.
OUTLIER_LEVEL = 0.01


class Verdict(StrEnum):
    """What our runs say about a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


# --- a cell beside the paper's


@cache
def median_variance(n: int) -> float:
    """Variance of the median of n standard normals, times n, and so its ratio to the
    variance of their mean.

    It is 1 at n=1 and 2, 1.434 at n=5, and tends to pi / 2. By numerical integration of
    the density of the middle order statistics (David and Nagaraja 2003, chapter 2)."""
    if n == 1:
        return 1.0
    grid = np.linspace(-7, 7, 1401)  # the values of a normal
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    below = special().ndtr(grid)
    if n % 2:
        weight = density * (below * (1 - below)) ** (n // 2)
        return float(n * (grid**2 * weight).sum() / weight.sum())
    outside = n // 2 - 1  # values below the two middle ones, and above them
    lower = density * below**outside
    upper = density * (1 - below) ** outside
    # the density of the pair of them where lower < upper; the diagonal counts half
    joint = np.outer(lower, upper) * (grid[:, None] < grid[None, :])
    joint += np.diag(lower * upper) / 2
    middle = (grid[:, None] + grid[None, :]) / 2
    return float(n * (middle**2 * joint).sum() / joint.sum())


def welch_half_width(
    variances: ArrayLike, freedoms: ArrayLike, level: float = LEVEL
) -> Any:
    """Half the width of the interval of a sum or difference of independent estimates, by
    Student's t with Welch's degrees of freedom.

    Args:
        variances: of each estimate, along the first axis; further axes are other
            intervals.
        freedoms: the degrees of freedom of each variance, in the same shape.
        level: the confidence level.

    Returns:
        A number, or an array over the further axes. 0 where no estimate varies, NaN
        where a variance is unknown."""
    variances = np.asarray(variances, dtype=float)
    freedoms = np.asarray(freedoms, dtype=float)
    total = variances.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / (variances**2 / freedoms).sum(axis=0)
        half_width = special().stdtrit(freedom, (1 + level) / 2) * np.sqrt(total)
    return np.where(total == 0, 0.0, half_width)


# --- two rows over seeds


def sign_test(differences: Iterable[float]) -> float:
    """The exact two-sided p of the sign test. Differences of zero do not count; p is 1 if
    all of them are zero."""
    signs = [difference > 0 for difference in differences if difference != 0]
    if not signs:
        return 1.0
    rarer = min(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * float(special().bdtr(rarer, len(signs), 0.5)))


def probability_of_improvement(x: Iterable[float], y: Iterable[float]) -> float:
    """How often a run of X scores above a run of Y: P(X > Y) + P(X = Y) / 2 over all
    pairs of a run of X and a run of Y, of whichever seeds."""
    x_column = np.array([*x])[:, None]
    y_line = np.array([*y])
    is_above = x_column > y_line
    is_equal = x_column == y_line
    return float((is_above + is_equal / 2).mean())


# --- means and their intervals


@dataclass(frozen=True)
class Mean:
    """A mean in points with its standard error and degrees of freedom.

    Fields are numbers, or arrays of several means; NaN is unknown. between_task_sd: of a
    random-effects mean over tasks, the standard deviation of the tasks' true differences."""

    mean: Any
    error: Any
    freedom: Any
    between_task_sd: Any = math.nan

    def interval(self, level: float = LEVEL) -> Any:
        """Both ends of its interval at a confidence level, by Student's t."""
        # without a degree of freedom the error is NaN, and so is the interval
        quantile = special().stdtrit(np.maximum(self.freedom, 1), (1 + level) / 2)
        half_width = quantile * self.error
        with np.errstate(invalid="ignore"):
            return self.mean - half_width, self.mean + half_width

    def equivalence_margin(self) -> Any:
        """The smallest margin within which two one-sided tests at 5% show the true mean
        to be: the larger distance from 0 of the ends of its 90% interval."""
        return np.abs(self.interval(2 * LEVEL - 1)).max(axis=0)

    def is_within(self, margin: float = EQUIVALENCE_MARGIN) -> Any:
        """Whether two one-sided tests at 5% show that it is within the margin of 0: its
        90% interval lies between -margin and margin (Schuirmann 1987)."""
        return self.equivalence_margin() < margin

    def is_below(self, margin: float = EQUIVALENCE_MARGIN) -> Any:
        """Whether its 95% interval lies below 0, and the mean below -margin."""
        return (self.sign() < 0) & (self.mean < -margin)

    def is_above(self, margin: float = EQUIVALENCE_MARGIN) -> Any:
        """Whether its 95% interval lies above 0, and the mean above the margin."""
        return (self.sign() > 0) & (self.mean > margin)

    def sign(self) -> Any:
        """1 where its 95% interval is above 0, -1 where it is below, otherwise 0."""
        low, high = self.interval()
        return np.where(low > 0, 1, np.where(high < 0, -1, 0))

    def p(self) -> Any:
        """The two-sided p of Student's t against 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.abs(self.mean / self.error)
            return 2 * special().stdtr(np.maximum(self.freedom, 1), -ratio)

    def prediction(self, level: float = LEVEL) -> Any:
        """The interval for one more value of the kind that was averaged, by Student's t:
        for a plain mean over tasks, the difference that a new task would show."""
        count = self.freedom + 1
        deviation = self.error * np.sqrt(count)
        spread = deviation * np.sqrt(1 + 1 / count)
        return Mean(self.mean, spread, self.freedom).interval(level)


#: The mean of nothing.
UNKNOWN = Mean(math.nan, math.nan, math.nan)


def mean_of(values: ArrayLike) -> Mean:
    """The plain mean along the last axis, with its standard error. NaN are no values.

    The error is NaN, and so every interval, for fewer than two values, and where a value
    is infinite (the perplexity of a diverged run)."""
    values = np.asarray(values, dtype=float)
    n = (~np.isnan(values)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=-1) / n
        squares = np.nansum((values - mean[..., None]) ** 2, axis=-1)
        # nansum skips inf - inf, so equal infinite values would have an error of 0. For
        # an infinite mean 0 * mean is NaN, and so is the error; otherwise it adds 0.
        squares += 0 * mean
        return Mean(mean, np.sqrt(squares / (n - 1) / n), n - 1)


def equivalence_verdict(mean: Mean, margin: float = EQUIVALENCE_MARGIN) -> Verdict:
    """The verdict on "X is as good as Y". mean: of X minus Y. Supported if the 90%
    interval lies within the margin of 0; contradicted if the 95% interval lies below 0
    and the mean below -margin."""
    if mean.is_within(margin):
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if mean.is_below(margin) else Verdict.INCONCLUSIVE


def equality_verdict(mean: Mean, margin: float = EQUIVALENCE_MARGIN) -> Verdict:
    """The verdict on "X equals Y": as for equivalence, and also contradicted if the 95%
    interval lies above 0 and the mean above the margin. mean: of X minus Y."""
    if mean.is_above(margin):
        return Verdict.CONTRADICTED
    return equivalence_verdict(mean, margin)


def superiority_verdict(mean: Mean) -> Verdict:
    """The verdict on "X is better than Y", by the sign of the 95% interval. mean: of X
    minus Y."""
    verdicts = {1: Verdict.SUPPORTED, -1: Verdict.CONTRADICTED}
    return verdicts.get(int(mean.sign()), Verdict.INCONCLUSIVE)


# --- a finding over its tasks


def plain_mean_over_tasks(differences: ArrayLike) -> Mean:
    """The mean that decides a finding: the plain mean of the tasks' means, with Student's
    t over tasks. differences: of pairs of runs, by task and seed along the last two
    axes; NaN where there is no pair in which both runs trained."""
    return mean_of(mean_of(differences).mean)


def mean_over_tasks(
    differences: ArrayLike, collapsed: ArrayLike, weighted: bool = True
) -> Mean:
    """The mean of paired differences over tasks, by the rule that decides findings
    (`plain_mean_over_tasks`) or by weights.

    Args:
        differences: by task and seed, along the last two axes; NaN where there is none.
        collapsed: which of them have a collapsed run, in the same shape.
        weighted: a random-effects mean instead of the plain one. The variance of a pair
            is pooled over the tasks without a collapsed run; a task with such a run has
            its own."""
    differences = np.asarray(differences, dtype=float)
    collapsed = np.asarray(collapsed)
    if not weighted:
        return plain_mean_over_tasks(differences)
    by_task = mean_of(differences)
    n = by_task.freedom + 1  # pairs of each task
    has_collapsed = (collapsed & ~np.isnan(differences)).any(axis=-1)
    is_poolable = ~has_collapsed & (n > 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = by_task.error**2 * n
        freedom = np.where(is_poolable, by_task.freedom, 0)
        squares = np.where(is_poolable, variance * freedom, 0).sum(axis=-1)
        pooled = squares / freedom.sum(axis=-1)
        # without a task to pool over, the largest variance stands for all
        largest = np.nanmax(variance, axis=-1, initial=0)
        pooled = np.where(np.isnan(pooled), largest, pooled)[..., None]
        # a task with one pair has no variance of its own
        variances = np.where(is_poolable | (n < 2), pooled, variance) / n
        return random_effects(by_task.mean, variances)


def random_effects(means: ArrayLike, variances: ArrayLike) -> Mean:
    """The random-effects mean along the last axis, where NaN are no means. The variance
    between them is Paule and Mandel's (1982), the error and Student's t are Hartung and
    Knapp's (2001). variances: of each mean, in the same shape."""
    means = np.asarray(means, dtype=float)
    is_mean = ~np.isnan(means)
    freedom = is_mean.sum(axis=-1) - 1
    means = np.where(is_mean, means, 0.0)
    # an infinite variance is a weight of 0, and 1e-12 bounds the weights
    variances = np.where(is_mean, np.maximum(variances, 1e-12), np.inf)
    between_variance = np.zeros(freedom.shape)
    weighted_squares = np.zeros(freedom.shape)
    # Solves weighted_squares = freedom for the variance between the means. Newton's
    # steps from 0 rise to the solution (DerSimonian and Kacker 2007).
    for _ in range(50):
        weights = 1 / (variances + between_variance[..., None])
        mean = (weights * means).sum(axis=-1) / weights.sum(axis=-1)
        squares = weights * (means - mean[..., None]) ** 2
        weighted_squares = squares.sum(axis=-1)
        slope = (weights * squares).sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = weighted_squares - freedom
            step = np.where(slope > 0, excess / slope, 0)
        between_variance = np.maximum(0, between_variance + step)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(weighted_squares / freedom / weights.sum(axis=-1))
    return Mean(mean, error, freedom, np.sqrt(between_variance))


def power_over_tasks(
    effect: float,
    between_task_sd: float,
    pair_sd: float,
    pairs: Sequence[int],
    draws: int = 20_000,
) -> float:
    """How often the plain mean over tasks has a 95% interval below 0, by simulation.

    Args:
        effect: the true mean difference, in points.
        between_task_sd: the standard deviation of the tasks' true differences.
        pair_sd: that of a pair's difference within a task.
        pairs: how many pairs each task has.
        draws: how many times the study is simulated, always with the same seed."""
    deviation = np.sqrt(between_task_sd**2 + pair_sd**2 / np.asarray(pairs))
    normal = np.random.default_rng(0).normal(size=(draws, len(pairs)))
    return float((mean_of(effect + deviation * normal).sign() < 0).mean())


# --- collapsed runs


def share_interval(count: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Both ends of the exact interval of count / total (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = 0.0
    high = 1.0
    if count > 0:
        low = float(special().betaincinv(count, total - count + 1, tail))
    if count < total:
        high = float(special().betaincinv(count + 1, total - count, 1 - tail))
    return low, high


def fisher_p(x: int, x_total: int, y: int, y_total: int) -> float:
    """The p value of Fisher's exact two-sided test of whether two shares are equal, x of
    x_total and y of y_total. If they are equal, it is the probability of all counts with
    the same x + y and totals that are no likelier than these."""
    successes = x + y
    lowest = max(0, successes - y_total)
    highest = min(successes, x_total)
    possible_x = np.arange(lowest, highest + 1)
    ways_of_x = special().binom(x_total, possible_x)
    ways_of_y = special().binom(y_total, successes - possible_x)
    weights = ways_of_x * ways_of_y
    probability = weights / weights.sum()
    # 1e-9: equal probabilities may differ by rounding
    is_as_rare = probability <= probability[x - lowest] * (1 + 1e-9)
    return float(min(1.0, probability[is_as_rare].sum()))


# --- seeds and test rows


def over_seeds_and_items(
    x: ArrayLike, y: ArrayLike, units: Sequence[Any] | None = None
) -> Mean:
    """The mean difference of two rows whose seeds share one test set, in points.

    The interval covers other seeds and other test items. A difference d of seed i and
    item j has independent parts of the seed, of the item and of both, so that the mean
    over n seeds and m items has the variance s2(seed means) / n + s2(item means) / m -
    residual / (nm). If that is below the larger of the first two, this one counts, with
    its degrees of freedom; otherwise these are Satterthwaite's (1946).

    Args:
        x: whether each run of one row has each item right, seeds by items.
        y: the same of the other row; line i of both is of one seed.
        units: which items belong together, a label for each item (questions on one
            text); such items are one unit. By default each item is its own."""
    x = np.asarray(x, dtype=float)
    y = np.asarray(y, dtype=float)
    if x.ndim != 2 or x.shape != y.shape or min(x.shape) < 2:
        raise ValueError("needs two seeds and two items at least, the same of both")
    differences = 100 * (x - y)
    if units is not None:
        differences = _by_unit(differences, units)
    seeds, items = differences.shape
    mean = float(differences.mean())
    seed_means = differences.mean(axis=1)
    item_means = differences.mean(axis=0)
    residuals = differences - seed_means[:, None] - item_means + mean
    freedoms = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    squares = float((residuals**2).sum())
    seed_part = seed_means.var(ddof=1) / seeds
    item_part = item_means.var(ddof=1) / items
    residual_part = squares / freedoms[2] / (seeds * items)
    parts = np.array([seed_part, item_part, residual_part])
    variance = float(seed_part + item_part - residual_part)
    larger = int(parts[:2].argmax())
    if variance <= parts[larger]:
        return Mean(mean, math.sqrt(parts[larger]), float(freedoms[larger]))
    freedom = variance**2 / float((parts**2 / freedoms).sum())
    return Mean(mean, math.sqrt(variance), freedom)


def _by_unit(differences: Array, units: Sequence[Any]) -> Array:
    """Differences by seed and unit, from differences by seed and item.

    Units may have different numbers of items, so a unit's value is no mean over its
    items: it is the overall mean plus the sum of its items' deviations from it, scaled
    by units per item. The mean over units is then the mean over items."""
    labels, unit_of_item = np.unique(np.asarray(units), return_inverse=True)
    if len(unit_of_item) != differences.shape[1]:
        raise ValueError("units needs a label for each item")
    mean = differences.mean()
    membership = np.eye(len(labels))[unit_of_item]  # items by units, 0 or 1
    scale = len(labels) / differences.shape[1]
    return mean + (differences - mean) @ membership * scale


# --- a study of many rows


class TwoWay(NamedTuple):
    """An analysis of variance of rows by seeds, without repetitions.

    deviation, freedom: the residual standard deviation and its degrees of freedom.
    correlation: the share of the variance within a row that comes from the seed and is
    common to all rows (intraclass). p: of the hypothesis that seeds do not matter."""

    deviation: float
    freedom: int
    correlation: float
    p: float


def two_way(values: ArrayLike) -> TwoWay:
    """The analysis of variance of scores by row (first axis) and seed."""
    values = np.asarray(values, dtype=float)
    rows, seeds = values.shape
    seed_means = values.mean(axis=0)
    row_means = values.mean(axis=1, keepdims=True)
    seed_mean_square = rows * seed_means.var(ddof=1)
    residuals = values - row_means - seed_means + values.mean()
    freedom = (rows - 1) * (seeds - 1)
    residual_variance = (residuals**2).sum() / freedom
    seed_variance = (seed_mean_square - residual_variance) / rows
    f_ratio = seed_mean_square / residual_variance
    return TwoWay(
        deviation=math.sqrt(residual_variance),
        freedom=freedom,
        correlation=float(seed_variance / (seed_variance + residual_variance)),
        p=float(special().fdtrc(seeds - 1, freedom, f_ratio)),
    )


def outlying_variances(variances: ArrayLike, freedoms: ArrayLike) -> Any:
    """Which variances are too large to be pooled with the others, as an array of flags.

    By Cochran's test (1941) at 1%, for unequal counts as 't Lam (2010) has it, repeated
    until no variance is an outlier. freedoms: the degrees of freedom of each variance; 0
    or NaN for one that is unknown, which is no outlier."""
    variances = np.asarray(variances, dtype=float)
    freedoms = np.asarray(freedoms, dtype=float)
    removed = ~(freedoms > 0)  # these have no variance
    while (~removed).sum() > 1:
        squares = np.where(removed, 0, variances * freedoms)
        other_freedoms = (freedoms * ~removed).sum() - freedoms
        other_squares = squares.sum() - variances * freedoms
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = variances / (other_squares / other_freedoms)
            tail = special().fdtrc(freedoms, other_freedoms, ratio)
        p = np.where(removed, 1, tail * (~removed).sum())
        if p.min() >= OUTLIER_LEVEL:
            break
        removed[p.argmin()] = True
    return removed & (freedoms > 0)


def holm(p: ArrayLike) -> Any:
    """p values corrected for their number (Holm 1979). NaN stays NaN, and is not counted."""
    corrected = np.array(p, dtype=float)
    count = int((~np.isnan(corrected)).sum())
    order = np.argsort(corrected)[:count]  # NaN come last
    steps = corrected[order] * np.arange(count, 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


# --- what it costs to decide


def seeds_to_decide(
    deviation: float,
    margin: float = EQUIVALENCE_MARGIN,
    power: float = 0.8,
    sides: int = 2,
) -> int:
    """How many seeds, that is, pairs of runs, show that two equal rows are equivalent,
    with this power; at most 20,000.

    By the noncentral t. Both one-sided tests fail together so rarely that each gets
    half of the failures.

    Args:
        deviation: the standard deviation of a pair's difference.
        margin: the equivalence margin.
        power: how often equivalence should be shown.
        sides: 1 for the test against -margin alone."""
    n = np.arange(2, 20_000)
    with np.errstate(divide="ignore"):
        shift = np.sqrt(n) * margin / deviation
    critical = special().stdtrit(n - 1, LEVEL)
    misses = special().nctdtr(n - 1, shift, critical)
    too_few = misses > (1 - power) / sides  # these n, which start at 2
    return int(2 + too_few.sum())
