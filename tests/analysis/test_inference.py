"""The rules of judgement: their intervals held to scipy's and to published examples,
their words at their borders, and how often they err."""

import math
import statistics

import numpy as np
import pytest
import scipy.stats

from analysis.inference import (
    Mean,
    equality_verdict,
    equivalence_verdict,
    fisher_p,
    holm,
    mean_of,
    mean_over_tasks,
    median_variance,
    outlying_variances,
    over_seeds_and_items,
    plain_mean_over_tasks,
    power_over_tasks,
    random_effects,
    seeds_to_decide,
    share_interval,
    superiority_verdict,
    two_way,
    welch_half_width,
)
from analysis.paper_comparison import LARGEST_HALF_WIDTH, verdict_on

pytestmark = pytest.mark.parity

DRAWS = 2000
#: False words of a rule, at most; it is meant to have 5%.
FALSE = 0.07
OURS, PAPER = [64.1, 65.6, 60.3, 66.0, 65.2], [65.0, 66.4, 65.9, 67.1, 64.8]


def half_of(*sides, factor=1.0, level=0.95):
    """Half of the interval of a difference (or a mean) of these sides."""
    variances = [factor * statistics.variance(side) / len(side) for side in sides]
    return float(welch_half_width(variances, [len(side) - 1 for side in sides], level))


# --- a cell beside the paper's


def test_the_variance_of_a_median_is_the_published_one_and_that_of_drawn_ones():
    """Variances of the middle order statistic of 3 and 5 normals: 0.4487 and 0.2868
    (Sarhan and Greenberg 1962)."""
    assert [median_variance(n) for n in (1, 2, 3, 5)] == pytest.approx(
        [1.0, 1.0, 1.346, 1.434], abs=6e-4
    )
    for n in (4, 9):
        medians = np.median(np.random.default_rng(n).normal(size=(400_000, n)), axis=1)
        # four standard errors
        assert median_variance(n) == pytest.approx(n * medians.var(), rel=0.01)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_difference_of_means_is_welchs(level):
    expected = scipy.stats.ttest_ind(
        OURS, PAPER[:4], equal_var=False
    ).confidence_interval(level)
    assert half_of(OURS, PAPER[:4], level=level) == pytest.approx(
        (expected.high - expected.low) / 2
    )
    low, high = scipy.stats.t.interval(
        0.95, 4, 0, statistics.stdev(OURS) / math.sqrt(5)
    )
    # where the paper prints no spread
    assert half_of(OURS) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize(
    ("middle", "reachable", "beyond"), [("median", 0.65, 0.7), ("mean", 0.8, 0.9)]
)
def test_a_wide_spread_of_the_papers_keeps_a_cell_from_reproduced_whatever_ours_is(
    middle, reachable, beyond
):
    """As docs/statistics.md says: of ours any spread and any number of seeds is
    tried."""
    factor = median_variance(5) if middle == "median" else 1.0
    ours, freedoms = np.tile(np.linspace(0, 0.5, 101), 3), np.repeat([4, 9, 1000], 101)
    for spread, never in ((reachable, False), (beyond, True)):
        theirs = np.full(303, factor * spread**2 / 5)
        assert (
            welch_half_width([ours, theirs], [freedoms, np.full(303, 4)]).min()
            > LARGEST_HALF_WIDTH
        ) == never


def test_many_intervals_at_once_and_sides_that_do_not_vary():
    variances = [[1.0, 0.0, math.nan, 0.0], [2.0, 3.0, 1.0, 0.0]]
    found = welch_half_width(variances, np.full((2, 4), 4))
    assert found[0] == pytest.approx(float(welch_half_width([1.0, 2.0], [4, 4])))
    # the paper's side alone
    assert found[1] == pytest.approx(scipy.stats.t.ppf(0.975, 4) * math.sqrt(3))
    assert math.isnan(found[2])
    assert found[3] == 0


@pytest.mark.parametrize(
    ("value", "half", "both", "expected"),
    [
        (0.0, 1.0, True, "reproduced"),
        (1.0, 1.0, True, "reproduced"),  # 0 is the interval's end
        (0.0, 1.001, True, "inconclusive"),
        (-14.0, 14.0, True, "inconclusive"),
        (1.001, 1.0, True, "not reproduced"),
        (-1.001, 1.0, True, "not reproduced"),
        (0.2, 0.1, True, "not reproduced"),  # however small
        (0.0, 0.0, True, "reproduced"),
        (0.2, 9.0, False, "inside our interval"),  # never reproduced
        (0.2, 0.1, False, "outside our interval"),
    ],
)
def test_words_at_their_borders(value, half, both, expected):
    assert verdict_on(value, half, both, 1.0) == expected


@pytest.mark.parametrize("middle", [np.median, np.mean])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_a_perfect_replication_is_rarely_refuted_and_a_bias_mostly_found(ratio, middle):
    """5 seeds a side, whose standard deviations have this ratio; a bias of four true
    standard errors."""
    random, factor = np.random.default_rng(0), 1.434 if middle is np.median else 1.0
    sides = random.normal(size=(DRAWS, 5)), random.normal(0, ratio, (DRAWS, 5))
    half = welch_half_width(
        [factor * of.var(axis=1, ddof=1) / 5 for of in sides], np.full((2, DRAWS), 4)
    )
    apart, error = (
        middle(sides[0], axis=1) - middle(sides[1], axis=1),
        math.sqrt(factor * (1 + ratio**2) / 5),
    )
    for bias, least, most in ((0.0, 0.01, 0.06), (4 * error, 0.85, 1.0)):
        words = [
            verdict_on(*of, True, 1.0) for of in zip(apart + bias, half, strict=True)
        ]
        assert least <= words.count("not reproduced") / DRAWS <= most


# --- pairs of runs of one seed


def test_the_interval_of_pairs_is_scipys_and_needs_two_finite_ones():
    differences = np.subtract(OURS, PAPER)
    for level in (0.9, 0.95):
        expected = scipy.stats.ttest_rel(OURS, PAPER).confidence_interval(level)
        assert mean_of(differences).interval(level) == pytest.approx(
            (expected.low, expected.high)
        )
    assert mean_of(differences).p() == pytest.approx(
        scipy.stats.ttest_rel(OURS, PAPER).pvalue
    )
    for unknown in ([1.0], [0.5, math.inf], [math.inf, math.inf]):
        assert mean_of(unknown).sign() == 0
        assert not mean_of(unknown).is_within(100.0)
    # an interval that ends at 0 is on neither side
    assert mean_of([0.0, 0.0]).sign() == 0
    # NaN: no value
    several = mean_of([[1.0, 2.0, math.nan], [3.0, math.nan, math.nan]])
    assert several.mean.tolist() == [1.5, 3.0]
    assert several.interval()[0][0] == pytest.approx(mean_of([1.0, 2.0]).interval()[0])


@pytest.mark.parametrize(
    ("middle", "equivalent"),
    # Of three pairs that vary by 1, the one-sided bound is 1.686 away: t(0.95, 2 df) =
    # 2.920, over the root of 3.
    [(0.0, True), (0.31, True), (0.32, False), (-0.32, False), (3.0, False)],
)
def test_equivalence_is_two_one_sided_tests_against_the_margin(middle, equivalent):
    differences = [middle - 1, middle, middle + 1]
    mean = mean_of(differences)
    bound = abs(middle) + 2.920 / math.sqrt(3)
    assert bool(mean.is_within(2.0)) is equivalent
    assert mean.equivalence_margin() == pytest.approx(bound, abs=1e-3)
    sides = ((-2.0, "greater"), (2.0, "less"))
    p = [
        scipy.stats.ttest_1samp(differences, limit, alternative=side).pvalue
        for limit, side in sides
    ]
    assert bool(max(p) < 0.05) is equivalent


@pytest.mark.parametrize(
    ("mean", "error", "equivalence", "equality", "superiority"),
    # Student's t with 9 degrees of freedom: 1.833 for 90%, 2.262 for 95%.
    [
        (0.0, 0.54, "supported", "supported", "inconclusive"),
        (0.0, 0.55, "inconclusive", "inconclusive", "inconclusive"),
        (-0.5, 0.2, "supported", "supported", "contradicted"),
        (-1.1, 0.48, "contradicted", "contradicted", "contradicted"),
        (-1.1, 0.49, "inconclusive", "inconclusive", "inconclusive"),
        # below 0, and by less than the margin
        (-0.9, 0.3, "inconclusive", "inconclusive", "contradicted"),
        # better is no contradiction of "as good as"
        (3.0, 0.3, "inconclusive", "contradicted", "supported"),
        (math.nan, math.nan, "inconclusive", "inconclusive", "inconclusive"),
    ],
)
def test_verdicts_at_their_borders(mean, error, equivalence, equality, superiority):
    of_ten = Mean(mean, error, 9)
    assert equivalence_verdict(of_ten) == equivalence
    assert equality_verdict(of_ten) == equality
    assert superiority_verdict(of_ten) == superiority


def test_the_prediction_interval_holds_the_next_value_in_95_percent():
    draws = np.random.default_rng(3).normal(-1, 2, (20_000, 9))
    low, high = mean_of(draws[:, :8]).prediction()
    following = draws[:, 8]
    assert ((low < following) & (following < high)).mean() == pytest.approx(
        0.95, abs=0.005
    )


def drawn(seed, shape, correlation=0.0, deviation=1.5):
    """Differences of two rows whose runs of one seed have this correlation, around
    0."""
    shared = np.array([[1, correlation], [correlation, 1]])
    both = np.random.default_rng(seed).multivariate_normal(
        [0, 0], deviation**2 * shared, shape
    )
    return both[..., 0] - both[..., 1]


@pytest.mark.parametrize("correlation", [0.0, 0.5, -0.4])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_pairs_err_in_5_percent_at_any_correlation(n, correlation):
    differences = drawn(n, (DRAWS, n), correlation)
    for at, wrong in ((0.0, (1, -1)), (-1.0, (1,)), (1.0, (1,))):
        mean = mean_of(differences + at)
        answers = mean.sign() if at == 0 else mean.is_within(1.0)
        assert np.isin(answers, wrong).mean() <= FALSE


@pytest.mark.parametrize(
    ("deviation", "one_side", "seeds"),
    [(1, 14, 19), (1.5, 30, 40), (2, 51, 70), (3, 113, 156)],
)
def test_the_seeds_that_decide_have_the_power_that_is_stated(
    deviation, one_side, seeds
):
    """Rows that are alike; their own standard deviations, of which a difference has the
    root of 2."""
    apart = deviation * math.sqrt(2)
    assert (seeds_to_decide(apart, sides=1), seeds_to_decide(apart)) == (
        one_side,
        seeds,
    )
    found = mean_of(drawn(1, (DRAWS, seeds), deviation=deviation))
    assert found.is_within(1.0).mean() == pytest.approx(0.8, abs=0.03)
    low, _ = mean_of(drawn(2, (DRAWS, one_side), deviation=deviation)).interval(0.9)
    assert (low > -1).mean() == pytest.approx(0.8, abs=0.03)


# --- a finding over its tasks


def test_the_random_effects_mean_is_the_published_one():
    """Kacker 2004's nine laboratories, by R's metafor, rma(y, v, method="PM"); and of
    one variance and no difference between tasks by Hartung and Knapp, method="FE",
    test="knha"."""
    means = np.array([61.0, 61.4, 62.21, 62.3, 62.34, 62.6, 62.7, 62.84, 65.9])
    variances = np.array(
        [0.2025, 1.21, 0.09, 0.2025, 0.3844, 0.5625, 0.0676, 0.0225, 1.8225]
    )
    found = random_effects(means, variances)
    assert found.mean == pytest.approx(62.4076199113286)
    assert found.between_task_sd**2 == pytest.approx(0.705395309224248)
    assert (found.error, found.freedom) == (pytest.approx(0.338030602684471), 8)
    assert random_effects(
        1e3 * means, 1e6 * variances
    ).between_task_sd == pytest.approx(1e3 * found.between_task_sd)
    alike = random_effects([1.0, 1.1, 0.9, math.nan], np.ones(4))  # NaN: no such task
    assert (alike.between_task_sd, alike.mean, alike.freedom) == (
        0,
        pytest.approx(1.0),
        2,
    )
    assert alike.error == pytest.approx(0.1 / math.sqrt(3))  # as of the means alone


def test_variances_are_pooled_over_tasks_without_a_collapsed_run():
    nan = math.nan
    differences = np.array(
        [[1.0, 3.0, nan], [0.0, 2.0, 4.0], [5.0, -25.0, 5.0], [2.0, nan, nan]]
    )
    collapsed = np.zeros_like(differences, dtype=bool)
    collapsed[2, 1] = True
    pooled = (2 + 8) / 3  # squares and degrees of freedom of the first two
    variances = [pooled / 2, pooled / 3, 300 / 3, pooled]
    found, expected = (
        mean_over_tasks(differences, collapsed),
        random_effects([2.0, 2.0, -5.0, 2.0], variances),
    )
    assert (found.mean, found.error) == (
        pytest.approx(expected.mean),
        pytest.approx(expected.error),
    )
    plain = mean_over_tasks(differences, collapsed, weighted=False)
    assert plain.interval() == pytest.approx(mean_of([2.0, 2.0, -5.0, 2.0]).interval())


def simulated(seed, pairs, between, collapses, effect, draws=DRAWS, within=1.7):
    """Differences of findings by draw, task and seed, and which have a collapsed run.

    pairs: how many of each task. collapses: by task, how many of its pairs have a
    collapsed run of LoRA, whose score falls by 30 points.
    """
    random = np.random.default_rng(seed)
    pairs = np.asarray(pairs)[:, None]
    seeds = np.arange(pairs.max())
    tasks = effect + random.normal(0, between, (draws, len(pairs), 1))
    differences = tasks + random.normal(0, within, (draws, len(pairs), len(seeds)))
    collapsed = np.broadcast_to(
        seeds < np.asarray(collapses)[:, None], differences.shape
    )
    differences = np.where(collapsed, differences + 30, differences)
    return np.where(seeds < pairs, differences, np.nan), collapsed


def of_trained_pairs(differences, collapsed):
    return plain_mean_over_tasks(np.where(collapsed, np.nan, differences))


@pytest.mark.parametrize("collapses", [0, 1])
@pytest.mark.parametrize("between", [0.0, 0.7])
@pytest.mark.parametrize("pairs", [(2, 2), (3, 3), (5, 5), (2, 5)])
@pytest.mark.parametrize("tasks", [4, 9])
def test_a_verdict_over_tasks_is_rarely_false(tasks, pairs, between, collapses):
    """No sign where the true mean is 0; not supported where it is at the margin."""
    pairs = np.resize(pairs, tasks)
    collapses = np.where(np.arange(tasks) < 2, collapses, 0)
    seed = 100 * tasks + 10 * pairs.sum()
    mean = of_trained_pairs(*simulated(seed, pairs, between, collapses, 0.0))
    assert (mean.sign() != 0).mean() <= FALSE
    mean = of_trained_pairs(*simulated(seed, pairs, between, collapses, -1.0))
    assert mean.is_within(1.0).mean() <= FALSE


#: The pairs of each task of VeRA and LoRA in runs/records, and the collapsed runs.
PUBLISHED_PAIRS = [5, 20, 20, 5, 20, 3, 1, 3, 5, 5, 5]
PUBLISHED_COLLAPSES = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_the_rule_finds_what_matters_in_the_published_design_and_rarely_errs():
    """20,000 draws of the published pairs, with one collapsed run of LoRA on each of
    two tasks, and tasks that differ by 0.9."""
    signs = {}
    for effect in (0.0, -1.2, -2.0):
        differences, collapsed = simulated(
            1, PUBLISHED_PAIRS, 0.9, PUBLISHED_COLLAPSES, effect, draws=20_000
        )
        signs[effect] = of_trained_pairs(differences, collapsed).sign()
    assert (signs[0.0] != 0).mean() <= 0.055
    assert (signs[-1.2] < 0).mean() >= 0.70
    assert (signs[-2.0] < 0).mean() >= 0.95
    # With the collapsed runs in, the plain mean finds nothing.
    kept = mean_of(mean_of(differences).mean)
    assert (kept.sign() < 0).mean() <= 0.10


@pytest.mark.parametrize("between", [0.9, 1.9])
def test_the_stated_power_is_that_of_the_simulated_pairs(between):
    pairs = [20, 5, 3, 5, 20]
    stated = power_over_tasks(-2.0, between, 1.7, pairs)
    mean = of_trained_pairs(*simulated(2, pairs, between, [0] * 5, -2.0, 20_000))
    assert stated == pytest.approx((mean.sign() < 0).mean(), abs=0.015)


# --- collapsed runs


@pytest.mark.parametrize(("count", "total"), [(0, 87), (2, 87), (3, 3), (1, 2)])
def test_the_interval_of_a_share_is_scipys_exact_one(count, total):
    exact = scipy.stats.binomtest(count, total).proportion_ci(method="exact")
    assert share_interval(count, total) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("table", [(2, 87, 0, 87), (5, 20, 1, 30), (0, 4, 4, 4)])
def test_fishers_p_is_scipys(table):
    x, x_total, y, y_total = table
    expected = scipy.stats.fisher_exact([[x, x_total - x], [y, y_total - y]]).pvalue
    assert fisher_p(*table) == pytest.approx(expected)


# --- seeds and test rows


def answers(random, seeds, items, size=1):
    """Which items two rows have right, seeds by items. Rows, seeds, items and units of
    `size` items differ, and both rows have the same share right in truth."""

    def parts(deviation, *shape):
        return random.normal(0, deviation, shape)

    difficulty = parts(1.0, items) - 1
    sides = []
    for _ in range(2):
        of_units = np.repeat(parts(0.5, items // size), size)
        skill = parts(0.2, seeds, 1) + parts(0.4, seeds, items)
        sides.append(skill + of_units > difficulty)
    return sides


@pytest.mark.parametrize(
    ("seeds", "items", "size"), [(5, 400, 1), (20, 400, 1), (20, 800, 4)]
)
def test_an_interval_over_seeds_and_items_covers_other_seeds_and_items(
    seeds, items, size
):
    """95% of the intervals hold the true difference of 0; those over seeds alone
    hold it far less often."""
    random = np.random.default_rng(seeds + size)
    units = np.repeat(np.arange(items // size), size)
    covered = []
    by_seeds = []
    for _ in range(2500):
        x, y = answers(random, seeds, items, size)
        low, high = over_seeds_and_items(x, y, units).interval()
        covered.append(low <= 0 <= high)
        low, high = mean_of(100 * (x.mean(axis=1) - y.mean(axis=1))).interval()
        by_seeds.append(low <= 0 <= high)
    assert 0.94 <= np.mean(covered) <= 0.96
    assert np.mean(by_seeds) < np.mean(covered)


def test_the_variance_over_seeds_and_items_is_never_below_that_of_either():
    """By hand: seeds that differ in everything, items that differ in nothing."""
    x = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    y = np.zeros_like(x)
    mean = over_seeds_and_items(x, y)
    seeds_alone = mean_of([100.0, 0.0, 100.0])
    assert (mean.mean, mean.error) == pytest.approx(
        (seeds_alone.mean, seeds_alone.error)
    )
    assert mean.freedom == 2
    # Every seed has the same items right: the items decide.
    mean = over_seeds_and_items(x[:2].T, y[:2].T)
    assert mean.freedom == 1


def test_the_variance_over_seeds_and_items_adds_both_and_takes_what_they_share():
    """Against sums written out for a seed and an item at a time."""
    random = np.random.default_rng(5)
    x = random.random((3, 8)) < np.array([[0.2], [0.6], [0.9]])
    y = random.random((3, 8)) < np.linspace(0.1, 0.9, 8)
    d = 100 * (x.astype(float) - y.astype(float))
    seeds = [statistics.mean(d[i]) for i in range(3)]
    items = [statistics.mean(d[:, j]) for j in range(8)]
    middle = statistics.mean(seeds)
    squares = sum(
        (d[i, j] - seeds[i] - items[j] + middle) ** 2
        for i in range(3)
        for j in range(8)
    )
    parts = (
        statistics.variance(seeds) / 3,
        statistics.variance(items) / 8,
        -squares / (2 * 7) / (3 * 8),
    )
    freedom = sum(parts) ** 2 / sum(
        part**2 / of for part, of in zip(parts, (2, 7, 14), strict=True)
    )
    mean = over_seeds_and_items(x, y)
    assert sum(parts) > max(parts)
    assert (mean.mean, mean.error, mean.freedom) == pytest.approx(
        (middle, math.sqrt(sum(parts)), freedom)
    )


def test_items_of_one_unit_count_as_one_item():
    random = np.random.default_rng(0)
    x, y = (random.random((4, 30)) < share for share in (0.8, 0.7))
    alone = over_seeds_and_items(x, y)
    repeated = [np.repeat(side, 3, axis=1) for side in (x, y)]
    together = over_seeds_and_items(*repeated, units=np.repeat(np.arange(30), 3))
    assert (together.mean, together.error, together.freedom) == pytest.approx(
        (alone.mean, alone.error, alone.freedom)
    )
    assert over_seeds_and_items(*repeated).error < alone.error
    with pytest.raises(ValueError, match="a label for each item"):
        over_seeds_and_items(x, y, units=[1, 2])
    with pytest.raises(ValueError, match="two seeds"):
        over_seeds_and_items(x[:1], y[:1])


# --- a study of many rows


def test_rows_by_seeds_are_an_analysis_of_variance_without_repetitions():
    """Rows have the levels 1 and 3, seeds 0, 1 and 2, and a residual of +-0.5."""
    values = np.array([[1.5, 2.0, 2.5], [2.5, 4.0, 5.5]])
    found = two_way(values)
    residual = np.array([[0.5, 0.0, -0.5], [-0.5, 0.0, 0.5]])
    assert (found.freedom, found.deviation) == (
        2,
        pytest.approx(math.sqrt((residual**2).sum() / 2)),
    )
    f = 2 * values.mean(axis=0).var(ddof=1) / 0.5
    assert found.p == pytest.approx(scipy.stats.f.sf(f, 2, 2))
    assert found.correlation == pytest.approx((f - 1) / 2 / ((f - 1) / 2 + 1))


@pytest.mark.parametrize(
    ("rows", "runs", "critical"), [(5, 2, 0.841), (10, 5, 0.331), (20, 3, 0.270)]
)
def test_a_variance_is_not_pooled_from_cochrans_published_values_on(
    rows, runs, critical, monkeypatch
):
    """Of the largest by the sum, at 5% (Cochran 1941)."""
    monkeypatch.setattr("analysis.inference.OUTLIER_LEVEL", 0.05)
    for share, expected in ((critical - 0.001, 0), (critical + 0.001, 1)):
        variances = [1.0] * (rows - 1) + [share / (1 - share) * (rows - 1)]
        # a single run has none
        found = outlying_variances([*variances, math.nan], [runs - 1] * rows + [0])
        assert [*found] == [False] * (rows - 1) + [bool(expected), False]


def test_of_two_far_variances_neither_hides_the_other_and_like_ones_rarely_are_far():
    assert [*outlying_variances([1.0] * 20 + [30.0, 40.0], [4] * 22)] == [
        False
    ] * 20 + [
        True,
        True,
    ]
    draws = np.random.default_rng(0).chisquare(4, size=(DRAWS, 60)) / 4
    assert np.mean(
        [outlying_variances(of, [4] * 60).any() for of in draws]
    ) == pytest.approx(0.01, abs=0.007)


def test_holm_is_by_steps_and_leaves_unknown_ones_out():
    expected = pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.01, 0.04, math.nan, 0.03]).tolist() == expected
    assert holm([0.9, 0.9]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_pooled_variance_with_holm_is_rarely_false_over_a_study(correlation):
    """Twelve rows that are alike, of five seeds, each beside the first."""
    random = np.random.default_rng(5)
    shared = math.sqrt(correlation) * random.normal(size=(DRAWS // 4, 1, 5))
    runs = shared + math.sqrt(1 - correlation) * random.normal(size=(DRAWS // 4, 12, 5))
    false = 0
    for values in runs:
        many = two_way(values)
        error = many.deviation * math.sqrt(2 / 5)
        p = Mean((values[1:] - values[0]).mean(axis=1), error, many.freedom).p()
        false += bool(holm(p).min() < 0.05)
    assert false / len(runs) <= FALSE
