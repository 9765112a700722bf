"""Intervals, tests and the rules of judgement, on plain numbers: a cell against the
paper's, a finding over pairs of runs of one seed and over tasks. docs/statistics.md has
the rules, tests/analysis/test_inference.py how often each errs.

A cell is compared by the difference of two statistics, each with the variance of what
it is: the mean of n normals has sd^2 / n, their median `median_variance(n)` times that
(1.43 at n=5). Student's t with Welch's degrees of freedom (Welch 1947; Satterthwaite
1946) gives the 95% interval."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from runs.record import LEVEL

#: Pairs from which on a word is bold: with fewer, one more seed often changes it.
FIRM_PAIRS = 5
#: X is near Y if they are at most so many points apart.
MARGIN = 1.0
#: Below this p a variance is no longer pooled, as in ISO 5725-2.
OUTLYING = 0.01


@cache
def median_variance(n: int) -> float:
    """Variance of the median of n standard normals, times n: 1 at n=1 and 2, 1.434 at
    n=5, towards pi / 2.

    By numerical integration of the density of the middle order statistics (David and
    Nagaraja 2003, chapter 2)."""
    if n == 1:
        return 1.0
    grid = np.linspace(-7, 7, 1401)
    density, below = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), special.ndtr(grid)
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
    """Half the width of the interval of a sum or difference of independent estimates,
    by Student's t with Welch's degrees of freedom. variances, freedoms: of each
    estimate, along the first axis; further axes are other intervals. 0 where no
    estimate varies, NaN where a variance is not known."""
    variances, freedoms = (
        np.asarray(variances, dtype=float),
        np.asarray(freedoms, dtype=float),
    )
    total = variances.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = total**2 / (variances**2 / freedoms).sum(axis=0)
        half = special.stdtrit(df, (1 + level) / 2) * np.sqrt(total)
    return np.where(total == 0, 0.0, half)


# --- two rows over seeds


def sign_test(differences: Iterable[float]) -> float:
    """The exact two-sided p of the sign test, without differences of zero; 1 where none
    is left."""
    signs = [difference > 0 for difference in differences if difference != 0]
    fewer = min(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * float(special.bdtr(fewer, len(signs), 0.5))) if signs else 1.0


def improvement(x: Iterable[float], y: Iterable[float]) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs of the runs of X and of Y."""
    x, y = np.array([*x])[:, None], np.array([*y])
    return float(((x > y) + (x == y) / 2).mean())


# --- means and their words


@dataclass(frozen=True)
class Mean:
    """A mean, in points, its standard error and degrees of freedom (numbers, or arrays
    of them); NaN where it is not known. between: of a mean over tasks, the standard
    deviation of their true differences."""

    mean: Any
    error: Any
    freedom: Any
    between: Any = math.nan

    def interval(self, level: float = LEVEL) -> Any:
        """Its two ends, by Student's t."""
        half = (
            special.stdtrit(np.maximum(self.freedom, 1), (1 + level) / 2) * self.error
        )
        with np.errstate(invalid="ignore"):
            return self.mean - half, self.mean + half

    def margin(self) -> Any:
        """The smallest margin at which two one-sided tests at 5% call it near 0."""
        return np.abs(self.interval(2 * LEVEL - 1)).max(axis=0)

    def sign(self) -> Any:
        """1 where its 95% interval is above 0, -1 where it is below, else 0."""
        low, high = self.interval()
        return np.where(low > 0, 1, np.where(high < 0, -1, 0))

    def p(self) -> Any:
        """The two-sided p of Student's t against 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 2 * special.stdtr(
                np.maximum(self.freedom, 1), -np.abs(self.mean / self.error)
            )

    def near(self, margin: float = MARGIN) -> Any:
        """1 where two one-sided tests at 5% show it within the margin of 0 (Schuirmann
        1987), -1 where one shows it beyond the margin, else 0."""
        low, high = self.interval(2 * LEVEL - 1)
        return np.where(
            self.margin() < margin,
            1,
            np.where((high < -margin) | (low > margin), -1, 0),
        )


def mean_of(values: Any) -> Mean:
    """The mean along the last axis, whose NaN are no values. NaN for fewer than two,
    and where a value is infinite (a diverged run's perplexity)."""
    values = np.asarray(values, dtype=float)
    n = (~np.isnan(values)).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=-1) / n
        squares = np.nansum((values - mean[..., None]) ** 2, axis=-1) + 0 * mean
        return Mean(mean, np.sqrt(squares / (n - 1) / n), n - 1)


# --- a finding over its tasks


def over_tasks(differences: Any, collapsed: Any, weighted: bool = True) -> Mean:
    """The mean of paired differences over tasks. differences: by task and seed, along
    the last two axes, NaN where there is none; collapsed: which of them have a
    collapsed run.

    weighted: a random-effects mean (`random_effects`), whose variances are pooled over
    the tasks without a collapsed run; one with such a run has its own. Else Student's t
    over the tasks' means."""
    differences, collapsed = np.asarray(differences, dtype=float), np.asarray(collapsed)
    of = mean_of(differences)
    if not weighted:
        return mean_of(of.mean)
    n = of.freedom + 1
    whole = ~(collapsed & ~np.isnan(differences)).any(axis=-1) & (n > 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = of.error**2 * n
        freedom = np.where(whole, of.freedom, 0)
        pooled = np.where(whole, own * freedom, 0).sum(axis=-1) / freedom.sum(axis=-1)
        pooled = np.where(np.isnan(pooled), np.nanmax(own, axis=-1, initial=0), pooled)[
            ..., None
        ]
        return random_effects(of.mean, np.where(whole | (n < 2), pooled, own) / n)


def random_effects(means: Any, variances: Any) -> Mean:
    """The random-effects mean along the last axis, whose NaN are no means: the variance
    between them by Paule and Mandel (1982), the error and Student's t by Hartung and
    Knapp (2001)."""
    known = ~np.isnan(means)
    freedom = known.sum(axis=-1) - 1
    means, variances = (
        np.where(known, means, 0.0),
        np.where(known, np.maximum(variances, 1e-12), np.inf),
    )
    between, spread = np.zeros(freedom.shape), np.zeros(freedom.shape)
    # Newton's steps from 0 rise to the solution (DerSimonian and Kacker 2007)
    for _ in range(50):
        weights = 1 / (variances + between[..., None])
        mean = (weights * means).sum(axis=-1) / weights.sum(axis=-1)
        squares = weights * (means - mean[..., None]) ** 2
        spread, slope = squares.sum(axis=-1), (weights * squares).sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            between = np.maximum(
                0, between + np.where(slope > 0, (spread - freedom) / slope, 0)
            )
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(spread / freedom / weights.sum(axis=-1))
    return Mean(mean, error, freedom, np.sqrt(between))


# --- a study of many rows


class TwoWay(NamedTuple):
    """An analysis of variance of rows by seeds, without repetitions: the residual
    standard deviation and its degrees of freedom; the share of the variance within a
    row that its seed has (the intraclass correlation), and the p of seeds that are
    alike."""

    deviation: float
    freedom: int
    correlation: float
    p: float


def two_way(values: Any) -> TwoWay:
    """values: rows by seeds, two of each at least."""
    values = np.asarray(values, dtype=float)
    rows, seeds = values.shape
    of_seeds = rows * values.mean(axis=0).var(ddof=1)
    residual = (
        values
        - values.mean(axis=1, keepdims=True)
        - values.mean(axis=0)
        + values.mean()
    )
    freedom = (rows - 1) * (seeds - 1)
    variance = (residual**2).sum() / freedom
    between = (of_seeds - variance) / rows
    p = special.fdtrc(seeds - 1, freedom, of_seeds / variance)
    return TwoWay(
        math.sqrt(variance), freedom, float(between / (between + variance)), float(p)
    )


def outlying(variances: Any, freedoms: Any) -> Any:
    """Which variances are too large to be pooled with the others: by the test of
    Cochran (1941) at 1%, for unequal counts as 't Lam (2010) has it, again until none
    is. freedoms: of each."""
    variances, freedoms = (
        np.asarray(variances, dtype=float),
        np.asarray(freedoms, dtype=float),
    )
    out = ~(freedoms > 0)
    while (~out).sum() > 1:
        rest = (freedoms * ~out).sum() - freedoms
        with np.errstate(invalid="ignore", divide="ignore"):
            others = (
                np.where(out, 0, variances * freedoms).sum() - variances * freedoms
            ) / rest
            p = np.where(
                out, 1, special.fdtrc(freedoms, rest, variances / others) * (~out).sum()
            )
        if p.min() >= OUTLYING:
            break
        out[p.argmin()] = True
    return out & (freedoms > 0)


def holm(p: Any) -> Any:
    """p corrected for their number (Holm 1979); NaN stays NaN, and counts for
    nothing."""
    found = np.asarray(p, dtype=float).copy()
    order = np.argsort(found)[: (~np.isnan(found)).sum()]
    found[order] = np.minimum(
        1, np.maximum.accumulate(found[order] * np.arange(len(order), 0, -1))
    )
    return found


# --- what it costs to decide


def seeds_to_decide(
    deviation: float, margin: float = MARGIN, power: float = 0.8, sides: int = 2
) -> int:
    """Pairs after which two rows that are alike are called near with this power.
    deviation: of differences. sides: 1 for the test against -margin alone. By the
    noncentral t; both sides fail together so rarely that each gets half of the
    failures. At most 20,000."""
    n = np.arange(2, 20_000)
    with np.errstate(divide="ignore"):
        shift = np.sqrt(n) * margin / deviation
    return int(
        2
        + (
            special.nctdtr(n - 1, shift, special.stdtrit(n - 1, LEVEL))
            > (1 - power) / sides
        ).sum()
    )
