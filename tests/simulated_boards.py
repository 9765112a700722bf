"""Simulated leaderboards: how often do the two questions decide a pair of equal rows?

    python tests/simulated_boards.py 1000

writes the numbers that docs/leaderboard.md gives of it.

Each question of a board has a difficulty that all rows share, and each row solves some
questions better than others; on some boards rows share nothing. A run answers each
question at random with its own probability: most are nearly certain, and the others
flip from run to run. All rows are in the first set, and in up to three more; each set
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

QUESTIONS = 1319
#: The standard deviation of the logits of a row's questions.
WIDTH = 1.2
#: How steep a logit is: at 6 a re-run varies by about 0.6 points, as peft's rows do.
STEEP = 6.0
#: Differences of this size and more are counted as true ones.
LEAST = 1.0


@dataclass(frozen=True)
class Simulated:
    """Decided pairs of each question, and the true differences, in points."""

    rerun: np.ndarray
    questions: np.ndarray
    correlated: np.ndarray
    differences: np.ndarray


def simulate(
    random: np.random.Generator, spread: float = 0.0, on_these: bool = True
) -> Simulated:
    """One leaderboard.

    Args:
        spread: the standard deviation of the rows' true means, in points.
        on_these: the true means are those on these questions, which (a) asks for; else
            those over all questions of the kind, which (b) asks for."""
    rows = int(random.integers(15, 61))
    means = random.uniform(36, 54) / 100 + random.normal(0, spread / 100, rows)
    steep = STEEP * random.uniform(0.8, 1.25, (rows, 1))
    own_share = random.uniform(0.2, 1.0)
    shared = random.normal(0, WIDTH * np.sqrt(1 - own_share), QUESTIONS)
    logits = shared + random.normal(0, WIDTH * np.sqrt(own_share), (rows, QUESTIONS))
    if on_these:
        levels = levels_for(logits, steep, means)
    else:
        # a logistic function is nearly a normal one, of width 1.7 / steep
        width = np.sqrt(WIDTH**2 + (1.7 / steep) ** 2)
        levels = special.ndtri(means)[:, None] * width
    results = []
    for number, shift in enumerate([0.0, *random.normal(0, 0.1, 3)]):
        # a row is in one to four sets, and always in the first of these
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
    last = results[0]
    variances = rerun_variances(pd.concat(results, ignore_index=True))
    scores = last.score.to_numpy(dtype=float)
    correct = last.correct.to_numpy(dtype=float)
    first, second = pair_indices(rows)
    return Simulated(
        rerun=decided_pairs(rerun_p(scores, variances)),
        questions=decided_pairs(question_p(correct, QUESTIONS)),
        correlated=decided_pairs(question_p(correct, QUESTIONS, 0.5)),
        differences=100 * (means[first] - means[second]),
    )


def levels_for(logits: np.ndarray, steep: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The level of each row at which its mean chance over these questions is `means`,
    by bisection."""
    low = np.full((len(means), 1), -8.0)
    high = -low
    for _ in range(25):
        middle = (low + high) / 2
        mean = special.expit(steep * (logits + middle)).mean(axis=1, keepdims=True)
        below = mean < means[:, None]
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def false_share(boards: int, seed: int, question: str) -> float:
    """The share of boards of equal rows on which any pair is decided. question: rerun,
    questions or correlated."""
    random = np.random.default_rng(seed)
    on_these = question == "rerun"
    decisions = [
        getattr(simulate(random, on_these=on_these), question).any()
        for _ in range(boards)
    ]
    return float(np.mean(decisions))


def found_share(boards: int, seed: int, question: str, spread: float) -> float:
    """The share of true differences of LEAST points or more that are decided."""
    random = np.random.default_rng(seed)
    true, found = 0, 0
    for _ in range(boards):
        board = simulate(random, spread, on_these=question == "rerun")
        large = np.abs(board.differences) >= LEAST
        true += int(large.sum())
        found += int((getattr(board, question) & large).sum())
    return found / true


def report(boards: int) -> dict[str, object]:
    """What the page says of the simulation, in percent."""
    found_spread = 2.0
    numbers: dict[str, object] = {"boards": boards, "spread": found_spread}
    for question in ("rerun", "questions", "correlated"):
        false = 100 * false_share(boards, 1, question)
        found = 100 * found_share(boards // 10, 2, question, found_spread)
        numbers[question] = {"false": round(false, 1), "found": round(found, 1)}
    return numbers


if __name__ == "__main__":
    numbers = report(int(sys.argv[1]))
    command = f"python tests/simulated_boards.py {numbers['boards']}"
    SIMULATION.write_text(f"# Written by {command}\n{yaml.safe_dump(numbers)}")
    print(SIMULATION.read_text())
