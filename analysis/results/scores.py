"""Scores and differences of pairs that a study's notes print, and the filters that
print them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.inference import Mean, mean_of
from analysis.results.templates import distance, interval_text


def fixed(value: float | Sequence[float], decimals: int = 1) -> str:
    """A number as text; several as prose lists them: 1.2, 3.4 and 5.6."""
    if isinstance(value, int | float | np.floating):
        return f"{value:,.{decimals}f}"
    return listed([f"{number:,.{decimals}f}" for number in value])


def gap(difference: "SeedDifferences", row: str = "", decimals: int = 1) -> str:
    """A mean difference in words: 1.2 points below LoRA (95% CI -2.3 to -0.1). row: the
    name of the row that was subtracted; "" to leave it out."""
    ends = interval_text(difference.mean, decimals)
    words = distance(difference.mean, row, decimals)
    return words if ends == "-" else f"{words} (95% CI {ends})"


def distance_of(difference: "SeedDifferences", row: str = "", decimals: int = 1) -> str:
    """A mean difference in words, without its interval: 1.2 points below LoRA."""
    return distance(difference.mean, row, decimals)


def listed(names: Sequence[str]) -> str:
    """Names as prose lists them: a, b and c; "none" of no names."""
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


#: The filters of a study's notes, by name.
FILTERS = {"gap": gap, "distance_of": distance_of, "fixed": fixed}


@dataclass(frozen=True)
class SeedScores:
    """The scores of some runs in the order of their seeds. collapsed: how many of these
    runs collapsed."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    collapsed: int

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        return float(np.std(self.values, ddof=1))

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    @property
    def lowest_seed(self) -> int:
        return self.seeds[self.values.index(self.lowest)]

    def sd_without_lowest(self) -> float:
        """The standard deviation without the lowest score, such as a collapsed run."""
        return float(np.std(sorted(self.values)[1:], ddof=1))


@dataclass(frozen=True)
class SeedDifferences:
    """The differences of pairs of runs of one seed, in the order of seeds. Positive: the
    first row (or score) is better."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> Mean:
        return mean_of(self.values)

    @property
    def sd(self) -> float:
        return float(np.std(self.values, ddof=1))

    @property
    def p(self) -> float:
        return float(self.mean.p())

    @property
    def above(self) -> int:
        """In how many pairs the first row is better."""
        return sum(value > 0 for value in self.values)

    @property
    def below(self) -> int:
        """In how many pairs the first row is worse."""
        return sum(value < 0 for value in self.values)

    @property
    def smallest(self) -> float:
        """The smallest difference of a pair, without its sign."""
        return min(map(abs, self.values))

    @property
    def largest(self) -> float:
        """The largest difference of a pair, without its sign."""
        return max(map(abs, self.values))

    def ends(self, level: float = 0.95) -> tuple[float, float]:
        """Both ends of the interval of the mean, as numbers."""
        low, high = self.mean.interval(level)
        return float(low), float(high)

    def corrected_ends(self, comparisons: int) -> tuple[float, float]:
        """Both ends of the 95% interval of the mean after Bonferroni's correction for this
        many comparisons."""
        return self.ends(1 - 0.05 / comparisons)
