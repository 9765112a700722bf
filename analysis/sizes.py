"""How small an adapter may be: the ratio of trained parameters at which demonstrations
reach the score that reward reaches, over methods, and verdicts on single sizes.

These are pure functions on scores. The simulation in tests/analysis/test_sizes.py
shows how often the interval covers the true ratio."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from analysis.inference import Mean, Verdict, holm, mean_of

#: The scores of a method's seeds at each size, by the number of trained parameters.
Scores = Mapping[int, Sequence[float]]
#: Adapters whose counts differ by at most this factor are of one size.
SAME_SIZE = 1.5
#: The p below which a `SizeBound` holds.
SIGNIFICANCE = 0.05
#: An adapter is worse than another if its score is lower by more points than this.
WORSE_MARGIN = 2.0


class Bound(StrEnum):
    """What a ratio of sizes says about the true one. It is a bound where a curve does not
    cross the level within its sizes."""

    EXACT = ""
    AT_LEAST = "at least"
    AT_MOST = "at most"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Crossing:
    """Where a curve of scores by size reaches a level.

    decades: log10 of the trained parameters there. side: 0 if the curve reaches the level
    within its sizes. -1: its smallest size has reached it already; 1: its largest has
    not. decades is then that of the smallest or largest size."""

    decades: float
    side: int


@dataclass(frozen=True)
class Ratio:
    """How many times as many parameters demonstrations need as reward to reach one level.

    decades: log10 of that ratio. bound: whether the true ratio is this one, at least or
    at most this one, or unknown."""

    decades: float
    bound: Bound


@dataclass(frozen=True)
class Answer:
    """The mean of the methods' ratios in decades, with Student's t over methods. Unknown
    ratios are not in the mean.

    bound: whether the mean is one, because some ratios are. counts: how many ratios have
    each `Bound`."""

    mean: Mean
    bound: Bound
    counts: Mapping[Bound, int]


# --- a level, and where a curve reaches it


def common_level(start: float, gains: Sequence[float]) -> float:
    """The score at which objectives are compared: half of the way from the untrained
    model's score to what full fine-tuning reaches by the objective that gains least.
    start: the untrained model's score. gains: of full fine-tuning by each objective."""
    return start + min(gains) / 2


def non_decreasing(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values (least squares, by these weights) that never decrease:
    neighbours that do are replaced by their weighted mean (Barlow et al. 1972)."""
    blocks: list[tuple[float, float, int]] = []  # value, weight, how many have it
    for value, weight in zip(values, weights, strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            earlier, earlier_weight, earlier_count = blocks.pop()
            total = earlier_weight + block[1]
            pooled = (earlier * earlier_weight + block[0] * block[1]) / total
            block = (pooled, total, earlier_count + block[2])
        blocks.append(block)
    fitted = []
    for value, _, count in blocks:
        fitted += [value] * count
    return fitted


def crossing(scores: Scores, level: float) -> Crossing:
    """Where the mean score of a method first reaches a level. The means are made
    non-decreasing in the size, and interpolated linearly in log10 of the size."""
    sizes = sorted(scores)
    means = [float(np.mean(scores[size])) for size in sizes]
    means = non_decreasing(means, [len(scores[size]) for size in sizes])
    decades = [math.log10(size) for size in sizes]
    if means[0] >= level:
        return Crossing(decades[0], -1)
    if means[-1] < level:
        return Crossing(decades[-1], 1)
    above = next(index for index, mean in enumerate(means) if mean >= level)
    below = above - 1
    share = (level - means[below]) / (means[above] - means[below])
    step = decades[above] - decades[below]
    return Crossing(decades[below] + share * step, 0)


# --- the ratio


def ratio_of(demonstrations: Crossing, reward: Crossing) -> Ratio:
    """The ratio of two crossings of one level. It is a bound if one of them is outside of
    its curve, and unknown if both are and contradict each other."""
    bounds = set()
    if demonstrations.side > 0 or reward.side < 0:
        bounds.add(Bound.AT_LEAST)
    if demonstrations.side < 0 or reward.side > 0:
        bounds.add(Bound.AT_MOST)
    decades = demonstrations.decades - reward.decades
    return Ratio(decades, _bound_of_sum(bounds))


def _bound_of_sum(bounds: set[Bound]) -> Bound:
    """Which bound a sum is whose parts are such bounds, or exact: parts that bound it
    from both sides leave it unknown."""
    if len(bounds) > 1:
        return Bound.UNKNOWN
    return next(iter(bounds), Bound.EXACT)


def answer(ratios: Sequence[Ratio]) -> Answer:
    """The answer of a study. ratios: of its methods. One that is a bound enters the mean
    with its value, which makes the mean a bound, too."""
    counts = {bound: sum(ratio.bound == bound for ratio in ratios) for bound in Bound}
    known_ratios = [ratio for ratio in ratios if ratio.bound != Bound.UNKNOWN]
    bounds = {ratio.bound for ratio in known_ratios} - {Bound.EXACT}
    mean = mean_of([ratio.decades for ratio in known_ratios])
    return Answer(mean, _bound_of_sum(bounds), counts)


# --- a bound, where demonstrations reach no level of reward


@dataclass(frozen=True)
class SizeBound:
    """A size that was trained by reward, compared with the best that demonstrations reach
    at any size: the reference of `size_bounds`.

    mean: its mean score minus the reference's, in points. p: of that difference, by
    Holm's correction over the sizes. times: the largest size that was trained by
    demonstrations, divided by this one."""

    parameters: int
    mean: Mean
    p: float
    times: float

    @property
    def holds(self) -> bool:
        """Whether this size scores above the reference beyond chance, so that demonstrations
        need at least `times` as many parameters to reach its score."""
        return self.p < SIGNIFICANCE and self.mean.mean > 0


def size_bounds(rewarded: Scores, demonstrated: Scores) -> list[SizeBound]:
    """The bound that each size trained by reward gives, from the smallest size on. The
    reference is the size with the highest mean among those trained by demonstrations,
    which favours demonstrations."""
    reference = max(demonstrated.values(), key=lambda scores: float(np.mean(scores)))
    sizes = sorted(rewarded)
    means = [difference_of_means(rewarded[size], reference) for size in sizes]
    corrected = holm([float(mean.p()) for mean in means])
    largest = max(demonstrated)
    return [
        SizeBound(size, mean, float(p), largest / size)
        for size, mean, p in zip(sizes, means, corrected, strict=True)
    ]


# --- verdicts on single sizes


def difference_of_means(left: Sequence[float], right: Sequence[float]) -> Mean:
    """The mean of one sample of scores minus that of another, in points, with Welch's
    error and degrees of freedom."""
    first, second = mean_of([*left]), mean_of([*right])
    variances = np.array([first.error**2, second.error**2])
    freedoms = np.array([first.freedom, second.freedom])
    total = float(variances.sum())
    freedom = float(freedoms.sum())
    if total:
        freedom = total**2 / float((variances**2 / freedoms).sum())
    return Mean(float(first.mean - second.mean), math.sqrt(total), freedom)


def counts_of_size(parameters: int, counts: Sequence[int]) -> list[int]:
    """Those of the parameter counts that differ from `parameters` by at most the factor
    SAME_SIZE."""
    return [
        count
        for count in counts
        if max(count, parameters) / min(count, parameters) <= SAME_SIZE
    ]


def inferiority_verdict(mean: Mean) -> Verdict:
    """The verdict on "X is worse than Y". mean: of X minus Y. Supported if the 95%
    interval lies below 0 and the mean below -WORSE_MARGIN; contradicted if a one-sided
    test at 5% shows that X is at most WORSE_MARGIN worse."""
    if bool(mean.is_below(WORSE_MARGIN)):
        return Verdict.SUPPORTED
    low, _ = mean.interval(0.9)
    return Verdict.CONTRADICTED if low > -WORSE_MARGIN else Verdict.INCONCLUSIVE


def smallest_minus_largest(scores: Scores) -> Mean:
    """The mean score at the smallest size minus that at the largest."""
    return difference_of_means(scores[min(scores)], scores[max(scores)])
