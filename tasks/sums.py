"""Sums and differences of two and three whole numbers, drawn from a fixed seed: a task that needs no file.

No test or dev problem is among the training rows."""

import random

#: Raise it with a change of the problems.
CONTENT = "tasks/sums.py 1"
#: Terms are below it.
LARGEST = 100
SEED = 2024


def problems(count: int) -> list[tuple[str, str]]:
    """`count` different problems with their answers, such as ("12 + 30 - 5 =", " 37")."""
    rng, found = random.Random(SEED), dict[str, str]()
    while len(found) < count:
        terms = [rng.randrange(1, LARGEST) for _ in range(rng.choice((2, 3)))]
        signs = [1, *(rng.choice((1, -1)) for _ in terms[1:])]
        words = [f"{'+' if sign > 0 else '-'} {term}" for sign, term in zip(signs, terms, strict=True)]
        total = sum(sign * term for sign, term in zip(signs, terms, strict=True))
        found[" ".join(words).removeprefix("+ ") + " ="] = f" {total}"
    return list(found.items())
