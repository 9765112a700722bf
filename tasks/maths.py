"""Problems of arithmetic and maths whose answer is read from the text of a solution.

sums (tasks/sums.py): small problems, of which the answer is the first number of the text."""

import re
from typing import Any

from tasks import sums
from tasks.base import Source
from tasks.exact import ExactTask, Item, Reading, check_settings

PROTOCOL = 1


def source(settings: Any) -> Source:
    """See tasks.source."""
    check_settings(settings)
    return Source(pinned="tasks/sums.py")


def load(settings: Any) -> ExactTask:
    """See tasks.load."""
    check_settings(settings)
    counts = [settings[key] for key in ("test_rows", "dev_rows", "train_rows")]
    test, dev, _ = counts
    rows = sums.problems(sum(counts))  # the test rows first: the same, whatever is trained on
    splits = {"train": rows[test + dev :], "dev": rows[test : test + dev]}
    items = [Item("sums", prompt, answer.strip()) for prompt, answer in rows[:test]]
    return ExactTask(settings, splits, items, read_number)


def read_number(item: Item, text: str) -> Reading:
    """The first whole number of the text."""
    found = re.search(r"-?\d+", text)
    if not found:
        return Reading(None, False, "no number")
    right = found[0] == item.answer
    return Reading(found[0], right, "" if right else "another number")
