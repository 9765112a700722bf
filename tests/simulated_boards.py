"""Simulated leaderboards: how often do the two questions of docs/leaderboard.md, (a) re-run
and (b) other questions, decide a pair of equal rows?

    python tests/simulated_boards.py 1000

writes the numbers that the page gives of 1,000 boards.

Each of a board's exam questions has a difficulty that all rows share, and each row solves
some questions better than others; on some boards rows share nothing. A run answers each exam
question at random with its own probability: most are nearly certain, and the others flip
from run to run. All rows are in the first set of results, and in up to three more; each set
shifts the scores of all rows."""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml
from scipy import special

from analysis.leaderboard.inference import (
    decided_pairs,
    pair_indices,
    question_p,
    rerun_p,
    rerun_variances,
)
from analysis.leaderboard.page import SIMULATION

#: How many exam questions there are, as in GSM8K's test set.
QUESTIONS = 1319
#: The standard deviation of how well a row does on its questions, before STEEP.
WIDTH = 1.2
#: What that is multiplied by to give the logit of the chance of a right answer. At 6 a
#: re-run varies by about 0.6 points, as peft's rows do.
STEEP = 6.0
#: The least difference in points that counts as a true one.
LEAST = 1.0


@dataclass(frozen=True)
class Simulated:
    """A simulated board. For each pair of rows: whether question (a) decides it (rerun),
    whether (b) does (questions), whether (b) does when answers are taken to be correlated
    by 0.5 (correlated), and its true difference in points (differences)."""

    rerun: np.ndarray
    questions: np.ndarray
    correlated: np.ndarray
    differences: np.ndarray


def simulate(
    random: np.random.Generator, spread: float = 0.0, on_these: bool = True
) -> Simulated:
    """Simulates one leaderboard.

    Args:
        spread: the standard deviation of the rows' true means, in points.
        on_these: whether the true means are those on these exam questions, which (a) asks
            for; else they are those over all questions of the kind, which (b) asks for."""
    rows = int(random.integers(15, 61))
    means = random.uniform(36, 54) / 100 + random.normal(0, spread / 100, rows)
    steep = STEEP * random.uniform(0.8, 1.25, (rows, 1))
    own_share = random.uniform(0.2, 1.0)
    shared = random.normal(0, WIDTH * np.sqrt(1 - own_share), QUESTIONS)
    logits = shared + random.normal(0, WIDTH * np.sqrt(own_share), (rows, QUESTIONS))
    if on_these:
        levels = levels_for(logits, steep, means)
    else:
        # The logistic function is nearly the normal distribution function of the standard
        # deviation 1.7 / steep
        width = np.sqrt(WIDTH**2 + (1.7 / steep) ** 2)
        levels = special.ndtri(means)[:, None] * width
    results = []
    for number, shift in enumerate([0.0, *random.normal(0, 0.1, 3)]):
        # A row is always in the first set, and in each other one by chance
        is_in = (random.random(rows) < 0.5) | (number == 0)
        chances = special.expit(steep * (logits + levels + shift))
        correct = (random.random(chances.shape) < chances).sum(axis=1)
        results.append(
            pd.DataFrame(
                {
                    "row": [f"row{row}" for row in range(rows)],
                    "settings": "same",
                    "environment": f"set{number}",
                    "correct": correct,
                    "score": 100 * correct / QUESTIONS,
                }
            )[is_in]
        )
    board = results[0]  # the other sets only help to estimate the variance of a re-run
    variances = rerun_variances(pd.concat(results, ignore_index=True))
    scores = board.score.to_numpy(dtype=float)
    correct = board.correct.to_numpy(dtype=float)
    first, second = pair_indices(rows)
    return Simulated(
        rerun=decided_pairs(rerun_p(scores, variances)),
        questions=decided_pairs(question_p(correct, QUESTIONS)),
        correlated=decided_pairs(question_p(correct, QUESTIONS, 0.5)),
        differences=100 * (means[first] - means[second]),
    )


def levels_for(logits: np.ndarray, steep: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What each row's logits are raised by so that its mean chance over these questions is
    `means`, (rows, 1), by bisection."""
    low = np.full((len(means), 1), -8.0)
    high = -low
    for _ in range(25):
        middle = (low + high) / 2
        mean = special.expit(steep * (logits + middle)).mean(axis=1, keepdims=True)
        below = mean < means[:, None]
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def false_share(boards: int, seed: int, question: str) -> float:
    """The share of boards of equal rows on which any pair is decided, which is then wrong.
    question: rerun, questions or correlated (see Simulated)."""
    random = np.random.default_rng(seed)
    wrong_boards = 0
    for _ in range(boards):
        board = simulate(random, on_these=question == "rerun")
        wrong_boards += bool(getattr(board, question).any())
    return wrong_boards / boards


def found_share(boards: int, seed: int, question: str, spread: float) -> float:
    """The share of true differences of LEAST points or more that are decided. question: as
    for `false_share`. spread: of the rows' true means, in points."""
    random = np.random.default_rng(seed)
    true_differences = 0
    decided = 0
    for _ in range(boards):
        board = simulate(random, spread, on_these=question == "rerun")
        is_large = np.abs(board.differences) >= LEAST
        true_differences += int(is_large.sum())
        decided += int((getattr(board, question) & is_large).sum())
    return decided / true_differences


def report(boards: int) -> dict[str, object]:
    """The page's numbers about the simulation: shares in percent, "false" on boards of equal
    rows and "found" of the true differences."""
    spread = 2.0
    numbers: dict[str, object] = {"boards": boards, "spread": spread}
    for question in ("rerun", "questions", "correlated"):
        false = 100 * false_share(boards, seed=1, question=question)
        found = 100 * found_share(
            boards // 10, seed=2, question=question, spread=spread
        )
        numbers[question] = {"false": round(false, 1), "found": round(found, 1)}
    return numbers


if __name__ == "__main__":
    numbers = report(int(sys.argv[1]))
    command = f"python tests/simulated_boards.py {numbers['boards']}"
    SIMULATION.write_text(f"# Written by {command}\n{yaml.safe_dump(numbers)}")
    print(SIMULATION.read_text())
