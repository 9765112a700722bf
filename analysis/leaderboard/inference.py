"""Two questions about the order of two rows, as pure functions.

(a) Would a re-run with the same seed on these questions keep the order? Its variance is
that of runs, estimated from rows that were run in several environments.
(b) Would other questions of this kind keep the order? Its variance is the binomial's,
which already holds sampled answers and answers that flip.

The two variances are never added up, because that of (b) contains the noise of (a). For
each question, all pairs of a set are one family of tests, with Holm's correction."""

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.inference import holm

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

#: A pair is decided at this level, over the whole family.
ALPHA = 0.05
#: Rows above this score, in points, and the others have separate re-run variances. Rows
#: near 0 hardly vary, and some weak rows vary by many points.
UPPER_SCORE = 40.0


@dataclass(frozen=True)
class Variance:
    """A variance in squared points, its degrees of freedom, and how many rows are behind
    it."""

    value: float
    freedom: int
    rows: int


def rerun_variance(results: pd.DataFrame) -> Variance | None:
    """The variance of one run, from results of rows that were run in several
    environments.

    It is the residual variance of score = row + environment, by least squares. So what
    all rows of an environment share, such as a change of software, is no part of it. Rows
    whose settings changed count as different rows.

    Args:
        results: columns row, settings, environment, score.

    Returns:
        The variance; None where no two environments share enough rows."""
    row_names = results.row + " " + results.settings  # settings: a hash
    is_repeated = row_names.groupby(row_names).transform("size") > 1
    repeated = results[is_repeated]
    if repeated.empty:
        return None
    rows = pd.get_dummies(row_names[is_repeated], dtype=float)
    environments = pd.get_dummies(repeated.environment, dtype=float)
    design = np.hstack([rows.to_numpy(), environments.to_numpy()])
    scores = repeated.score.to_numpy(dtype=float)
    solution, _, rank, _ = np.linalg.lstsq(design, scores, rcond=None)
    freedom = len(scores) - int(rank)
    if freedom < 1:
        return None
    residuals = scores - design @ solution
    return Variance(float(residuals @ residuals) / freedom, freedom, rows.shape[1])


def rerun_variances(results: pd.DataFrame) -> dict[str, Variance | None]:
    """The re-run variance of rows above UPPER_SCORE ("upper") and of the others
    ("lower"); None where it is unknown. The mean of a row's scores decides in which of
    the two it is."""
    means = results.groupby(["row", "settings"]).score.transform("mean")
    upper = means > UPPER_SCORE
    return {
        "upper": rerun_variance(results[upper]),
        "lower": rerun_variance(results[~upper]),
    }


def rerun_p(scores: Floats, variances: dict[str, Variance | None]) -> Floats:
    """Question (a): p of every pair of rows, in the order of `pair_indices`.

    By Student's t: the difference of two runs has the sum of their variances. For two
    rows of different groups it has Satterthwaite's degrees of freedom. NaN where a
    variance is unknown.

    Args:
        scores: of each row, in points.
        variances: those of `rerun_variances`, by "upper" and "lower"."""
    unknown = Variance(np.nan, 1, 0)  # makes p NaN
    groups = np.where(scores > UPPER_SCORE, "upper", "lower")
    row_variances = [variances[group] or unknown for group in groups]
    variance = np.array([row.value for row in row_variances])
    freedom = np.array([row.freedom for row in row_variances], dtype=float)
    first, second = pair_indices(len(scores))
    total = variance[first] + variance[second]
    ratio = variance**2 / freedom
    with np.errstate(divide="ignore", invalid="ignore"):
        satterthwaite = total**2 / (ratio[first] + ratio[second])
        # two rows of a group share one estimate of the variance, and its freedom
        same_group = groups[first] == groups[second]
        pair_freedom = np.where(same_group, freedom[first], satterthwaite)
        t = (scores[first] - scores[second]) / np.sqrt(total)
    return np.asarray(2 * special.stdtr(pair_freedom, -np.abs(t)))


def question_p(correct: Floats, questions: int, correlation: float = 0.0) -> Floats:
    """Question (b): p of every pair of rows, in the order of `pair_indices`, by the
    two-sample binomial with the share pooled over the pair, and the normal distribution.

    Args:
        correct: how many questions each row answered correctly.
        questions: how many there are.
        correlation: between two rows' answers to one question. All rows answered the
            same questions, so 0 gives an upper bound on the variance of a difference
            wherever rows tend to solve the same questions."""
    first, second = pair_indices(len(correct))
    shares = correct / questions
    pooled = (shares[first] + shares[second]) / 2
    variance = 2 * pooled * (1 - pooled) / questions * (1 - correlation)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(shares[first] - shares[second]) / np.sqrt(variance)
    # two rows that answered no question, or all of them, are equal: 0 / 0 becomes 0
    return np.asarray(2 * special.ndtr(-np.nan_to_num(z, nan=0.0)))


def pair_indices(rows: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The indices of the first and of the second row of every pair: (0, 1), (0, 2), ...
    (1, 2), ..."""
    first, second = np.triu_indices(rows, k=1)
    return first, second


def decided_pairs(p: Floats) -> Booleans:
    """Which pairs are decided: those with p up to ALPHA after Holm's correction over all
    pairs."""
    return np.asarray(holm(p) <= ALPHA)


# --- the compact letter display


def letter_groups(rows: int, decided: Booleans) -> list[str]:
    """The letters of each row: two rows share one if and only if their pair is not
    decided (Piepho 2004, insert and absorb).

    Args:
        rows: their number, the best one first.
        decided: of every pair, in the order of `pair_indices`."""
    groups = [frozenset(range(rows))]
    first, second = pair_indices(rows)
    for left, right in zip(first[decided], second[decided], strict=True):
        groups = split_groups(groups, int(left), int(right))
    groups.sort(key=sorted)  # "a" is the group of the best row
    names = [letter_name(index) for index in range(len(groups))]
    letters = []
    for row in range(rows):
        shared = [
            name for name, group in zip(names, groups, strict=True) if row in group
        ]
        letters.append("".join(shared))
    return letters


def split_groups(
    groups: Sequence[frozenset[int]], left: int, right: int
) -> list[frozenset[int]]:
    """The groups after a pair of rows is decided: rows that share a group are not decided.
    A group with both rows is replaced by two: one without the left row, and one without
    the right. A group that is part of another one is absorbed by it."""
    kept_groups = [group for group in groups if not {left, right} <= group]
    halves = list[frozenset[int]]()
    for group in groups:
        if {left, right} <= group:
            halves += [group - {left}, group - {right}]
    for half in halves:
        if not any(half <= group for group in kept_groups):
            kept_groups = [group for group in kept_groups if not group < half]
            kept_groups.append(half)
    return kept_groups


def letter_name(index: int) -> str:
    """The letter of a group: a to z, A to Z, then numbers in brackets from (53) on."""
    letters = string.ascii_letters
    return letters[index] if index < len(letters) else f"({index + 1})"


# --- intervals


def rerun_half_width(
    scores: Floats, variances: dict[str, Variance | None], level: float
) -> Floats:
    """Half the width of each row's interval over re-runs, in points; NaN where the
    variance is unknown. scores, variances: as in `rerun_p`."""
    half_widths = []
    for score in scores:
        variance = variances["upper" if score > UPPER_SCORE else "lower"]
        if variance is None:
            half_widths.append(np.nan)
        else:
            quantile = special.stdtrit(variance.freedom, (1 + level) / 2)
            half_widths.append(float(quantile * np.sqrt(variance.value)))
    return np.array(half_widths)


def wilson_interval(
    correct: Floats, questions: int, level: float
) -> tuple[Floats, Floats]:
    """Both ends of each row's interval over questions, in points (Wilson 1927). correct,
    questions: as in `question_p`."""
    z = float(special.ndtri((1 + level) / 2))
    share = correct / questions
    centre = share + z**2 / (2 * questions)
    spread = np.sqrt(share * (1 - share) / questions + (z / (2 * questions)) ** 2)
    scale = 100 / (1 + z**2 / questions)
    return scale * (centre - z * spread), scale * (centre + z * spread)


def mean_interval(differences: Floats, level: float) -> tuple[float, float, float]:
    """The mean and both ends of its interval, by Student's t."""
    count = len(differences)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / np.sqrt(count)
    half = float(special.stdtrit(count - 1, (1 + level) / 2)) * error
    return mean, mean - half, mean + half


# --- how many seeds would settle it


def detectable_difference(
    seed_sd: float, seeds: int, rows: int, power: float = 0.8
) -> float:
    """The smallest difference of two rows' means, in points, that is found with this
    power among all pairs of the rows.

    Student's t with the variance pooled over the rows, at the level that Holm's
    correction starts with: ALPHA over the number of pairs.

    Args:
        seed_sd: the standard deviation of a row's score over seeds, in points.
        seeds: how many seeds each row has.
        rows: how many rows are compared.
        power: how often the difference is found."""
    freedom = rows * (seeds - 1)
    pairs = rows * (rows - 1) / 2
    critical = special.stdtrit(freedom, 1 - ALPHA / pairs / 2)
    # We bisect for the difference, in standard errors, that is found with this power.
    low, high = 0.0, 100.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        # the power by the noncentral t; a significant difference of the wrong sign has a
        # probability below 1e-9
        if 1 - special.nctdtr(freedom, middle, critical) < power:
            low = middle
        else:
            high = middle
    standard_error = seed_sd * float(np.sqrt(2 / seeds))
    return high * standard_error
