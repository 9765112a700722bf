"""What every task is made of: rows, a source, and the contract that the training loop
uses."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Array = npt.NDArray[Any]
#: A batch as tensors on the model's device, by the names that Task.collate gives.
Batch = Mapping[str, "Tensor"]
#: A task's part of the configuration (conf/task/NAME.yaml), which the schema in runs/
#: has checked.
Settings = Mapping[str, Any]


class DataError(ValueError):
    """Data are missing or wrong. The message is one line: the file, the line, and how
    to mend it."""


#: The most characters of a file's value in an error message.
SHOWN_CHARACTERS = 80
#: The most names of a list in an error message.
LISTED_NAMES = 12


def quoted(value: object) -> str:
    """A file's value for an error message: in Python's notation, shortened."""
    return _shortened(repr(value), SHOWN_CHARACTERS)


def unquoted(value: object, characters: int = SHOWN_CHARACTERS) -> str:
    """A file's name or text for an error message: on one line, without quotation marks,
    shortened."""
    return _shortened(repr(str(value))[1:-1], characters)


def _shortened(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return f"{text[:characters]}... ({len(text):,} characters)"


def list_names(names: Iterable[object]) -> str:
    """Names of a file for an error message: the first ones, and how many more there
    are."""
    names = list(names)
    text = ", ".join(unquoted(name) for name in names[:LISTED_NAMES])
    if len(names) > LISTED_NAMES:
        text += f" and {len(names) - LISTED_NAMES:,} more"
    return text


def first_line(error: BaseException) -> str:
    """The first line of another library's message; the name of the error's class where
    it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def require_columns(
    location: Path | str, row: Collection[str], columns: Iterable[str], hint: str = ""
) -> None:
    """Raises DataError unless the row has every column. location: where the row is (a
    file, or a file and a line), which begins the message. hint: ends the message."""
    for column in columns:
        if column not in row:
            names = list_names(row) or "nothing"
            raise DataError(f"{location}: no column {column!r}. It has: {names}{hint}")


def check_setting(settings: Settings, key: str, is_valid: bool, expected: str) -> None:
    """Raises DataError unless a setting of the task is valid. expected: what it should
    be, for the message."""
    if not is_valid:
        value = "null" if settings[key] is None else settings[key]
        raise DataError(f"task.{key}={value}: should be {expected}")


@dataclass(frozen=True)
class Source:
    """Where rows come from. Their content is part of a run's identity, their location
    is not.

    files: local files, which are hashed. pinned: a hub revision or an archive's sha256,
    which stands for the content. With neither, the content is known only after a
    download."""

    files: Mapping[str, Path] = field(default_factory=dict)
    pinned: str | None = None


@dataclass
class Rows:
    """One split: a text, a second text for pairs, and a label (a class index, or a
    number) for each row.

    about: columns that tell people which rows these are: the file of each, its number
    there (from 1), and its own id if it has one."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[float]
    about: dict[str, list[Any]] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Rows":
        """The rows with these indices, in their order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        about = {}
        for column, values in self.about.items():
            about[column] = [values[i] for i in indices]
        texts = [self.texts[i] for i in indices]
        labels = [self.labels[i] for i in indices]
        return Rows(texts, pairs, labels, about)

    def join(self, other: "Rows") -> "Rows":
        """These rows and then the other's, which have the same columns."""
        pairs = None
        if self.pairs is not None and other.pairs is not None:
            pairs = self.pairs + other.pairs
        about = {}
        for column, values in self.about.items():
            about[column] = values + other.about[column]
        labels: Any = [*self.labels, *other.labels]
        return Rows(self.texts + other.texts, pairs, labels, about)


class Task(ABC):
    """What the training loop needs of a task. A split is "train" or "dev", and its rows
    have indices from 0."""

    name: str
    #: The reported metric, and its direction.
    metric: str
    higher_is_better: bool = True
    #: The factor in tables: 100 for a percentage, or 1.
    scale: float = 100.0
    #: The epoch that the task's table reports.
    reported: Literal["best", "last"] = "best"
    #: Outputs of the model; 0 for a language model, which has no head.
    num_labels: int
    #: transformers' problem_type.
    problem: str
    #: Differences from the published data or protocol, in words, for the record.
    notes: list[str]
    #: What is printed before a run and not recorded, such as what this machine lacks.
    advice: Sequence[str] = ()
    #: Rows are shuffled, cut into blocks of this many batches, and sorted by length
    #: within a block, which saves padding. 1 gives plain random batches.
    block: int = 8
    #: Whether the trained model writes texts that are scored (the class Written).
    decodes: bool = False
    #: What the displayed pace counts: "tok" (tokens without padding) or "img" (rows).
    unit: str = "tok"
    #: A hash of the training rows, where they are a draw from more rows.
    selection: str | None = None
    #: A text that is not trained on, of which a language model's loss shows what it
    #: forgets (tasks/forgetting.py).
    fixed_text: Any = None
    #: Mean and standard deviation of the training labels, where the model is trained to
    #: answer (label - mean) / deviation; None where it answers labels as they are.
    scaling: tuple[float, float] | None = None
    #: For each item that is scored (the items of a task that decodes, else the dev
    #: rows) the number of its group, where items resemble each other. Statistics count
    #: a group as one unit. None: each item is a unit.
    item_groups: Sequence[int] | None = None
    #: Whether the model's answers to dev rows are read and scored at the end of an epoch
    #: (tasks/exact.py).
    answers_dev: bool = False

    def hold_out(self, share: float) -> None:
        """Replaces the dev rows by a random share in (0, 1) of the training rows, the
        same for every seed. Raises DataError for a family without this, or too few
        rows."""
        raise DataError(
            f"task.holdout={share:g}: the family of {self.name} holds no training rows out"
        )

    def take_fold(self, fold: int, folds: int) -> None:
        """Replaces the dev rows by one of `folds` parts of the training rows, and
        trains on the others. The parts are the same for every seed. Raises DataError
        for a family without this."""
        raise DataError(
            f"task.folds={folds}: the family of {self.name} has no folds. task=text has"
        )

    @abstractmethod
    def prepare(
        self, tokenizer: Any, max_length: int, positions: int | None = None
    ) -> None:
        """Tokenises every row, truncated to max_length tokens.

        tokenizer: of transformers; for images the model's preprocessing
        (tasks/images/pixels.py). positions: the most tokens that the model has positions
        for; None where that is not known."""

    @abstractmethod
    def lengths(self, split: str) -> Sequence[int]:
        """Tokens of each row of a prepared split."""

    @abstractmethod
    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """The batch of these rows as arrays, padded to the longest row. Its names are those
        of the model's arguments: input_ids (rows, tokens), labels (rows,) and so on."""

    @abstractmethod
    def labels(self, split: str) -> Array:
        """The labels (rows,) of a split."""

    def about(self, split: str) -> Mapping[str, Sequence[Any]]:
        """Columns that tell people which rows a split has, in the order of the rows."""
        return {"row": range(1, len(self.lengths(split)) + 1)}

    def weight(self, split: str, indices: Sequence[int]) -> float:
        """How many units the mean loss of a batch is taken over: rows, or tokens for a
        language model."""
        return len(indices)

    def loss(self, model: "Module", batch: Batch) -> "Tensor":
        """The mean training loss of a batch, a scalar. By default it is the one that
        transformers' models compute."""
        return model(**batch).loss

    def answers(self, model: "Module", batch: Batch) -> tuple[float, Array]:
        """The mean evaluation loss of a batch, and the outputs that `predict` takes: logits
        (rows, num_labels)."""
        outputs = model(**batch)
        return float(outputs.loss), outputs.logits.float().cpu().numpy()

    def predict(self, outputs: Array) -> Array:
        """Predictions (rows,) from the outputs of all rows: class indices, or the
        numbers of a regression."""
        if self.problem == "regression":
            return outputs[:, 0]
        classes: Array = outputs.argmax(-1)
        return classes

    def score(self, predictions: Array, labels: Array) -> float:
        """The metric, before tables scale it: an accuracy is a fraction, 0.89."""
        # imports evaluate and with it torch, which a plan does not need
        from tasks.metrics import score

        return score(self.metric, predictions, labels)

    def illustrate(self, folder: Path, predictions: Array) -> None:  # noqa: B027 - few have any
        """Draws the task's own pictures into a finished run's folder. predictions: those
        for the dev rows, (rows,)."""


def prompts_at_once(eval_batch: int, beams: int, on_gpu: bool) -> int:
    """How many prompts are decoded together. eval_batch: the setting of that name. On a
    GPU it counts prompts, each with all of its beams; on a CPU it limits prompts times
    beams."""
    return eval_batch if on_gpu else max(1, eval_batch // beams)


def block_size(settings: Settings) -> int:
    """The value of Task.block: its default with task.length_grouped, or 1 (random
    batches) without. Records from before that setting grouped rows by length."""
    return Task.block if settings.get("length_grouped", True) else 1


def fixed_subset(total: int, rows: int | None, name: str) -> list[int]:
    """Draws `rows` of the indices below `total`, in ascending order; all of them where
    rows is None or not smaller. The name alone seeds the draw."""
    if rows is None or rows >= total:
        return list(range(total))
    permutation = _permutation(total, name)
    return sorted(permutation[:rows])


def _permutation(total: int, name: str) -> list[int]:
    """The indices below `total` in a random order. The name alone is the seed."""
    digest = hashlib.sha256(name.encode()).digest()
    key = int.from_bytes(digest[:8], "little")
    generator = np.random.Generator(np.random.Philox(key))
    indices: list[int] = generator.permutation(total).tolist()
    return indices


def draw_held_out_rows(
    groups: Sequence[Hashable], share: float, name: str
) -> list[int]:
    """Draws a share of the rows of each group. A group of two or more rows keeps at least
    one and gives at least one.

    Args:
        groups: the group of each row, such as its class; the same for all rows where
            there are no classes.
        share: in (0, 1).
        name: the task's, which alone decides which rows are drawn.

    Returns the rows' indices in ascending order. Raises DataError where they are fewer
    than two."""
    rows_by_group: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows_by_group.setdefault(group, []).append(row)
    held_rows: list[int] = []
    for group, rows in rows_by_group.items():
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        indices = fixed_subset(len(rows), count, f"{name}, held out, {group}")
        held_rows += [rows[i] for i in indices]
    if len(held_rows) < 2:
        raise DataError(f"task.holdout={share:g}: {name} has too few training rows")
    return sorted(held_rows)


def draw_folds(groups: Sequence[Hashable], folds: int, name: str) -> list[int]:
    """Draws the fold of each row, a number from 0. The sizes of two folds differ by one
    row at most, and so does how many rows of a group they have.

    Args:
        groups: the group of each row.
        folds: how many there are.
        name: the task's, which alone decides the draw.

    Raises DataError for fewer rows than folds."""
    if len(groups) < folds:
        raise DataError(f"task.folds={folds}: {name} has {len(groups)} training rows")
    shuffled_rows = _permutation(len(groups), f"{name}, folds")
    group_numbers: dict[Hashable, int] = {}
    for group in groups:
        group_numbers.setdefault(group, len(group_numbers))
    # Group after group, the shuffled rows are dealt out to the folds in turn
    rows_in_groups = sorted(shuffled_rows, key=lambda row: group_numbers[groups[row]])
    fold_of_row = [0] * len(groups)
    for position, row in enumerate(rows_in_groups):
        fold_of_row[row] = position % folds
    return fold_of_row
