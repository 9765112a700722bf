"""Sums and differences of a few whole numbers: tasks that need no file.

The problems have a fixed order. The first ones are tested, the next ones are dev rows,
and the model is trained on those that follow. The test problems are therefore the same,
whatever a run is trained on.

sums has two and three terms. sums_digit has four, and its answer is one digit: a prompt
ends with a blank, so that the answer is the next token. No two of its parts share the
terms of a problem."""

import itertools
import random
import re
from typing import NamedTuple

from tasks.base import DataError, Settings, Source
from tasks.exact import ExactTask, Tests

ORDER_SEED = 2024
#: The parts in the order in which they take problems.
PARTS = ("test", "dev", "train")


class Space(NamedTuple):
    """The problems of a task. content: stands for them in ids; raise its number with a
    change of the problems. one_digit: whether the answer is the one digit after a
    prompt that ends with a blank."""

    content: str
    numbers_of_terms: tuple[int, ...]
    largest_term: int
    one_digit: bool


#: By task.prepare.
SPACES = {
    "sums": Space("tasks/sums.py 2", (2, 3), 9, one_digit=False),
    "sums_digit": Space("tasks/sums.py digit 1", (4,), 6, one_digit=True),
}


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
    space = SPACES[settings["prepare"]]
    available = len(problems(space))
    if total > available:
        terms = " + ".join(f"{key}={size}" for key, size in sizes.items())
        raise DataError(
            f"{terms} are {total:,} problems, and there are only {available:,}"
        )
    return Source(pinned=space.content)


def load(settings: Settings) -> ExactTask:
    """See tasks.load. Raises DataError for more rows than there are problems."""
    source(settings)
    space = SPACES[settings["prepare"]]
    sizes = {part: settings[f"{part}_rows"] for part in PARTS}
    parts = split_problems(problems(space), sizes, whole_groups=space.one_digit)
    splits = {
        split: [(problem.prompt, problem.answer) for problem in parts[split]]
        for split in ("train", "dev")
    }
    tests: Tests = {
        "sums": [(problem.prompt, problem.answer.strip()) for problem in parts["test"]]
    }
    groups = {"sums": [problem.group for problem in parts["test"]]}
    train_groups = None
    if space.one_digit:
        train_groups = [problem.group for problem in parts["train"]]
    return ExactTask(
        settings,
        splits,
        tests,
        first_number,
        groups=groups,
        problem_key=terms_of,
        train_groups=train_groups,
    )


def terms_of(prompt: str) -> str:
    """The terms of a problem in their order by size: the same for all its orders."""
    terms = re.findall(r"[+-] \d+", f"+ {prompt}")
    return " ".join(sorted(terms))


def split_problems(
    all_problems: list[Problem], sizes: dict[str, int], whole_groups: bool
) -> dict[str, list[Problem]]:
    """The problems of each part. whole_groups: leave out the rest of a group that a
    part has begun, so that no two parts share one. Raises DataError where there are too
    few problems."""
    parts = {}
    start = 0
    for part, size in sizes.items():
        stop = start + size
        parts[part] = all_problems[start:stop]
        if len(parts[part]) < size:
            raise DataError(
                f"task.{part}_rows={size}: only {len(parts[part]):,} problems are left "
                "for it"
            )
        while whole_groups and stop < len(all_problems):
            if all_problems[stop].group != all_problems[stop - 1].group:
                break
            stop += 1
        start = stop
    return parts


def first_number(part: str, prompt: str, text: str) -> str | None:
    """The answer in a text: its first whole number."""
    number = re.search(r"-?\d+", text)
    return number and number[0]


def problems(space: Space) -> list[Problem]:
    """All problems. Those of one group follow one another, so that two parts share a
    group only where one part ends and the next begins."""
    largest = space.largest_term
    signed_terms = [n for n in range(-largest, largest + 1) if n]
    groups: list[tuple[int, ...]] = []
    for count in space.numbers_of_terms:
        groups += itertools.combinations_with_replacement(signed_terms, count)
    # A problem begins with a positive term: the last one of a group is its largest.
    groups = sorted(terms for terms in groups if terms[-1] > 0)
    if space.one_digit:
        groups = [terms for terms in groups if 0 <= sum(terms) <= 9]
    random.Random(ORDER_SEED).shuffle(groups)
    if space.one_digit:
        groups = _digits_in_turn(groups)
    all_problems = []
    for number, terms in enumerate(groups):
        blank = "" if space.one_digit else " "
        answer = f"{blank}{sum(terms)}"
        for order in sorted(set(itertools.permutations(terms))):
            if order[0] > 0:
                prompt = _prompt(order)
                if space.one_digit:
                    prompt += " "
                all_problems.append(Problem(prompt, answer, number))
    return all_problems


def _digits_in_turn(groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The groups in an order in which each answer has its turn: a part of few groups
    would else have many problems of one answer."""
    turns: dict[int, int] = {}
    places = []
    for terms in groups:
        answer = sum(terms)
        turns[answer] = turns.get(answer, 0) + 1
        places.append((turns[answer], answer, terms))
    return [terms for _, _, terms in sorted(places)]


def _prompt(terms: tuple[int, ...]) -> str:
    """The prompt of a problem: (4, 8, -5) is "4 + 8 - 5 ="."""
    text = str(terms[0])
    for term in terms[1:]:
        sign = "+" if term > 0 else "-"
        text += f" {sign} {abs(term)}"
    return f"{text} ="
