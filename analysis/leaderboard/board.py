"""A set of results with what we conclude from it: letters, intervals and decided pairs
for both questions (inference.py asks them); and the shift between two sets."""

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.leaderboard.inference import (
    Variance,
    decided_pairs,
    detectable_difference,
    letter_groups,
    mean_interval,
    pair_indices,
    question_p,
    rerun_half_width,
    rerun_p,
    rerun_variances,
    wilson_interval,
)
from analysis.leaderboard.reader import QUESTIONS
from runs.record.intervals import LEVEL

#: The correlation that we assume between two rows' answers to a question, to see how much
#: question (b) depends on it.
CORRELATION = 0.5
#: Rows above this score are the upper part of the board, which people choose from.
TOP_SCORE = 44.0
#: Standard deviations of a seed, in points, that the power table assumes.
SEED_SDS = (0.5, 1.0, 1.5)
#: The lines of the power table.
SEED_COUNTS = (3, 5, 10, 20, 40)
#: How many rows the power table covers: the best ones.
TOP_ROWS = 10


@dataclass(frozen=True)
class DecidedPairs:
    """The answer to a question: which pairs of a set's rows are decided.

    label: the question's name in tables. decided: whether each pair is, in the order of
    `pair_indices`. is_known: whether any variance behind the answer is known; if none
    is, no pair can be decided, and tables show no count.
    """

    label: str
    decided: NDArray[np.bool_]
    is_known: bool = True


@dataclass(frozen=True)
class Board:
    """One set with the answers to both questions.

    Attributes:
        name: of the set.
        rows: from the best to the worst, with the reader's columns and these:
            rerun_letters and question_letters (`letter_groups`), rerun_half (half of
            the interval over re-runs), low and high (the interval over questions).
        decoding: how the set's answers were decoded, sampled or greedy.
        variances: of a re-run (`rerun_variances`), estimated from the sets with this
            way of decoding.
        variances_of_all: the same, estimated from all sets.
        answers: the decided pairs of each question: "rerun", by `variances`;
            "rerun_any_decoding", by `variances_of_all`; "questions"; and
            "questions_correlated", with CORRELATION.
    """

    name: str
    rows: pd.DataFrame
    decoding: str
    variances: dict[str, Variance | None]
    variances_of_all: dict[str, Variance | None]
    answers: dict[str, DecidedPairs]

    @property
    def label(self) -> str:
        """The month of the newest run, with the commit: "May 2025 (0123abc)". A set whose
        folder is not called DATE-COMMIT has its own name instead."""
        newest = pd.Timestamp(self.rows.date.max())
        commit = re.fullmatch(r"\d{4}-\d\d-\d\d-([0-9a-f]{7,40})(.*)", self.name)
        if commit is None:
            return self.name
        return f"{newest:%B %Y} ({commit[1]}){commit[2]}"

    @property
    def pair_count(self) -> int:
        """How many pairs of rows there are."""
        return math.comb(len(self.rows), 2)

    @property
    def top_count(self) -> int:
        """How many rows are above TOP_SCORE. They come first."""
        return int((self.rows.score > TOP_SCORE).sum())

    @property
    def top_pair_count(self) -> int:
        """How many pairs the rows above TOP_SCORE make."""
        return math.comb(self.top_count, 2)

    def decided_count(self, question: str) -> int:
        """How many pairs a question (a key of `answers`) decides."""
        return int(self.answers[question].decided.sum())

    def decided_top_count(self, question: str) -> int:
        """How many pairs of two rows above TOP_SCORE a question decides."""
        _, second = pair_indices(len(self.rows))
        # rows are sorted, so the second row of a pair is the lower one
        return int(self.answers[question].decided[second < self.top_count].sum())

    def decided_top_alone_count(self) -> int:
        """How many pairs question (b) would decide if we corrected only for the pairs of
        rows above TOP_SCORE, as a family of their own."""
        correct = self.rows.correct.to_numpy(dtype=float)[: self.top_count]
        return int(decided_pairs(question_p(correct, QUESTIONS)).sum())


def boards(results: pd.DataFrame) -> list[Board]:
    """Every set with more than one row, in the order of the folders."""
    sizes = results.groupby("set", sort=False).size()
    return [board(results, str(name)) for name in sizes.index[sizes > 1]]


def board(results: pd.DataFrame, name: str) -> Board:
    """The board of one set. results: of all sets, which the re-run variances need."""
    rows = results[results.set == name]
    rows = rows.sort_values(
        ["score", "row"], ascending=[False, True], ignore_index=True
    )
    decoding = str(rows.decoding.iloc[0])
    variances = rerun_variances(results[results.decoding == decoding])
    variances_of_all = rerun_variances(results)
    scores = rows.score.to_numpy(dtype=float)
    correct = rows.correct.to_numpy(dtype=float)
    rerun = DecidedPairs(
        f"(a) re-run, {decoding} sets",
        decided_pairs(rerun_p(scores, variances)),
        is_known=any(variances.values()),
    )
    rerun_any_decoding = DecidedPairs(
        "(a) re-run, all sets",
        decided_pairs(rerun_p(scores, variances_of_all)),
        is_known=any(variances_of_all.values()),
    )
    questions = DecidedPairs(
        "(b) other questions, upper bound",
        decided_pairs(question_p(correct, QUESTIONS)),
    )
    questions_correlated = DecidedPairs(
        f"(b) other questions, correlation {CORRELATION}",
        decided_pairs(question_p(correct, QUESTIONS, CORRELATION)),
    )
    rows["rerun_letters"] = letter_groups(len(rows), rerun.decided)
    rows["question_letters"] = letter_groups(len(rows), questions.decided)
    rows["rerun_half"] = rerun_half_width(scores, variances, LEVEL)
    rows["low"], rows["high"] = wilson_interval(correct, QUESTIONS, LEVEL)
    answers = {
        "rerun": rerun,
        "rerun_any_decoding": rerun_any_decoding,
        "questions": questions,
        "questions_correlated": questions_correlated,
    }
    return Board(name, rows, decoding, variances, variances_of_all, answers)


# --- two sets


@dataclass(frozen=True)
class Shift:
    """The change of scores from one set to another, over the rows in both.

    before, after: the names of the sets. rows: how many both have; fell: how many of
    these have a lower score after. mean, low, high: the mean difference (after minus
    before) in points, with its 95% interval. loss: the mean difference of their training
    losses.
    """

    before: str
    after: str
    rows: int
    fell: int
    mean: float
    low: float
    high: float
    loss: float


def shift(results: pd.DataFrame, before: str, after: str) -> Shift | None:
    """The shift between two sets, paired over rows of equal settings; None with fewer
    than two such rows. before, after: the names of the sets."""
    keys = ["row", "settings"]
    first = results[results.set == before]
    second = results[results.set == after]
    joined = first.merge(second, on=keys, suffixes=("_before", "_after"))
    if len(joined) < 2:
        return None
    differences = (joined.score_after - joined.score_before).to_numpy(dtype=float)
    loss_differences = joined.train_loss_after - joined.train_loss_before
    mean, low, high = mean_interval(differences, LEVEL)
    fell = int((differences < 0).sum())
    loss = float(loss_differences.mean())
    return Shift(before, after, len(joined), fell, mean, low, high, loss)


def shifts(results: pd.DataFrame) -> list[Shift]:
    """The shift between every two sets that share rows."""
    every_shift = []
    for before, after in itertools.combinations(results.set.unique(), 2):
        between_sets = shift(results, before, after)
        if between_sets is not None:
            every_shift.append(between_sets)
    return every_shift


# --- seeds


@dataclass(frozen=True)
class Power:
    """What this many seeds of each of the best rows would show.

    hours: of a GPU. differences: the smallest difference in points that is found, for
    each standard deviation of SEED_SDS. pairs: how many pairs of the printed scores
    differ by at least as much.
    """

    seeds: int
    hours: float
    differences: list[float]
    pairs: list[int]


def power_by_seeds(rows: pd.DataFrame) -> list[Power]:
    """The power among the TOP_ROWS best rows of a set, for each number of seeds of
    SEED_COUNTS. True differences are probably smaller than the printed ones, since these
    rows were chosen for their printed scores."""
    best = rows.nlargest(TOP_ROWS, "score", keep="first")
    scores = best.score.to_numpy(dtype=float)
    first, second = pair_indices(len(best))
    printed_differences = np.abs(scores[first] - scores[second])
    powers = []
    for seeds in SEED_COUNTS:
        hours = seeds * float(best.seconds.sum()) / 3600
        differences = [detectable_difference(sd, seeds, len(best)) for sd in SEED_SDS]
        pairs = [
            int((printed_differences >= difference).sum()) for difference in differences
        ]
        powers.append(Power(seeds, hours, differences, pairs))
    return powers
