"""scipy.special, imported when a number first needs it.

The import takes a quarter of a second. A table without a verdict needs none of it."""

from functools import cache
from typing import Any


@cache
def special() -> Any:
    """The module scipy.special."""
    from scipy import special

    return special
