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

#: The scores of the seeds of each size of a method, by its trained parameters.
Scores = Mapping[int, Sequence[float]]
#: Where the gains of full fine-tuning differ by more points than this, each objective
#: is also read at half of its own gain.
UNEQUAL_CEILINGS = 5.0
#: Adapters whose counts differ by at most this factor are of one size.
SAME_SIZE = 1.5
#: A bound holds below this p.
SIGNIFICANCE = 0.05
#: An adapter is worse than another if its score is lower by more points than this.
WORSE_MARGIN = 2.0


class Bound(StrEnum):
    """What a ratio is where a curve does not cross the level within its sizes."""

    EXACT = ""
    AT_LEAST = "at least"
    AT_MOST = "at most"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches a level.

    decades: log10 of the trained parameters. side: 0 where that is within the curve's
    sizes; -1 where its smallest size is above the level already, and 1 where its
    largest is below. decades is then that size's."""

    decades: float
    side: int


@dataclass(frozen=True)
class Ratio:
    """log10 of demonstrations' size over reward's, at one level. It may be a bound."""

    decades: float
    bound: Bound


@dataclass(frozen=True)
class Answer:
    """The mean of the methods' ratios, with Student's t over methods.

    bound: what the mean is if some ratios are bounds. counts: how many ratios are
    exact, bounds and unknown. Those that are unknown are not in the mean."""

    mean: Mean
    bound: Bound
    counts: Mapping[Bound, int]


# --- a level, and where a curve reaches it


def common_level(start: float, gains: Sequence[float]) -> float:
    """The score at which objectives are compared: the untrained model's, plus half of
    the smallest gain of full fine-tuning among the objectives."""
    return start + min(gains) / 2


def non_decreasing(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values (least squares) that never decrease: neighbours that do are
    pooled (Barlow et al. 1972)."""
    blocks: list[tuple[float, float, int]] = []
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
    """Where the mean score first reaches a level. The means are made non-decreasing in
    the size, and interpolated between sizes on a logarithmic axis."""
    sizes = sorted(scores)
    means = [float(np.mean(scores[size])) for size in sizes]
    means = non_decreasing(means, [len(scores[size]) for size in sizes])
    decades = [math.log10(size) for size in sizes]
    if means[0] >= level:
        return Crossing(decades[0], -1)
    if means[-1] < level:
        return Crossing(decades[-1], 1)
    above = next(number for number, mean in enumerate(means) if mean >= level)
    share = (level - means[above - 1]) / (means[above] - means[above - 1])
    step = decades[above] - decades[above - 1]
    return Crossing(decades[above - 1] + share * step, 0)


# --- the ratio


def ratio_of(demonstrations: Crossing, reward: Crossing) -> Ratio:
    """How many decades more parameters demonstrations need than reward."""
    bounds = set()
    if demonstrations.side > 0 or reward.side < 0:
        bounds.add(Bound.AT_LEAST)
    if demonstrations.side < 0 or reward.side > 0:
        bounds.add(Bound.AT_MOST)
    decades = demonstrations.decades - reward.decades
    return Ratio(decades, _bound_of_sum(bounds))


def _bound_of_sum(bounds: set[Bound]) -> Bound:
    """Which bound a sum is whose parts are such bounds, or exact."""
    if len(bounds) > 1:
        return Bound.UNKNOWN
    return next(iter(bounds), Bound.EXACT)


def answer(ratios: Sequence[Ratio]) -> Answer:
    """The answer of a study. A bound enters the mean with its value, which makes the
    mean a bound, too."""
    counts = {bound: sum(ratio.bound == bound for ratio in ratios) for bound in Bound}
    known_ratios = [ratio for ratio in ratios if ratio.bound != Bound.UNKNOWN]
    bounds = {ratio.bound for ratio in known_ratios} - {Bound.EXACT}
    mean = mean_of([ratio.decades for ratio in known_ratios])
    return Answer(mean, _bound_of_sum(bounds), counts)


# --- a bound, where demonstrations reach no level of reward


@dataclass(frozen=True)
class SizeBound:
    """A size that was trained by reward, beside the best that demonstrations reach.

    mean: its mean score minus the reference's, in points. p: by Holm's correction over
    the sizes. times: how many times as many parameters the largest model has that was
    trained by demonstrations."""

    parameters: int
    mean: Mean
    p: float
    times: float

    @property
    def holds(self) -> bool:
        """Whether demonstrations need at least `times` as many parameters to reach this
        score."""
        return self.p < SIGNIFICANCE and self.mean.mean > 0


def size_bounds(rewarded: Scores, demonstrated: Scores) -> list[SizeBound]:
    """The bound that each size trained by reward gives. The reference is the size with
    the highest mean among those trained by demonstrations, which favours them."""
    reference = max(demonstrated.values(), key=lambda scores: float(np.mean(scores)))
    sizes = sorted(rewarded)
    means = [difference(rewarded[size], reference) for size in sizes]
    corrected = holm([float(mean.p()) for mean in means])
    largest = max(demonstrated)
    return [
        SizeBound(size, mean, float(p), largest / size)
        for size, mean, p in zip(sizes, means, corrected, strict=True)
    ]


# --- verdicts on single sizes


def difference(left: Sequence[float], right: Sequence[float]) -> Mean:
    """The difference of two means of seeds in points, by Welch's t."""
    first, second = mean_of([*left]), mean_of([*right])
    variances = np.array([first.error**2, second.error**2])
    freedoms = np.array([first.freedom, second.freedom])
    total = float(variances.sum())
    freedom = float(freedoms.sum())
    if total:
        freedom = total**2 / float((variances**2 / freedoms).sum())
    return Mean(float(first.mean - second.mean), math.sqrt(total), freedom)


def counts_of_size(parameters: int, counts: Sequence[int]) -> list[int]:
    """Those of the parameter counts that are of one size with `parameters`."""
    return [
        count
        for count in counts
        if max(count, parameters) / min(count, parameters) <= SAME_SIZE
    ]


def inferiority_verdict(mean: Mean) -> Verdict:
    """The verdict on "X is worse than Y", by the mean of X minus Y: supported where the
    95% interval lies below 0 and the mean below -WORSE_MARGIN, contradicted where X is
    at most WORSE_MARGIN worse (one-sided test at 5%)."""
    if bool(mean.is_below(WORSE_MARGIN)):
        return Verdict.SUPPORTED
    low, _ = mean.interval(0.9)
    return Verdict.CONTRADICTED if low > -WORSE_MARGIN else Verdict.INCONCLUSIVE


def smallest_minus_largest(scores: Scores) -> Mean:
    """The score at the smallest size minus that at the largest."""
    return difference(scores[min(scores)], scores[max(scores)])
