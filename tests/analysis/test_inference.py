"""The two rules of judgement: their intervals held to scipy's, their words at their borders, and how often
they err."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats

from analysis.beside import word
from analysis.inference import (
    both_intervals,
    friedman,
    is_above,
    is_near,
    is_positive,
    median_variance,
    outside_by_chance,
    welch_half,
)

DRAWS = 2000
OURS, PAPER = [64.1, 65.6, 60.3, 66.0, 65.2], [65.0, 66.4, 65.9, 67.1, 64.8]


def half_of(*sides, factor=1.0, level=0.95):
    """Half of the interval of a difference (or a mean) of these sides."""
    variances = [factor * statistics.variance(side) / len(side) for side in sides]
    return float(welch_half(variances, [len(side) - 1 for side in sides], level))


# --- a cell beside the paper's


@pytest.mark.parametrize(("n", "expected"), [(1, 1.0), (2, 1.0), (3, 1.346), (5, 1.434)])
def test_the_variance_of_a_median_is_the_published_one(n, expected):
    """Variances of the middle order statistic of 3 and 5 normals: 0.4487 and 0.2868 (Sarhan and Greenberg
    1962)."""
    assert median_variance(n) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("n", [4, 9])
def test_the_variance_of_a_median_is_that_of_drawn_ones(n):
    medians = np.median(np.random.default_rng(n).normal(size=(400_000, n)), axis=1)
    assert median_variance(n) == pytest.approx(n * medians.var(), rel=0.01)  # four standard errors


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_difference_of_means_is_welchs(level):
    expected = scipy.stats.ttest_ind(OURS, PAPER, equal_var=False).confidence_interval(level)
    assert half_of(OURS, PAPER, level=level) == pytest.approx((expected.high - expected.low) / 2)
    low, high = scipy.stats.t.interval(0.95, 4, 0, statistics.stdev(OURS) / math.sqrt(5))
    assert half_of(OURS) == pytest.approx((high - low) / 2)  # where the paper prints no spread


def test_degrees_of_freedom_are_satterthwaites():
    sides = [OURS, PAPER, [70.0, 71.0, 73.0], [70.5, 70.9, 71.7]]
    parts = [statistics.variance(side) / len(side) for side in sides]
    df = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    assert half_of(*sides) == pytest.approx(scipy.stats.t.ppf(0.975, df) * math.sqrt(sum(parts)))


def test_many_intervals_at_once_and_sides_that_do_not_vary():
    variances = [[1.0, 0.0, math.nan, 0.0], [2.0, 3.0, 1.0, 0.0]]
    found = welch_half(variances, np.full((2, 4), 4))
    assert found[0] == pytest.approx(float(welch_half([1.0, 2.0], [4, 4])))
    assert found[1] == pytest.approx(scipy.stats.t.ppf(0.975, 4) * math.sqrt(3))  # the paper's side alone
    assert math.isnan(found[2])
    assert found[3] == 0


@pytest.mark.parametrize(
    ("value", "half", "both", "expected"),
    [
        (0.0, 1.0, True, "reproduced"),
        (1.0, 1.0, True, "reproduced"),  # 0 is the interval's end
        (0.0, 1.001, True, "consistent, wide"),
        (-14.0, 14.0, True, "consistent, wide"),
        (1.001, 1.0, True, "not reproduced"),
        (-1.001, 1.0, True, "not reproduced"),
        (0.2, 0.1, True, "not reproduced"),  # however small
        (0.0, 0.0, True, "reproduced"),
        (0.2, 9.0, False, "inside our interval"),  # never reproduced
        (0.2, 0.1, False, "outside our interval"),
    ],
)
def test_words_at_their_borders(value, half, both, expected):
    assert word(value, half, both, 1.0) == expected


@pytest.mark.parametrize("middle", [np.median, np.mean])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_a_perfect_replication_is_rarely_refuted_and_a_bias_mostly_found(ratio, middle):
    """5 seeds a side, whose standard deviations have this ratio; a bias of four true standard errors."""
    random, factor = np.random.default_rng(0), 1.434 if middle is np.median else 1.0
    sides = random.normal(size=(DRAWS, 5)), random.normal(0, ratio, (DRAWS, 5))
    half = welch_half([factor * of.var(axis=1, ddof=1) / 5 for of in sides], np.full((2, DRAWS), 4))
    apart, error = middle(sides[0], axis=1) - middle(sides[1], axis=1), math.sqrt(factor * (1 + ratio**2) / 5)
    for bias, least, most in ((0.0, 0.01, 0.06), (4 * error, 0.85, 1.0)):
        words = [word(*of, True, 1.0) for of in zip(apart + bias, half, strict=True)]
        assert least <= words.count("not reproduced") / DRAWS <= most


def test_how_often_the_papers_number_is_outside_our_interval_by_chance():
    assert outside_by_chance(5) == pytest.approx(0.121, abs=5e-4)
    random = np.random.default_rng(0)
    ours, paper = random.normal(size=(100_000, 5)), random.normal(size=100_000) / math.sqrt(5)
    half = welch_half([ours.var(axis=1, ddof=1) / 5], np.full((1, 100_000), 4))
    assert outside_by_chance(5) == pytest.approx((np.abs(ours.mean(axis=1) - paper) > half).mean(), abs=0.005)


# --- findings


def test_the_intervals_of_pairs_are_scipys():
    both = list(zip(OURS, PAPER, strict=True))
    for level in (0.9, 0.95):
        paired, unpaired = both_intervals(both, level)
        expected = scipy.stats.ttest_rel(OURS, PAPER).confidence_interval(level)
        assert paired == pytest.approx((expected.low, expected.high))
        expected = scipy.stats.ttest_ind(OURS, PAPER, equal_var=False).confidence_interval(level)
        assert unpaired == pytest.approx((expected.low, expected.high))
    assert both_intervals(both[:1]) == (None, None)
    assert (is_near(both[:1], 100.0), is_above(both[:1]), is_positive([1.0])) == (None, None, None)
    assert is_near([], 1.0) is None
    assert both_intervals([(1.0, 0.5), (math.inf, 0.5)]) == (None, None)
    assert both_intervals([(1.0, 0.5), (math.inf, math.inf)]) == (None, None)


@pytest.mark.parametrize(
    ("differences", "above"),
    [
        ((4.0, 5.0, 6.0), True),  # 5 +- 2.48
        ((2.4, 3.4, 1.4), None),  # 2.4 +- 2.48
        ((-4.0, -5.0, -6.0), False),
        ((1.0, 1.0), True),  # without a spread
        ((0.0, 0.0), None),
    ],
)
def test_above_is_an_interval_beyond_zero(differences, above):
    assert is_positive(differences) is above
    # Against a constant, both tests are the same
    assert is_above([(difference, 0.0) for difference in differences]) is above


@pytest.mark.parametrize(
    ("mean", "near"),
    # Of three pairs that vary by 1, the one-sided bound is 1.686 away: t(0.95, 2 df) = 2.920, over the root
    # of 3.
    [(0.68, None), (0.69, True), (5.0, True), (-2.68, None), (-2.69, False), (-9.0, False)],
)
def test_near_is_a_bound_against_the_margin(mean, near):
    differences = [mean - 1, mean, mean + 1]
    assert is_near([(50 + difference, 50.0) for difference in differences], 1.0) is near
    for answer, side in ((True, "greater"), (False, "less")):
        p = scipy.stats.ttest_1samp(differences, -1.0, alternative=side).pvalue
        assert bool(p < 0.05) is (near is answer)


def test_what_one_of_two_tests_decides_is_undecided():
    """Two points apart by pair, and within the spread of each side; and the other way round."""
    alike = [(level + 2, level) for level in (40.0, 50.0, 60.0, 70.0)]
    assert is_positive([x - y for x, y in alike]) is True
    assert (is_above(alike), is_near(alike, 1.0)) == (None, None)
    # Runs of one seed are opposites: by pair the interval is wider than unpaired
    opposite = [(52.0, 51.0), (53.0, 50.0), (54.0, 49.0)]
    paired, unpaired = both_intervals(opposite)
    assert paired[0] < 0 < unpaired[0]
    assert is_above(opposite) is None


@pytest.mark.parametrize(("pairs", "share"), [(3, 0.15), (5, 0.30), (10, 0.58), (20, 0.89)])
def test_a_finding_errs_rarely_and_decides_more_with_more_pairs(pairs, share):
    """Differences that vary by 3 points, a margin of 1: the shares stand on the page."""
    drawn = np.random.default_rng(1).normal(0, 3 / math.sqrt(2), (DRAWS, pairs, 2))
    # At the margin, where neither word is right
    words = [is_near(row, 1.0) for row in (drawn - [1, 0]).tolist()]
    assert 0.01 <= words.count(True) / DRAWS <= 0.06
    assert 0.01 <= words.count(False) / DRAWS <= 0.06
    decided = sum(is_near(row, 1.0) is False for row in (drawn - [3, 0]).tolist())
    assert decided / DRAWS == pytest.approx(share, abs=0.04)


# --- several rows at once

#: Demsar 2006, table 6: the AUC of four variants of C4.5 on 14 data sets. He ranks the last two of "voting"
#: by more digits than he prints, the third one first.
DEMSAR = """
    0.763 0.768 0.771 0.798   0.599 0.591 0.590 0.569   0.954 0.971 0.968 0.967   0.628 0.661 0.654 0.657
    0.882 0.888 0.886 0.898   0.936 0.931 0.916 0.931   0.661 0.668 0.609 0.685   0.583 0.583 0.563 0.625
    0.775 0.838 0.866 0.875   1.000 1.000 1.000 1.000   0.940 0.962 0.965 0.962   0.619 0.666 0.614 0.669
    0.972 0.981 0.9751 0.975  0.957 0.978 0.946 0.970"""


def test_mean_ranks_and_the_critical_difference_are_the_published_ones():
    found = friedman(np.reshape([float(word) for word in DEMSAR.split()], (14, 4)).T.tolist())
    assert [round(mean, 3) for mean in found.mean] == [3.143, 2.0, 2.893, 1.964]
    assert round(found.critical, 2) == 1.25
    # 9.28 in the paper, without the correction for ties: p = 0.026
    assert 0.01 < found.p < 0.026


def test_rows_that_are_alike_everywhere_have_no_difference():
    found = friedman([[0.5, 0.6]] * 3)
    assert (found.mean, found.p) == ([2.0, 2.0, 2.0], 1.0)
