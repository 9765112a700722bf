"""Sums and differences of two and three whole numbers: a task that needs no file.

The problems have a fixed order. The first ones are tested, the next ones are dev rows,
and the model is trained on those that follow. The test problems are therefore the same,
whatever a run is trained on."""

import itertools
import random
import re
from typing import NamedTuple

from tasks.base import DataError, Settings, Source
from tasks.exact import ExactTask, Tests

#: Raise the number with a change of the problems.
CONTENT = "tasks/sums.py 2"
LARGEST_TERM = 9
ORDER_SEED = 2024
#: The parts in the order in which they take problems.
PARTS = ("test", "dev", "train")


class Problem(NamedTuple):
    """A prompt such as "4 + 8 - 5 =", its answer (" 7"), and the number of its group:
    problems of one group are orders of the same terms."""

    prompt: str
    answer: str
    group: int


def source(settings: Settings) -> Source:
    """See tasks.source. Raises DataError for more rows than there are problems."""
    sizes = {f"task.{part}_rows": settings[f"{part}_rows"] for part in PARTS}
    total = sum(sizes.values())
    available = len(problems())
    if total > available:
        terms = " + ".join(f"{key}={size}" for key, size in sizes.items())
        raise DataError(
            f"{terms} are {total:,} problems, and there are only {available:,}"
        )
    return Source(pinned=CONTENT)


def load(settings: Settings) -> ExactTask:
    """See tasks.load. Raises DataError for more rows than there are problems."""
    source(settings)
    remaining = iter(problems())
    parts = {
        part: list(itertools.islice(remaining, settings[f"{part}_rows"]))
        for part in PARTS
    }
    splits = {
        split: [(problem.prompt, problem.answer) for problem in parts[split]]
        for split in ("train", "dev")
    }
    tests: Tests = {
        "sums": [(problem.prompt, problem.answer.strip()) for problem in parts["test"]]
    }
    groups = {"sums": [problem.group for problem in parts["test"]]}
    return ExactTask(settings, splits, tests, first_number, groups=groups)


def first_number(part: str, prompt: str, text: str) -> str | None:
    """The answer in a text: its first whole number."""
    number = re.search(r"-?\d+", text)
    return number and number[0]


def problems() -> list[Problem]:
    """All problems. Those of one group follow one another, so that two parts share a
    group only where one part ends and the next begins."""
    signed_terms = [n for n in range(-LARGEST_TERM, LARGEST_TERM + 1) if n]
    groups = [
        *itertools.combinations_with_replacement(signed_terms, 2),
        *itertools.combinations_with_replacement(signed_terms, 3),
    ]
    # A problem begins with a positive term: the last one of a group is its largest.
    groups = sorted(terms for terms in groups if terms[-1] > 0)
    random.Random(ORDER_SEED).shuffle(groups)
    all_problems = []
    for number, terms in enumerate(groups):
        answer = f" {sum(terms)}"
        for order in sorted(set(itertools.permutations(terms))):
            if order[0] > 0:
                all_problems.append(Problem(_prompt(order), answer, number))
    return all_problems


def _prompt(terms: tuple[int, ...]) -> str:
    """The prompt of a problem: (4, 8, -5) is "4 + 8 - 5 ="."""
    text = str(terms[0])
    for term in terms[1:]:
        sign = "+" if term > 0 else "-"
        text += f" {sign} {abs(term)}"
    return f"{text} ="
