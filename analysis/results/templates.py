"""The templates beside this file, and what they all know."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from analysis.inference import EQUIVALENCE_MARGIN, FIRM_PAIRS, Mean
from analysis.render import p_value
from runs.record.templates import template_environment, without_gaps

FOLDER = Path(__file__).parent


def results_environment(*folders: Path, autoescape: bool = False) -> jinja2.Environment:
    """The project's environment on this folder and others, with filters that print a
    mean (its value, its interval, and both), and shares and counts in words."""
    environment = template_environment(*folders, FOLDER, autoescape=autoescape)
    environment.filters |= {
        "signed": signed,
        "interval": interval_text,
        "with_interval": with_interval,
        "distance": distance,
        "p_value": p_value,
        "percent": percent,
        "spoken": spoken,
    }
    environment.globals |= {
        "firm_pairs": FIRM_PAIRS,
        "margin": f"{EQUIVALENCE_MARGIN:g}",
    }
    return environment


def rendered(page: str, **context: Any) -> str:
    """The text of a page. page: the name of its template. context: the values and
    functions that the template uses, by name."""
    template = results_environment().get_template(page)
    return without_gaps(template.render(context))


def macros(page: str) -> Any:
    """The macros of a template, as attributes: macros("words.md").measured(...)."""
    return results_environment().get_template(page).module


def is_unknown(value: float | None) -> bool:
    """Whether a number is missing: None or NaN."""
    return value is None or math.isnan(value)


def signed(value: float, decimals: int = 1) -> str:
    """A difference with its sign: +1.2; "-" where it is unknown."""
    return "-" if is_unknown(value) else f"{value:+.{decimals}f}"


def interval_text(mean: Mean | Sequence[float], decimals: int = 1) -> str:
    """The 95% interval of a mean, or two ends, as text: -2.2 to -0.3; "of no width" where
    they are equal; "-" where unknown."""
    low, high = mean.interval() if isinstance(mean, Mean) else mean
    if is_unknown(low) or is_unknown(high):
        return "-"
    if low == high:
        return "of no width"
    return f"{signed(low, decimals)} to {signed(high, decimals)}"


def with_interval(mean: Mean, decimals: int = 1) -> str:
    """A mean with its interval: -1.2 (95% CI -2.2 to -0.3)."""
    ends = interval_text(mean, decimals)
    value = signed(mean.mean, decimals)
    return value if ends == "-" else f"{value} (95% CI {ends})"


def distance(mean: Mean, row: str = "", decimals: int = 1) -> str:
    """A mean difference from a row in words: "1.2 points below LoRA", or "1.2 points
    below" without the row's name. One that rounds to 0 has no side: "less than 0.05
    points from LoRA", or "less than 0.05 points away"."""
    points = f"{abs(mean.mean):.{decimals}f}"
    if float(points) == 0:
        half_digit = 0.5 / 10**decimals
        ending = f"from {row}" if row else "away"
        return f"less than {half_digit:.{decimals + 1}f} points {ending}"
    side = "below" if mean.mean < 0 else "above"
    return f"{points} points {side} {row}".rstrip()


def percent(share: float) -> str:
    """A share in percent, with one decimal below 10%: 0.5%, 25%."""
    decimals = 0 if share >= 0.1 or share == 0 else 1
    return f"{100 * share:.{decimals}f}%"


#: The counts from 0 to 20 in words.
COUNT_WORDS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


def spoken(count: int) -> str:
    """A count as prose has it: in words up to twenty, then in figures."""
    return COUNT_WORDS[count] if count < len(COUNT_WORDS) else f"{count:,}"
