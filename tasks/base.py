"""What every task is made of: rows, a source, and the contract that the training loop uses."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class DataError(ValueError):
    """Data are missing or wrong. The message is one line: which file, which line, how to mend."""


@dataclass(frozen=True)
class Source:
    """Where rows come from. Their content is part of a run's identity; the place is not.

    files: local files, hashed by content. pinned: a hash that stands for the content already (a hub revision or an
    archive's sha256). Neither: known only once the network has been asked.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    pinned: str | None = None


@dataclass
class Rows:
    """One split: a text, a second text for pairs, and a label (a class index, or a number) for each row."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Rows":
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Rows([self.texts[i] for i in indices], pairs, [self.labels[i] for i in indices])


class Task(ABC):
    """What the training loop needs. Splits are "train" and "dev"; indices address the rows of a split.

    metric: the reported metric's name. num_labels: outputs of the model. problem: transformers' problem_type.
    notes: what differs from the published data, in words, for the record.
    """

    name: str
    metric: str
    num_labels: int
    problem: str
    notes: list[str]

    @abstractmethod
    def prepare(self, tokenizer: Any, max_length: int) -> None:
        """Tokenises every row, once; truncates to max_length tokens."""

    @abstractmethod
    def lengths(self, split: str) -> Sequence[int]:
        """Tokens of each row of a prepared split."""

    @abstractmethod
    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """A batch as arrays, padded to its longest row: input_ids (rows, tokens), ..., labels (rows,)."""

    def loss(self, outputs: Any) -> Any:
        """The mean loss over the rows of a batch, from the model's outputs. transformers computes it from labels."""
        return outputs.loss

    @abstractmethod
    def predict(self, outputs: Array) -> Array:
        """Predictions (rows,) from the model's logits (rows, num_labels)."""

    @abstractmethod
    def score(self, predictions: Array, labels: Array) -> float:
        """The metric, as a fraction (0.89, not 89)."""

    @abstractmethod
    def labels(self, split: str) -> Array:
        """The labels of a split."""


def fixed_subset(total: int, rows: int | None, name: str) -> list[int]:
    """The same `rows` indices of `total` every time, in order; all of them for None. It does not depend on any seed."""
    if rows is None or rows >= total:
        return list(range(total))
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return sorted(np.random.Generator(np.random.Philox(key)).permutation(total)[:rows].tolist())


def subset(rows: Rows, count: int | None, name: str) -> Rows:
    """A fixed random part of a split (`task.train_rows=`, `task.dev_rows=`)."""
    return rows if count is None else rows.take(fixed_subset(len(rows), count, name))
