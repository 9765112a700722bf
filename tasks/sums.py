"""Sums and differences of a few whole numbers: tasks that need no file.

The problems have a fixed order. The first ones are tested, the next ones are dev rows,
and the model is trained on those that follow. The test problems are therefore the same,
whatever a run is trained on.

sums has two and three terms. sums_digit has four, and its answer is one digit: a prompt
ends with a blank, so that the answer is the next token. It has no other blanks, which
would be tokens without a meaning. No two of its parts share the terms of a problem, and
each digit is the answer of a tenth of the test problems and of the dev rows.

A model that solves a problem usually solves all orders of its terms. So the test problems
of sums_digit, which are orders of about a hundred sets of terms, tell no more than about
a hundred independent ones. task.orders=2 takes two orders of each set instead: fewer
problems, of more sets."""

import itertools
import random
import re
from collections.abc import Mapping
from typing import NamedTuple

from tasks.base import DataError, Settings, Source
from tasks.exact import ExactTask, Tests

ORDER_SEED = 2024
#: The parts in the order in which they take problems.
PARTS = ("test", "dev", "train")


class Space(NamedTuple):
    """Which problems a task has. content: stands for the problems in the ids of runs; raise
    its number when you change them. numbers_of_terms: how many terms a problem may have.
    one_digit: whether the answer is one digit, the next token after the prompt."""

    content: str
    numbers_of_terms: tuple[int, ...]
    largest_term: int
    one_digit: bool


#: The problems of each task, by the value of task.prepare.
SPACES = {
    "sums": Space("tasks/sums.py 2", (2, 3), 9, one_digit=False),
    "sums_digit": Space("tasks/sums.py digit 2", (4,), 6, one_digit=True),
}


class Problem(NamedTuple):
    """A prompt such as "4 + 8 - 5 =" or "4+3-5+2= ", its answer (" 7" or "4"), and the
    number of its group: problems of one group are orders of the same terms."""

    prompt: str
    answer: str
    group: int


def source(settings: Settings) -> Source:
    """See tasks.source. Raises DataError for more rows than there are problems."""
    sizes = {f"task.{part}_rows": settings[f"{part}_rows"] for part in PARTS}
    total = sum(sizes.values())
    space = SPACES[settings["prepare"]]
    available = len(all_problems(space))
    if total > available:
        terms = " + ".join(f"{key}={size}" for key, size in sizes.items())
        raise DataError(
            f"{terms} are {total:,} problems, and there are only {available:,}"
        )
    return Source(pinned=space.content)


def load(settings: Settings) -> ExactTask:
    """See tasks.load. Raises DataError for more rows than there are problems."""
    source(settings)  # raises DataError
    space = SPACES[settings["prepare"]]
    sizes = {part: settings[f"{part}_rows"] for part in PARTS}
    if space.one_digit:
        parts = balanced_parts(all_problems(space), sizes, settings.get("orders"))
    else:
        parts = parts_in_order(all_problems(space), sizes)
    splits = {
        split: [(problem.prompt, problem.answer) for problem in parts[split]]
        for split in ("train", "dev")
    }
    tests: Tests = {
        "sums": [(problem.prompt, problem.answer.strip()) for problem in parts["test"]]
    }
    groups = {"sums": [problem.group for problem in parts["test"]]}
    # No two parts of sums_digit share a group. So task.holdout has to hold out whole groups
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
    """The terms of a problem, sorted as texts: the same for all orders of its terms."""
    terms = re.findall(r"[+-]\d+", "+" + prompt.replace(" ", ""))
    return " ".join(sorted(terms))


def parts_in_order(
    all_problems: list[Problem], sizes: Mapping[str, int]
) -> dict[str, list[Problem]]:
    """Cuts the problems into parts that follow one another. sizes: how many problems
    each part takes."""
    parts = {}
    start = 0
    for part, size in sizes.items():
        parts[part] = all_problems[start : start + size]
        start += size
    return parts


def balanced_parts(
    all_problems: list[Problem], sizes: Mapping[str, int], orders: int | None = None
) -> dict[str, list[Problem]]:
    """The problems of each part, of answers of one digit. The parts that models are judged
    on (test and dev) have every answer equally often, so that a model that always gives
    one answer scores 10%. No two parts share a group: once a part has taken some of a
    group's problems, the others are in no part.

    Args:
        sizes: how many problems each part takes.
        orders: how many problems of a group test and dev take at most, drawn at random;
            None for all of them.

    Raises DataError where there are too few problems."""
    by_group = itertools.groupby(all_problems, key=lambda problem: problem.group)
    groups = [list(members) for _, members in by_group]
    parts = {}
    for part, size in sizes.items():
        # How many problems of each answer the part still takes: at first a tenth of its size,
        # and where that is no whole number one more for the first digits
        missing = {str(digit): (size + 9 - digit) // 10 for digit in range(10)}
        chosen: list[Problem] = []
        untouched_groups = []
        for group in groups:
            answer = group[0].answer
            candidates = group
            room = missing[answer]
            if part == "train":
                room = size - len(chosen)  # training rows may have any answers
            elif orders is not None:
                draw = random.Random(ORDER_SEED + group[0].group)
                candidates = draw.sample(group, min(orders, len(group)))
            if room:
                taken_problems = candidates[:room]
                chosen += taken_problems
                missing[answer] -= len(taken_problems)
            else:
                untouched_groups.append(group)
        if len(chosen) < size:
            raise DataError(
                f"task.{part}_rows={size}: only {len(chosen):,} problems are left for it"
            )
        parts[part] = chosen
        groups = untouched_groups
    return parts


def first_number(part: str, prompt: str, text: str) -> str | None:
    """The answer in a text: its first whole number. part, prompt: not used (see Read in
    tasks/exact.py)."""
    number = re.search(r"-?\d+", text)
    return number[0] if number else None


def all_problems(space: Space) -> list[Problem]:
    """All problems of a task in their fixed order. Problems of one group (the same terms
    in another order) follow one another. So if the list is cut into training and test
    problems, at most one group lies on both sides of a cut."""
    largest = space.largest_term
    signed_terms = [n for n in range(-largest, largest + 1) if n]
    # A group is written as its terms in ascending order
    groups: list[tuple[int, ...]] = []
    for count in space.numbers_of_terms:
        groups += itertools.combinations_with_replacement(signed_terms, count)
    # A problem begins with a positive term. A group has one if its last term, which is
    # its largest, is positive
    groups = sorted(terms for terms in groups if terms[-1] > 0)
    if space.one_digit:
        groups = [terms for terms in groups if 0 <= sum(terms) <= 9]
    random.Random(ORDER_SEED).shuffle(groups)
    if space.one_digit:
        groups = _alternate_answers(groups)
    problems = []
    for number, terms in enumerate(groups):
        blank = "" if space.one_digit else " "
        answer = f"{blank}{sum(terms)}"
        for order in sorted(set(itertools.permutations(terms))):
            if order[0] > 0:
                prompt = _prompt(order)
                if space.one_digit:
                    # A blank at the end alone: the answer is then the next token
                    prompt = prompt.replace(" ", "") + " "
                problems.append(Problem(prompt, answer, number))
    return problems


def _alternate_answers(groups: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The groups in rounds of one group for each answer: a part of few groups would
    otherwise have many problems with the same answer."""
    count_by_answer: dict[int, int] = {}
    numbered_groups = []
    for terms in groups:
        answer = sum(terms)
        count_by_answer[answer] = count_by_answer.get(answer, 0) + 1
        numbered_groups.append((count_by_answer[answer], answer, terms))
    return [terms for _, _, terms in sorted(numbered_groups)]


def _prompt(terms: tuple[int, ...]) -> str:
    """The prompt of a problem: (4, 8, -5) is "4 + 8 - 5 ="."""
    text = str(terms[0])
    for term in terms[1:]:
        sign = "+" if term > 0 else "-"
        text += f" {sign} {abs(term)}"
    return f"{text} ="
