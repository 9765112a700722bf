"""The bound that a size trained by reward gives."""

import math

import pytest
import scipy.stats

from analysis.sizes import difference_of_means, size_bounds

pytestmark = pytest.mark.properties


def test_a_difference_is_welchs():
    found = difference_of_means([1.0, 2.0, 3.0], [2.0, 6.0])
    assert found.mean == -2
    assert found.error == pytest.approx(math.sqrt(1 / 3 + 4))
    assert found.freedom == pytest.approx((13 / 3) ** 2 / ((1 / 9) / 2 + 16))


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
