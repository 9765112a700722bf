"""Sums and differences of two and three whole numbers in a fixed order: a task that needs no file."""

import itertools
import random

#: Raise it with a change of the problems.
CONTENT = "tasks/sums.py 2"
#: The largest term.
LARGEST = 9
SEED = 2024
#: How many problems there are.
MOST = 2 * LARGEST**2 + 4 * LARGEST**3


def problems(count: int) -> list[tuple[str, str]]:
    """The first `count` problems of all, with their answers, such as ("4 + 8 - 5 =", " 7"); at most MOST.

    Those of the same terms (4 + 8 and 8 + 4) follow one another: cut into parts, a part has none of another
    part's, but at its ends."""
    signed = [term for term in range(-LARGEST, LARGEST + 1) if term]
    every = [terms for length in (2, 3) for terms in itertools.product(signed, repeat=length) if terms[0] > 0]
    alike = sorted({tuple(sorted(terms)) for terms in every})
    random.Random(SEED).shuffle(alike)
    place = {terms: number for number, terms in enumerate(alike)}
    every.sort(key=lambda terms: (place[tuple(sorted(terms))], terms))
    return [(f"{_words(terms)} =", f" {sum(terms)}") for terms in every[:count]]


def _words(terms: tuple[int, ...]) -> str:
    return " ".join(f"{'-' if term < 0 else '+'} {abs(term)}" for term in terms).removeprefix("+ ")
