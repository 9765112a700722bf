"""The number of a task's rows, and their lengths in a model's tokens.

A run that has tokenised its rows writes them to the user's cache, where the plan reads them."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.errors import UserError
from runs.identity import Contents, data_of, hash_of, model_content
from runs.record import cache_folder, defining, write_atomically
from runs.run import Run

if TYPE_CHECKING:
    from tasks import Task

#: Shares of the rows, sorted by length, at which the length is kept. The longest row of a batch decides how
#: much is computed, so the grid is finer at its end.
GRID = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 1)


@dataclass(frozen=True)
class Lengths:
    """The lengths of a split's rows, in tokens.

    at: the lengths at the shares of GRID, or () where no length is known. predicted: how many of a row's
    tokens a language model is trained to predict, on average.
    """

    rows: int
    mean: float = 0.0
    at: tuple[float, ...] = ()
    predicted: float = 0.0

    @classmethod
    def of(cls, lengths: Sequence[int], predicted: float = 0.0) -> "Lengths":
        """From the length of each row. predicted: the sum over all rows."""
        rows, ordered = len(lengths), sorted(lengths)
        at = tuple(ordered[round(share * (rows - 1))] for share in GRID)
        return cls(rows, sum(lengths) / rows, at, predicted / rows)

    def cut(self, longest: int) -> "Lengths":
        """These lengths where rows are cut to so many tokens. The end of a row is cut, which is predicted."""
        if not self.at or self.at[-1] <= longest:
            return self
        at = tuple(min(length, longest) for length in self.at)
        mean = self.mean * _mean(at) / _mean(self.at)
        predicted = max(self.predicted - (self.mean - mean), 0.0)
        return Lengths(self.rows, mean, at, predicted)

    def padded(self, batch: int, blocks: int = 1) -> float:
        """The tokens that a row takes in a batch on average, padded to the batch's longest row.

        blocks: 1 for random batches; for batches of like lengths, how many are sorted together. Between two
        shares of GRID, lengths are taken to be evenly spread. The largest of n draws has the distribution
        u^n; the k-th of n sorted draws lies at the share k / (n + 1) on average."""
        batch = min(batch, self.rows)
        if blocks > 1:
            drawn = batch * blocks
            return sum(self.share(k * batch / (drawn + 1)) for k in range(1, blocks + 1)) / blocks
        total = 0.0
        for low, high, short, long in zip(GRID, GRID[1:], self.at, self.at[1:], strict=False):
            slope = (long - short) / (high - low)
            total += long * high**batch - short * low**batch
            total -= slope * (high ** (batch + 1) - low ** (batch + 1)) / (batch + 1)
        return total

    def share(self, part: float) -> float:
        """The length that this share of the rows, from 0 to 1, does not exceed."""
        for low, high, short, long in zip(GRID, GRID[1:], self.at, self.at[1:], strict=False):
            if part <= high:
                return short + (long - short) * (part - low) / (high - low)
        return self.at[-1]


def _mean(at: Sequence[float]) -> float:
    steps = zip(GRID, GRID[1:], at, at[1:], strict=False)
    return sum((high - low) * (short + long) / 2 for low, high, short, long in steps)


# --- the cache


def keep_lengths(run: Run, task: "Task") -> None:
    """Writes the lengths of a prepared task's rows to the cache."""
    path = _path(run, {})
    if path is None or path.is_file():
        return
    parts: dict[str, Any] = {}
    for split in ("train", "dev"):
        lengths = task.lengths(split)
        predicted = task.weight(split, range(len(lengths))) if not task.num_labels else 0.0
        parts[split] = asdict(Lengths.of(lengths, predicted))
    parts["items"] = len(getattr(task, "items", ()))
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a forecast, no more
        write_atomically(path, json.dumps(parts))


def kept_lengths(run: Run, contents: Contents) -> tuple[dict[str, Lengths], int] | None:
    """The lengths by split and the number of texts to decode, which an earlier run of the same model, data
    and settings wrote to the cache; None where there are none.

    contents: of runs.identity.identify."""
    path = _path(run, contents)
    if path is None:
        return None
    try:
        parts = json.loads(path.read_bytes())
        return {split: from_plain(parts[split]) for split in ("train", "dev")}, int(parts["items"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def from_plain(values: Mapping[str, Any]) -> Lengths:
    """Lengths from a file's values. Raises TypeError or ValueError for other values."""
    lengths = Lengths(**{**values, "at": tuple(values.get("at", ()))})
    if len(lengths.at) not in (0, len(GRID)) or not math.isfinite(lengths.mean) or lengths.rows < 1:
        raise ValueError("no lengths")
    return lengths


def _path(run: Run, contents: Contents) -> Path | None:
    """The file in the cache; None where the content of model or data is not known here."""
    config = run.config
    try:
        model, data = model_content(config["model"]), data_of(run, contents)
    except (UserError, ValueError):  # tasks.DataError is one
        return None
    if model is None or data is None:
        return None
    # Another draw of images has as many images of the same size.
    task = {key: value for key, value in defining(config)["task"].items() if key != "draw_seed"}
    key = hash_of([model, data, task, config["train"]["max_length"]])
    return cache_folder() / "lengths" / f"{key[:24]}.json"
