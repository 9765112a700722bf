"""The interval of a median over the seeds of a cell, and its name in a table."""

import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

LEVEL = 0.95
RESAMPLES = 9999
#: Below so many seeds an interval of theirs is called what it is, their range.
INTERVAL_SEEDS = 5


def interval_name(counts: Iterable[int], unit: str = "seeds") -> str:
    """What a table calls intervals over so many seeds: "95%", below INTERVAL_SEEDS
    "range of 2 seeds"."""
    with_spread = sorted(count for count in counts if count > 1)
    if not with_spread or with_spread[0] >= INTERVAL_SEEDS:
        return f"{LEVEL:.0%}"
    fewest = with_spread[0]
    highest = with_spread[-1]
    if highest >= INTERVAL_SEEDS:
        return f"{LEVEL:.0%}, or range below {INTERVAL_SEEDS} {unit}"
    if highest > fewest:
        return f"range of {fewest} to {highest} {unit}"
    return f"range of {fewest} {unit}"


@cache
def _middle_places(n: int) -> Any:
    """Of each resample of n values, the places of its two middle values among all n in
    order (twice the same of an odd number): two rows of RESAMPLES."""
    import numpy as np

    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    two_middles = [n // 2 - (n + 1) % 2, n // 2]
    return np.partition(draws, two_middles, axis=1)[:, two_middles].T


def median_interval(
    values: Sequence[float], level: float = LEVEL
) -> tuple[float, float] | None:
    """Percentile bootstrap of the median (Efron and Tibshirani 1993, chapter 13); None
    for a single value.

    Resamples are drawn of the values in order, so the interval does not depend on the
    order of seeds, and every cell of n seeds has the same draws. They are those of
    scipy.stats.bootstrap, whose own interval is not a number where a value is infinite,
    as the perplexity of a diverged run is."""
    if len(values) < 2:
        return None
    # such as the difference of two diverged runs
    if any(math.isnan(value) for value in values):
        return math.nan, math.nan
    # such as a count of parameters: every resample says the same
    if min(values) == max(values):
        return float(values[0]), float(values[0])
    return _resampled_interval((*map(float, values),), level)


@lru_cache(maxsize=10_000)  # the tables and figures of a report ask for the same ones
def _resampled_interval(values: tuple[float, ...], level: float) -> tuple[float, float]:
    import numpy as np

    low_places, high_places = _middle_places(len(values))
    ordered = np.sort(values)
    percents = 50 * (1 - level), 50 * (1 + level)
    # between two infinities there is nothing to interpolate
    with np.errstate(invalid="ignore"):
        medians = (ordered[low_places] + ordered[high_places]) / 2
        lower = np.percentile(medians, percents, method="lower")
        higher = np.percentile(medians, percents, method="higher")
        linear = np.percentile(medians, percents, method="linear")
    low, high = np.where(lower == higher, lower, linear)
    return float(low), float(high)
