"""Rates and weight decays of single parameters, by patterns of their names (train.lr_by, train.decay_by)."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from runs.errors import UserError

#: Names in an error message, at most.
SHOWN = 12


#: The keys of such mappings, and the key that a multiple in one, such as 16x, is of.
BASES = {"lr_by": "lr", "decay_by": "weight_decay"}


def rates_of(given: Any, base: float, key: str = "lr_by") -> dict[str, float] | None:
    """train.lr_by (or another key of BASES) with numbers alone, where 16x is 16 times the base; None for an
    empty one, as if it were not there. Raises UserError for what is no mapping of names to numbers."""
    rates = given or {}
    if not isinstance(rates, dict):
        raise UserError(f"train.{key}={rates}: should be a mapping of names to rates, such as {{B: 1e-2}}")
    numbers = dict[str, float]()
    for pattern, rate in rates.items():
        number = rate
        if isinstance(rate, str) and (times := re.fullmatch(r"(\d+(?:\.\d+)?)x", rate)):
            number = float(times[1]) * base
        if type(number) not in (int, float) or not 0 <= number < float("inf"):
            raise UserError(
                f"train.{key}.{pattern}={rate}: should be a number that is not negative, or such as 16x, 16"
                f" times train.{BASES[key]}"
            )
        numbers[str(pattern)] = float(number)  # `1` and `1.0` are one run
    return numbers or None


def patterns_of(names: Iterable[str], rates: Mapping[str, float], key: str = "lr_by") -> dict[str, str]:
    """The pattern that each trained parameter takes its rate from, by the parameter's name; the others have
    the rate of their group. key: of BASES.

    A pattern is the end of a name, from a dot on, and may have wildcards: B, query*.B, classifier.*. Raises
    UserError for one that no name has, listing the model's own, and for two that have a name in common."""
    names, found = list(names), dict[str, str]()
    for pattern in rates:
        matches = [name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not matches:
            kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
            more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
            raise UserError(
                f"train.{key}: no trained parameter's name ends with {pattern!r}. There are:"
                f" {', '.join(kinds[:SHOWN]) or 'none'}{more}"
            )
        for name in matches:
            if name in found:
                raise UserError(f"train.{key}: {found[name]!r} and {pattern!r} both name {name}")
            found[name] = pattern
    return found
