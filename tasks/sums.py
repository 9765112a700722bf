"""Sums and differences of two and three whole numbers, drawn from a fixed seed: a task that needs no file."""

import random

#: Raise it with a change of the problems.
CONTENT = "tasks/sums.py 1"
#: The largest term.
LARGEST = 9
SEED = 2024
#: How many problems there are.
MOST = 2 * LARGEST**2 + 4 * LARGEST**3


def problems(count: int) -> list[tuple[str, str]]:
    """`count` different problems with their answers, such as ("4 + 8 - 5 =", " 7"); at most MOST."""
    rng, found = random.Random(SEED), dict[str, str]()
    while len(found) < min(count, MOST):
        terms = [rng.randint(1, LARGEST) for _ in range(rng.choice((2, 3)))]
        signs = [1, *(rng.choice((1, -1)) for _ in terms[1:])]
        words = [f"{'+' if sign > 0 else '-'} {term}" for sign, term in zip(signs, terms, strict=True)]
        total = sum(sign * term for sign, term in zip(signs, terms, strict=True))
        found[" ".join(words).removeprefix("+ ") + " ="] = f" {total}"
    return list(found.items())
