"""Sums and differences of two and three whole numbers in a fixed order: a task that
needs no file. The answer is the first whole number of a text."""

import itertools
import random
import re
from typing import Any

from tasks.base import DataError
from tasks.exact import ExactTask, Tests

CONTENT = "tasks/sums.py 2"  # raise it with a change of the problems
#: The largest term; and of the order.
LARGEST, SEED = 9, 2024


def load(settings: Any) -> ExactTask:
    """See tasks.load. Raises DataError for more rows than there are problems."""
    test, dev, train = (settings[f"{part}_rows"] for part in ("test", "dev", "train"))
    rows = problems()  # the test rows first: the same, whatever is trained on
    if test + dev + train > len(rows):
        raise DataError(
            f"task.train_rows={train}: with the other rows more than the {len(rows)} problems"
        )
    splits = {"train": rows[test + dev :][:train], "dev": rows[test:][:dev]}
    tests: Tests = {
        "sums": [(prompt, answer.strip()) for prompt, answer in rows[:test]]
    }
    return ExactTask(
        settings,
        splits,
        tests,
        lambda *of: next(iter(re.findall(r"-?\d+", of[-1])), None),
    )


def problems() -> list[tuple[str, str]]:
    """All problems with their answers, such as ("4 + 8 - 5 =", " 7").

    Those of the same terms (4 + 8 and 8 + 4) follow one another: parts share none, but
    at their ends."""
    signed = [term for term in range(-LARGEST, LARGEST + 1) if term]
    every = (
        terms
        for n in (2, 3)
        for terms in itertools.combinations_with_replacement(signed, n)
    )
    # a problem begins with a positive term
    alike = sorted(terms for terms in every if terms[-1] > 0)
    random.Random(SEED).shuffle(alike)
    found = list[tuple[str, str]]()
    for terms in alike:
        for order in sorted({*itertools.permutations(terms)}):
            words = " ".join(
                f"{'-' if term < 0 else '+'} {abs(term)}" for term in order
            )
            found += [(f"{words.removeprefix('+ ')} =", f" {sum(terms)}")] * (
                order[0] > 0
            )
    return found
