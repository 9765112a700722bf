"""The interval of a median over the seeds of a cell, and what tables call it."""

import math
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

#: The confidence level of intervals.
LEVEL = 0.95
#: How often the bootstrap resamples the seeds.
RESAMPLES = 9999
#: With fewer seeds the interval of a median is no more than their range, and is called
#: so.
INTERVAL_SEEDS = 5


def interval_name(counts: Iterable[int], unit: str = "seeds") -> str:
    """What a table calls its intervals: "95%", or "range of 2 seeds" if its cells have
    fewer seeds than INTERVAL_SEEDS.

    counts: how many seeds each cell has. unit: what is counted, if not seeds."""
    # A cell of one seed has no interval
    counts_with_interval = sorted(count for count in counts if count > 1)
    if not counts_with_interval or counts_with_interval[0] >= INTERVAL_SEEDS:
        return f"{LEVEL:.0%}"
    fewest = counts_with_interval[0]
    highest = counts_with_interval[-1]
    if highest >= INTERVAL_SEEDS:
        return f"{LEVEL:.0%}, or range below {INTERVAL_SEEDS} {unit}"
    if highest > fewest:
        return f"range of {fewest} to {highest} {unit}"
    return f"range of {fewest} {unit}"


@cache
def _middle_ranks(n: int) -> Any:
    """For each bootstrap resample of n values, which of them its two middle values are,
    as indices into the sorted n values: (2, RESAMPLES). Where n is odd both are the
    same. Indices suffice, since the values are in their order."""
    import numpy as np

    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    middles = [(n - 1) // 2, n // 2]
    return np.partition(draws, middles, axis=1)[:, middles].T


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
    # such as a count of parameters: every resample has the same median
    if min(values) == max(values):
        return float(values[0]), float(values[0])
    return _resampled_interval((*map(float, values),), level)


@lru_cache(maxsize=10_000)  # the tables and figures of a report ask for the same ones
def _resampled_interval(values: tuple[float, ...], level: float) -> tuple[float, float]:
    """The bootstrap of `median_interval`. A percentile between two resampled medians is
    interpolated linearly; between two equal ones it is their value."""
    import numpy as np

    low_ranks, high_ranks = _middle_ranks(len(values))
    ordered = np.sort(values)
    percents = 50 * (1 - level), 50 * (1 + level)
    # Interpolating between two infinities gives NaN, which is replaced below
    with np.errstate(invalid="ignore"):
        medians = (ordered[low_ranks] + ordered[high_ranks]) / 2
        lower = np.percentile(medians, percents, method="lower")
        higher = np.percentile(medians, percents, method="higher")
        linear = np.percentile(medians, percents, method="linear")
    low, high = np.where(lower == higher, lower, linear)
    return float(low), float(high)
