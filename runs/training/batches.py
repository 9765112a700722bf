"""Splits rows into batches."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def batches_of(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in batches of `size`, in their order; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]
