"""The rows that a run will train on and be evaluated on, and their lengths, before
anything is loaded: as published (conf/rows.yaml), or counted in local files."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import tasks
from runs import models
from runs.command.errors import UserError
from runs.record.ledger import in_conf
from runs.run.definition import Run, epoch_batches
from tasks.exact import ExactTask

#: Settings of a task, or an entry of conf/rows.yaml.
Settings = Mapping[str, Any]
#: The shares of the rows, sorted by length, for which conf/rows.yaml has the length of
#: the last one. The longest row of a batch decides how much is computed, so there are
#: more shares near 1.
LENGTH_SHARES = (
    0,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.975,
    0.99,
    0.995,
    0.999,
    1,
)
#: The shares at which lengths are interpolated: a sample of the rows, evenly spaced.
SAMPLE_SHARES = (np.arange(2000) + 0.5) / 2000
#: How the tokens of a text are guessed that nobody has tokenised: so many characters a
#: token, and the special tokens of a pair.
CHARACTERS_OF_TOKEN = 4
SPECIAL_TOKENS = 3


@dataclass(frozen=True)
class Lengths:
    """The number of rows of a split, and how long they are.

    Attributes:
        rows: how many rows there are.
        tokens: the length of each row, or of a sample of them; () where no length is
            known.
        predicted: how many of a row's tokens a language model is trained to predict, on
            average.
    """

    rows: int
    tokens: Any = ()
    predicted: float = 0.0

    @property
    def mean(self) -> float:
        """The tokens of a row, on average."""
        return float(np.mean(self.tokens))

    def with_more_predicted(self, tokens: int) -> "Lengths":
        """These lengths with so many more predicted tokens in each row."""
        if not len(self.tokens):
            return self
        return Lengths(self.rows, self.tokens + tokens, self.predicted + tokens)

    def cut_to(self, longest: float) -> "Lengths":
        """These lengths with rows cut to at most `longest` tokens. A row loses its end,
        which is what a language model predicts."""
        shortened = Lengths(self.rows, np.minimum(self.tokens, longest))
        lost_tokens = self.mean - shortened.mean
        predicted = max(self.predicted - lost_tokens, 0.0)
        return replace(shortened, predicted=predicted)

    def padded_mean(self, batch: int, block: int = 1) -> float:
        """The tokens of a row on average, padded to the longest row of its batch, over
        the batches of one epoch. batch, block: size and block of `epoch_batches`."""
        padded_tokens = 0.0
        batches = epoch_batches(self.tokens, size=batch, seed=0, epoch=0, block=block)
        for rows in batches:
            padded_tokens += len(rows) * max(self.tokens[row] for row in rows)
        return padded_tokens / len(self.tokens)


class PlannedRows(NamedTuple):
    """The rows for training and for evaluation. source: where their number and their
    lengths come from, in words."""

    train: Lengths
    dev: Lengths
    source: str


@cache
def planned_rows(settings: str) -> PlannedRows | None:
    """The rows of a run; None where their number is not known.

    Their number is counted in local files. For data of the hub it is the published one
    (conf/rows.yaml), although a run may leave some of them out. Their lengths are those
    of conf/rows.yaml where it has them.

    settings: those of the run's task, as JSON, which the cache takes."""
    task: Settings = json.loads(settings)
    published = in_conf("rows.yaml").get(task["name"])
    data = None
    if task.get("data_dir") or task.get("train_file") or not published:
        # the run itself shows what is wrong with bad data
        with contextlib.suppress(UserError, tasks.DataError):
            if tasks.source(task).files:
                data = _count_rows(task)
    if not published:
        return data
    if data is None:
        train, dev = _published_rows(task, published)
        data = PlannedRows(train, dev, "rows as published (conf/rows.yaml)")
    tokens = published.get("tokens")
    if not tokens:
        return data
    # the part on the rows; published lengths replace those that _count_rows guesses
    sources = [data.source.partition(";")[0]]
    sources.append(published.get("lengths", "lengths as published, in GPT-2's tokens"))
    if published.get("note"):
        sources.append(published["note"])
    # held-out rows are training rows
    dev_tokens = tokens["train" if task.get("holdout") else "dev"]
    return PlannedRows(
        _interpolate_lengths(data.train.rows, tokens["train"]),
        _interpolate_lengths(data.dev.rows, dev_tokens),
        "; ".join(sources),
    )


def _interpolate_lengths(rows: int, entry: Settings) -> Lengths:
    """The lengths of so many rows. entry: a split's part of `tokens` in conf/rows.yaml,
    with the lengths at LENGTH_SHARES (at)."""
    lengths = np.interp(SAMPLE_SHARES, LENGTH_SHARES, entry["at"])
    return Lengths(rows, lengths, entry.get("predicted", 0.0))


def _published_rows(task: Settings, entry: Settings) -> tuple[Lengths, Lengths]:
    """The numbers of rows for training and for evaluation under a task's settings, as
    Lengths without lengths. entry: of conf/rows.yaml, with the numbers of all rows."""
    train, dev = entry["rows"]["train"], entry["rows"]["dev"]
    train = min(train, task.get("first_rows") or train)
    if "classes" in entry:
        train, dev = _rows_of_images(task, entry["classes"], train, dev)
    else:
        train, dev = _rows_of_texts(task, train, dev)
    share = task.get("holdout")
    if share:
        # with shots the same number of each class is held out
        shots = task.get("shots")
        groups = entry["classes"] if shots else 1
        # a run needs two dev rows (check_dev_rows)
        dev = max(math.ceil(share * (shots or train)) * groups, 2)
        train -= dev
    return Lengths(train), Lengths(dev)


def _rows_of_images(
    task: Settings, classes: int, train: int, dev: int
) -> tuple[int, int]:
    """The numbers of images for training and evaluation. A run trains on `shots` of each
    class, or on all images. It is evaluated on the test set, or on the images that are
    left over where there is none. train, dev: the numbers of all images."""
    total = train
    if task.get("shots"):
        train = classes * task["shots"]
    dev = dev or total - train
    return train, min(task.get("dev_rows") or dev, dev)


def _rows_of_texts(task: Settings, train: int, dev: int) -> tuple[int, int]:
    """The numbers of texts for training and evaluation. A task without a dev set holds
    its dev rows out of the training rows. train, dev: the numbers of all texts."""
    held_out = 0 if dev else task["dev_rows"]
    available = train - held_out
    train = min(task.get("train_rows") or available, available)
    return train, task.get("dev_rows") or dev


def _count_rows(task: Settings) -> PlannedRows:
    """The rows of local files, and the lengths of texts as their characters suggest.
    Raises UserError or DataError for bad data."""
    if task["family"] == "e2e":
        # the test set, which would be decoded, is not needed here
        task = {**task, "decode": "none"}
    loaded: Any = tasks.load(task)
    if task["family"] == "images":
        rows = {"train": len(loaded.set.train), "dev": len(loaded.set.test or ())}
        # shaped like an entry of conf/rows.yaml
        entry = {"rows": rows, "classes": loaded.num_labels}
        train, dev = _published_rows(task, entry)
        return PlannedRows(train, dev, "rows counted")
    is_exact = isinstance(loaded, ExactTask)
    train = _guess_lengths(loaded.splits["train"], is_exact)
    dev = _guess_lengths(loaded.splits["dev"], is_exact)
    return PlannedRows(
        train, dev, "rows counted; lengths assumed, four characters a token"
    )


def _guess_lengths(rows: Any, is_exact: bool) -> Lengths:
    """The lengths of a split's rows, guessed from their characters; without lengths for
    rows that are no texts. is_exact: whether the rows are pairs of a prompt and a
    response, which is what a model predicts."""
    pairs: list[tuple[str, str]] = []
    if is_exact:
        pairs = rows
    elif isinstance(rows, tasks.Rows):
        seconds = rows.pairs or [""] * len(rows)
        pairs = list(zip(rows.texts, seconds, strict=True))
    tokens = list[float]()
    for first, second in pairs:
        characters = len(first) + len(second)
        tokens.append(characters / CHARACTERS_OF_TOKEN + SPECIAL_TOKENS)
    predicted = 0.0
    if is_exact:
        # and the token that ends a response
        responses = [len(pair[1]) / CHARACTERS_OF_TOKEN + 1 for pair in pairs]
        predicted = float(np.mean(responses))
    return Lengths(len(rows), tokens, predicted)


@cache
def count_decoded_texts(settings: str) -> int:
    """How many texts a run decodes with one adapter: one for each item that is published
    (conf/rows.yaml) or in its files; 0 where that is not known, or it decodes none.
    settings: those of the run's task, as JSON, which the cache takes."""
    task: Settings = json.loads(settings)
    if task.get("decode", "none") == "none":
        return 0
    published = in_conf("rows.yaml").get(task["name"], {}).get("items")
    if published:
        limit = task.get("items") or task.get("test_rows") or math.inf
        names = task.get("tests") or [task["decode"]]
        return sum(int(min(published[name], limit)) for name in names)
    # the run itself shows what is wrong with bad data
    with contextlib.suppress(UserError, tasks.DataError):
        if tasks.source(task).files:
            return len(getattr(tasks.load(task), "items", ()))
    return 0


def lengths_as_read(run: Run, lengths: Lengths) -> Lengths:
    """The lengths of a split's rows as the model reads them: texts cut to the longest
    that it takes, images in patches."""
    architecture = models.architecture_of(run.config["model"])
    if run.config["task"]["modality"] == "image":
        side = run.config["task"].get("image_size") or models.image_side(
            architecture.get("model_type"), architecture.get("image_size")
        )
        # and the class token
        patches = (side // architecture.get("patch_size", side)) ** 2 + 1
        return Lengths(lengths.rows, [patches])
    longest = run.config["train"]["max_length"]
    for key in ("max_position_embeddings", "n_positions"):
        if architecture.get(key):
            longest = min(longest, architecture[key])
            break
    return lengths.cut_to(longest) if len(lengths.tokens) else lengths
