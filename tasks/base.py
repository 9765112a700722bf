"""What every task is made of: rows, a source, and the contract that the training loop uses."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class DataError(ValueError):
    """Data are missing or wrong. The message is one line: which file, which line, how to mend."""


#: How much of a file's words an error shows: characters of a value, and names of a list.
SHOWN, LISTED = 80, 12
#: How many levels of lists and objects a JSON text may have. Rows, templates and a model's preprocessing have
#: five at most.
DEEPEST = 100


def quoted(value: Any) -> str:
    """A value of a file as an error shows it: Python's notation, of a long one its beginning and length."""
    return _cut(repr(value))


def listed(names: Iterable[Any]) -> str:
    """Names of a file as an error shows them: on one line, of many the first ones and how many more."""
    every = list(names)
    more = f" and {len(every) - LISTED:,} more" if len(every) > LISTED else ""
    return ", ".join(map(named, every[:LISTED])) + more


def named(value: Any) -> str:
    """A name of a file as an error shows it: on one line without quotation marks, of a long one its beginning
    and length."""
    return _cut(repr(str(value))[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises DataError, which begins with `where`, for what is no JSON or is deeper
    than DEEPEST.

    The limit is far below the depth at which Python gives up: what walks through the value later has room for
    it."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    except RecursionError:
        pass
    else:
        if text.count("[") + text.count("{") <= DEEPEST:  # as in every usual row
            return value
        level = [value]
        for _ in range(DEEPEST):
            level = [part for parts in level for part in _parts(parts) if isinstance(part, dict | list)]
            if not level:
                return value
    raise DataError(f"{where}: JSON of more than {DEEPEST} levels")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def check(settings: Mapping[str, Any], key: str, fits: bool, should: str) -> None:
    """Raises DataError, which says what a setting of the task should be, unless it fits."""
    if not fits:
        raise DataError(f"task.{key}={settings[key]}: should be {should}")


@dataclass(frozen=True)
class Source:
    """Where rows come from. Their content is part of a run's identity; the place is not.

    files: local files, hashed by content. pinned: a hash that stands for the content already (a hub revision
    or an archive's sha256). Neither: known only once the network has been asked.
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

    metric: the reported metric's name. higher_is_better: its direction. scale: what tables multiply its
    values by: 100, which makes a fraction a percentage, or 1. reported: the epoch whose value the task's
    table reports, the best or the last.
    num_labels: outputs of the model; 0: a language model, without a head.
    problem: transformers' problem_type. notes: what differs from the published data, in words, for the
    record.
    advice: what this machine lacks, said before a run starts and in no record.
    block: rows are shuffled, cut into blocks of this many batches, and sorted by length within a block, so
    that batches of like lengths waste little on padding; 1: plain random batches.
    decodes: whether the trained model writes texts at the end, which are scored (the class Decoding).
    pictures: whether a run ends with `illustrate`.
    unit: what `units` counts, as progress lines show it: tokens or images.
    selection: a hash that stands for the training rows, where they were drawn.
    unreadable: rows that were left out because they cannot be read, by name, with the reason.
    """

    name: str
    metric: str
    higher_is_better: bool = True
    scale: float = 100.0
    reported: Literal["best", "last"] = "best"
    num_labels: int
    problem: str
    notes: list[str]
    advice: Sequence[str] = ()
    block: int = 8
    decodes: bool = False
    pictures: bool = False
    unit: str = "tok"
    selection: str | None = None
    unreadable: Mapping[str, str] = {}

    def hold_out(self, share: float) -> None:
        """Makes a fixed random share in (0, 1) of the training rows the dev rows, whatever the seed; the
        task's own dev rows are dropped. Raises DataError where the family cannot, or the rows are too few."""
        raise DataError(
            f"task.holdout={share:g}: the task family of {self.name} cannot hold out training rows"
        )

    @abstractmethod
    def prepare(self, tokenizer: Any, max_length: int, positions: int | None = None) -> None:
        """Tokenises every row, once; truncates to max_length tokens. positions: how many the model has, if
        that is known.

        Of images, `tokenizer` is the model's preprocessing (tasks/images/pixels.py).
        """

    @abstractmethod
    def lengths(self, split: str) -> Sequence[int]:
        """Tokens of each row of a prepared split."""

    @abstractmethod
    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """A batch as arrays, padded to its longest row: input_ids (rows, tokens), ..., labels (rows,)."""

    def begin_epoch(self, epoch: int, batches: Sequence[Sequence[int]]) -> None:  # noqa: B027 - most need no notice
        """Told before an epoch's training: its number from 0, and the rows of this process's batches that are
        to come."""

    def units(self, batch: Mapping[str, Any]) -> int:
        """How much a batch is, for the pace: its tokens without the padding."""
        return int(batch["attention_mask"].sum())

    def fixed(self, split: str) -> bool:
        """Whether a row of a split is the same each time that it is collated, and the task has `logits`."""
        return False

    def logits(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """A batch's logits, (rows, classes), from the model, or from its head alone where the batch holds
        "features"."""
        raise NotImplementedError

    def weight(self, split: str, indices: Sequence[int]) -> float:
        """Over how many units a batch's loss is a mean: its rows, or a language model's tokens."""
        return len(indices)

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """The mean training loss of a batch (a scalar tensor). transformers computes it from labels."""
        return model(**batch).loss

    def answers(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, Array]:
        """The mean evaluation loss of a batch, and what `predict` needs of each row: here the logits (rows,
        num_labels)."""
        outputs = model(**batch)
        return float(outputs.loss), outputs.logits.float().cpu().numpy()

    @abstractmethod
    def predict(self, outputs: Array) -> Array:
        """Predictions from the answers of all rows, in their order."""

    @abstractmethod
    def score(self, predictions: Array, labels: Array) -> float:
        """The metric; of scale 100 as a fraction (0.89, not 89), of scale 1 as it is."""

    @abstractmethod
    def labels(self, split: str) -> Array:
        """The labels of a split."""

    def illustrate(self, folder: Path, predictions: Array) -> None:
        """Writes pictures of a finished run into its folder, from the last epoch's predictions of the dev
        rows."""
        raise NotImplementedError


class Decoding(Task):
    """A task whose trained model writes a text for each of `items`, scored at the end by more than one
    metric."""

    decodes = True
    split: str  # whose items they are
    items: list[Any]
    variants: list[str]  # each item's texts are written in these ways, the first of which is the protocol's

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How texts are decoded, for the record."""

    @abstractmethod
    def decode(self, model: Any, indices: Sequence[int]) -> list[dict[str, str]]:
        """For each of these items its texts by variant."""

    @abstractmethod
    def rehearse(self, model: Any) -> None:
        """Writes a word or two of one item, before training. Raises DataError for a model that cannot be
        decoded so."""

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> dict[str, Any]:
        """The metrics of a text for every item, None where one cannot be had, and the reasons under
        "unavailable"."""

    @abstractmethod
    def write(self, folder: Path, texts: Mapping[str, Sequence[str]]) -> None:
        """Writes texts by name, and what they are scored against, as files in the format of the metrics' own
        scripts."""


def block(settings: Mapping[str, Any]) -> int:
    """Task.block by task.length_grouped. Records from before that key have batches of like lengths."""
    return Task.block if settings.get("length_grouped", True) else 1


def fixed_subset(total: int, rows: int | None, name: str) -> list[int]:
    """The same `rows` indices of `total` every time, in order; all of them for None. It does not depend on
    any seed."""
    if rows is None or rows >= total:
        return list(range(total))
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return sorted(np.random.Generator(np.random.Philox(key)).permutation(total)[:rows].tolist())


def held_out(groups: Sequence[Any], share: float, name: str) -> list[int]:
    """Indices of a fixed random share of each group's rows, in order: at least one row of a group and at
    least one less than all, where it has two. groups: the group of each row. Raises DataError where fewer
    than two rows come out."""
    members: dict[Any, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    found: list[int] = []
    for group, rows in members.items():
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        found += [rows[i] for i in fixed_subset(len(rows), count, f"{name}, held out, {group}")]
    if len(found) < 2:
        raise DataError(
            f"task.holdout={share:g}: {name} has too few training rows, two at least should be held out"
        )
    return sorted(found)


def subset(rows: Rows, count: int | None, name: str) -> Rows:
    """A fixed random part of a split (`task.train_rows=`, `task.dev_rows=`)."""
    return rows if count is None else rows.take(fixed_subset(len(rows), count, name))
