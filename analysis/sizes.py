"""What a small adapter's score by reward says about demonstrations: how many times as
many parameters they need at least. These are pure functions on scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.inference import Mean, holm, mean_of

#: The scores of a method's seeds at each size, by the number of trained parameters.
Scores = Mapping[int, Sequence[float]]
#: The p below which a `SizeBound` holds.
SIGNIFICANCE = 0.05


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


def difference_of_means(left: Sequence[float], right: Sequence[float]) -> Mean:
    """The mean of one sample of scores minus that of another, in points, with Welch's
    error and degrees of freedom."""
    first, second = mean_of([*left]), mean_of([*right])
    variances = np.array([first.error**2, second.error**2])
    freedoms = np.array([first.freedom, second.freedom])
    total = float(variances.sum())
    freedom = float(freedoms.sum())
    if total:  # Welch's formula is 0 / 0 where neither sample varies
        freedom = total**2 / float((variances**2 / freedoms).sum())
    return Mean(float(first.mean - second.mean), math.sqrt(total), freedom)
