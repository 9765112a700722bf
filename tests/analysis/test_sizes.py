"""The ratio of sizes, and how often its interval covers the true one."""

import math

import numpy as np
import pytest
import scipy.stats

from analysis.inference import Mean, Verdict
from analysis.sizes import (
    Bound,
    Crossing,
    Ratio,
    answer,
    common_level,
    counts_of_size,
    crossing,
    difference_of_means,
    inferiority_verdict,
    non_decreasing,
    ratio_of,
    size_bounds,
    smallest_minus_largest,
)

pytestmark = pytest.mark.properties


def test_a_curve_crosses_between_its_sizes_on_a_logarithmic_axis():
    scores = {10: [9.0, 11.0], 1000: [20.0, 20.0], 100_000: [40.0]}
    assert crossing(scores, 15) == Crossing(2.0, 0)
    assert crossing(scores, 30) == Crossing(4.0, 0)
    assert crossing(scores, 10) == Crossing(1.0, -1)
    assert crossing(scores, 41) == Crossing(5.0, 1)


def test_a_larger_size_with_a_lower_score_is_pooled_with_the_one_before():
    assert non_decreasing([1, 5, 3, 9], [1, 1, 1, 1]) == [1, 4, 4, 9]
    assert non_decreasing([6, 3], [1, 2]) == [4, 4]
    assert non_decreasing([3, 2, 1], [1, 1, 1]) == [2, 2, 2]
    # without pooling it would already cross between the first two
    scores = {10: [10.0], 100: [22.0], 1000: [10.0], 10_000: [30.0]}
    assert crossing(scores, 20).decades == pytest.approx(3 + 4 / 14)


@pytest.mark.parametrize(
    ("demonstrations", "reward", "bound"),
    [
        (0, 0, Bound.EXACT),
        (1, 0, Bound.AT_LEAST),
        (0, -1, Bound.AT_LEAST),
        (1, -1, Bound.AT_LEAST),
        (-1, 0, Bound.AT_MOST),
        (0, 1, Bound.AT_MOST),
        (1, 1, Bound.UNKNOWN),
        (-1, -1, Bound.UNKNOWN),
    ],
)
def test_a_curve_that_does_not_cross_makes_the_ratio_a_bound(
    demonstrations, reward, bound
):
    ratio = ratio_of(Crossing(4.0, demonstrations), Crossing(2.5, reward))
    assert ratio == Ratio(1.5, bound)


def test_bounds_of_one_side_make_the_mean_one_and_unknown_ratios_are_not_in_it():
    exact, least = Ratio(1.0, Bound.EXACT), Ratio(2.0, Bound.AT_LEAST)
    most, unknown = Ratio(0.5, Bound.AT_MOST), Ratio(9.0, Bound.UNKNOWN)
    found = answer([exact, exact, least, unknown])
    assert found.mean.mean == pytest.approx(4 / 3)
    assert found.bound == Bound.AT_LEAST
    assert [found.counts[bound] for bound in Bound] == [2, 1, 0, 1]
    assert answer([exact, exact]).bound == Bound.EXACT
    assert answer([exact, least, most]).bound == Bound.UNKNOWN


def test_the_level_is_half_of_the_smaller_gain():
    assert common_level(9.0, [40.0, 30.0]) == 24.0


def test_a_difference_is_welchs():
    found = difference_of_means([1.0, 2.0, 3.0], [2.0, 6.0])
    assert found.mean == -2
    assert found.error == pytest.approx(math.sqrt(1 / 3 + 4))
    assert found.freedom == pytest.approx((13 / 3) ** 2 / ((1 / 9) / 2 + 16))
    assert smallest_minus_largest({10: [1.0, 3.0], 1000: [7.0, 9.0]}).mean == -6


def test_worse_is_by_more_than_the_margin_and_not_worse_by_less():
    assert inferiority_verdict(Mean(-5.0, 1.0, 8)) == Verdict.SUPPORTED
    assert inferiority_verdict(Mean(-1.5, 0.1, 8)) == Verdict.CONTRADICTED
    assert inferiority_verdict(Mean(3.0, 1.0, 8)) == Verdict.CONTRADICTED
    assert inferiority_verdict(Mean(-3.0, 2.0, 8)) == Verdict.INCONCLUSIVE
    assert counts_of_size(1000, [660, 670, 1490, 1510]) == [670, 1490]


# --- simulated studies

START, GAIN = 9.0, 40.0
#: The standard deviation of a run's score, and that of the methods' true ratios.
RUN, METHODS = 3.0, 0.38
SIZES = (10, 100, 1000, 10_000, 100_000)


def simulated_scores(middle, generator, seeds=5):
    """A method's scores, which rise over about two decades around its middle."""
    scores = {}
    for size in SIZES:
        mean = START + GAIN / (1 + math.exp(-3 * (math.log10(size) - middle)))
        scores[size] = mean + RUN * generator.normal(size=seeds)
    return scores


def simulated_study(true_ratio, generator, methods=5):
    """The curves of each method: by demonstrations, and by reward."""
    study = []
    for _ in range(methods):
        middle = generator.uniform(1.8, 2.6)
        own_ratio = generator.normal(true_ratio, METHODS)
        by_demonstrations = simulated_scores(middle + own_ratio, generator)
        study.append((by_demonstrations, simulated_scores(middle, generator)))
    return study


def ratios_of(study):
    level = common_level(START, [GAIN, GAIN])
    ratios = []
    for by_demonstrations, by_reward in study:
        sizes = crossing(by_demonstrations, level), crossing(by_reward, level)
        ratios.append(ratio_of(*sizes))
    return ratios


def test_the_interval_over_methods_covers_the_true_ratio():
    generator = np.random.default_rng(37)
    covered, halves, exact = [], [], []
    for _ in range(2000):
        true_ratio = generator.uniform(0.2, 1.2)
        found = answer(ratios_of(simulated_study(true_ratio, generator)))
        low, high = found.mean.interval()
        covered.append(low <= true_ratio <= high)
        halves.append((high - low) / 2)
        exact.append(found.counts[Bound.EXACT])
    assert 0.94 <= np.mean(covered) <= 0.955
    assert 0.42 <= np.mean(halves) <= 0.52
    assert np.mean(exact) > 4.9


def test_an_interval_over_seeds_alone_misses_the_true_ratio():
    """Each cell's seeds are drawn again, and the methods are the same."""
    generator = np.random.default_rng(38)
    covered = []
    for _ in range(60):
        true_ratio = generator.uniform(0.2, 1.2)
        study = simulated_study(true_ratio, generator)
        means = []
        for _ in range(40):
            resampled = [
                tuple(drawn_again(curve, generator) for curve in curves)
                for curves in study
            ]
            means.append(answer(ratios_of(resampled)).mean.mean)
        low, high = np.quantile(means, [0.025, 0.975])
        covered.append(low <= true_ratio <= high)
    assert np.mean(covered) < 0.8


def drawn_again(curve, generator):
    return {size: generator.choice(seeds, len(seeds)) for size, seeds in curve.items()}


def test_a_size_that_beats_all_demonstrations_bounds_the_ratio():
    rewarded = {10: [20.0, 22, 18, 20, 20], 1000: [40.0, 44, 42, 38, 41]}
    demonstrated = {1000: [20.0, 24, 22, 21, 23], 100_000: [18.0, 19, 21, 17, 20]}
    small, large = size_bounds(rewarded, demonstrated)
    # The reference is the better of the demonstrations, not the larger model.
    assert small.mean.mean == pytest.approx(-2)
    assert large.mean.mean == pytest.approx(19)
    assert [small.holds, large.holds] == [False, True]
    assert [small.times, large.times] == [10_000, 100]
    # Welch's t as scipy has it, times Holm's factors of two and one.
    reference = demonstrated[1000]
    p = [
        scipy.stats.ttest_ind(scores, reference, equal_var=False).pvalue
        for scores in rewarded.values()
    ]
    assert [small.p, large.p] == pytest.approx([p[0], 2 * p[1]])


def test_a_size_that_is_below_demonstrations_gives_no_bound():
    rewarded = {10: [2.0, 2.1, 1.9]}
    demonstrated = {100: [20.0, 20.1, 19.9]}
    (bound,) = size_bounds(rewarded, demonstrated)
    assert bound.p < 1e-3
    assert not bound.holds
