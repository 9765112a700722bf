"""Overrides: the KEY=VALUE of a command line, as records keep them."""

import json
import re
from dataclasses import dataclass

#: Hydra's interval: range(20), range(5,9) or range(0,20,2).
_RANGE = re.compile(r"range\((?:(\d+),)?(\d+)(?:,(\d+))?\)")


@dataclass(frozen=True)
class Override:
    """One override, such as train.lr=1e-3, ++task.items=8 or ~recipe."""

    text: str

    @property
    def key(self) -> str:
        """The full key, such as train.lr. Compare it whole: model.settings.dropout is
        not method.dropout."""
        return self.text.lstrip("+~").partition("=")[0]

    @property
    def group(self) -> str:
        """What stands before the key's first dot: train, or the key itself."""
        return self.key.partition(".")[0]

    @property
    def value(self) -> str:
        """The value as it was written, with its quotes."""
        return self.text.partition("=")[2]

    @property
    def unquoted_value(self) -> str:
        """The value without quotes around it."""
        quote = self._quote
        return self.value.strip(quote) if quote else self.value

    def with_value(self, value: str) -> "Override":
        """The override with another value, in the quotes that this one has."""
        key_with_prefix = self.text.partition("=")[0]
        return Override(f"{key_with_prefix}={self._quote}{value}{self._quote}")

    @property
    def _quote(self) -> str:
        """The quote that the value begins with, or ""."""
        return self.value[0] if self.value.startswith(("'", '"')) else ""

    def __str__(self) -> str:
        return self.text


def split_seeds(text: str) -> tuple[str, ...]:
    """The seeds in the value of `seed=`, a list or an interval as Hydra reads it:
    "0,1,2" and "range(3)" are both ("0", "1", "2")."""
    without_spaces = text.replace(" ", "")
    interval = _RANGE.fullmatch(without_spaces)
    if interval is None:
        return tuple(seed for seed in without_spaces.split(",") if seed)
    first, end, step = interval.groups()
    return tuple(map(str, range(int(first or 0), int(end), int(step or 1))))


def as_override_value(value: object) -> str:
    """A value as text that Hydra reads in an override: true, null, [a,b] or {key:1}."""
    if isinstance(value, dict):
        entries = [f"{key}:{as_override_value(entry)}" for key, entry in value.items()]
        return "{" + ",".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_override_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
