"""Learning rates of single parameters, by patterns of their names (train.lr_by)."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from runs.errors import UserError

#: Names in an error message, at most.
SHOWN = 12


def patterns_of(names: Iterable[str], lr_by: Mapping[str, float]) -> dict[str, str]:
    """The pattern that each trained parameter takes its rate from, by the parameter's name; the others have
    the rate of their group.

    A pattern is the end of a name, from a dot on, and may have wildcards: B, query*.B, classifier.*. Raises
    UserError for one that no name has, listing the model's own, and for two that have a name in common."""
    names, found = list(names), dict[str, str]()
    for pattern in lr_by:
        matches = [name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not matches:
            kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
            more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
            raise UserError(
                f"train.lr_by: no trained parameter's name ends with {pattern!r}. There are:"
                f" {', '.join(kinds[:SHOWN]) or 'none'}{more}"
            )
        for name in matches:
            if name in found:
                raise UserError(f"train.lr_by: {found[name]!r} and {pattern!r} both name {name}")
            found[name] = pattern
    return found
