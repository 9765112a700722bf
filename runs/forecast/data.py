"""The rows that a run trains and is evaluated on, and their lengths, before it is done:
as published (conf/rows.yaml), or counted in local files."""

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
#: Shares of the rows, sorted by length, at which conf/rows.yaml has the length. The
#: longest row of a batch decides how much is computed, so the grid is finer at its end.
GRID = (
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
#: The places in 0 to 1 of a sample of the rows, for which lengths are interpolated.
EVENLY = (np.arange(2000) + 0.5) / 2000
#: A row's tokens in text that nobody has tokenised: a token for so many characters, and
#: the special tokens of a pair.
CHARACTERS_OF_TOKEN, SPECIAL_TOKENS = 4, 3


@dataclass(frozen=True)
class Lengths:
    """The rows of a split, and of a sample of them the tokens; () where no length is
    known. predicted: how many of a row's tokens a language model is trained to predict,
    on average."""

    rows: int
    tokens: Any = ()
    predicted: float = 0.0

    @property
    def mean(self) -> float:
        """The tokens of a row, on average."""
        return float(np.mean(self.tokens))

    def longer(self, tokens: int) -> "Lengths":
        """These lengths with so many more predicted tokens in each row."""
        if not len(self.tokens):
            return self
        return Lengths(self.rows, self.tokens + tokens, self.predicted + tokens)

    def cut(self, longest: float) -> "Lengths":
        """These lengths where rows are cut to so many tokens. The end of a row is cut,
        which is predicted."""
        cut = Lengths(self.rows, np.minimum(self.tokens, longest))
        return replace(cut, predicted=max(self.predicted - (self.mean - cut.mean), 0.0))

    def padded(self, batch: int, block: int = 1) -> float:
        """A row's tokens on average, padded to the longest of its batch, in a run's
        `epoch_batches`."""
        padded_tokens = 0.0
        for rows in epoch_batches(self.tokens, batch, 0, 0, block):
            padded_tokens += len(rows) * max(self.tokens[row] for row in rows)
        return padded_tokens / len(self.tokens)


class PlannedRows(NamedTuple):
    """The rows for training and for evaluation, and in words how both are known."""

    train: Lengths
    dev: Lengths
    basis: str


@cache
def known_data(settings: str) -> PlannedRows | None:
    """The data of a run with these settings of its task (JSON); None where its number
    of rows is not known. Local files are counted; of the hub's data these are the
    published numbers (conf/rows.yaml), of which a run may leave some out."""
    task: Settings = json.loads(settings)
    published = in_conf("rows.yaml").get(task["name"])
    data = None
    if task.get("data_dir") or task.get("train_file") or not published:
        # of bad data: the run itself raises it
        with contextlib.suppress(UserError, tasks.DataError):
            data = _counted(task) if tasks.source(task).files else None
    if not published:
        return data
    if data is None:
        train, dev = _published(task, published)
        data = PlannedRows(train, dev, "rows as published (conf/rows.yaml)")
    tokens = published.get("tokens")
    if not tokens:
        return data
    basis = [data.basis.partition(";")[0]]
    basis.append(published.get("lengths", "lengths as published, in GPT-2's tokens"))
    if published.get("note"):
        basis.append(published["note"])
    # held-out rows are training rows
    dev_tokens = tokens["train" if task.get("holdout") else "dev"]
    return PlannedRows(
        _interpolated(data.train.rows, tokens["train"]),
        _interpolated(data.dev.rows, dev_tokens),
        "; ".join(basis),
    )


def _interpolated(rows: int, entry: Settings) -> Lengths:
    """The lengths of rows by an entry `tokens` of conf/rows.yaml."""
    lengths = np.interp(EVENLY, GRID, entry["at"])
    return Lengths(rows, lengths, entry.get("predicted", 0.0))


def _published(task: Settings, entry: Settings) -> tuple[Lengths, Lengths]:
    """The rows for training and for evaluation, from an entry of conf/rows.yaml and the
    task's settings."""
    train, dev = entry["rows"].values()
    train = min(train, task.get("first_rows") or train)
    if "classes" in entry:
        train, dev = _rows_of_images(task, entry["classes"], train, dev)
    else:
        train, dev = _rows_of_texts(task, train, dev)
    share = task.get("holdout")
    if share:  # of each class, which rounds
        shots = task.get("shots")
        groups = entry["classes"] if shots else 1
        dev = max(math.ceil(share * (shots or train)) * groups, 2)
        train -= dev
    return Lengths(train), Lengths(dev)


def _rows_of_images(
    task: Settings, classes: int, train: int, dev: int
) -> tuple[int, int]:
    """`shots` images of each class, or all; evaluated on the test set or the rest."""
    total = train
    if task.get("shots"):
        train = classes * task["shots"]
    dev = dev or total - train
    return train, min(task.get("dev_rows") or dev, dev)


def _rows_of_texts(task: Settings, train: int, dev: int) -> tuple[int, int]:
    """Without a dev set its rows are held out of the training rows. A row whose prompt
    fills max_length is left out."""
    held_out = 0 if dev else task["dev_rows"]
    available = train - held_out
    train = min(task.get("train_rows") or available, available)
    return train, task.get("dev_rows") or dev


def _counted(task: Settings) -> PlannedRows:
    """By reading the files; of texts the lengths, too. Raises UserError or DataError
    for bad data."""
    if task["family"] == "e2e":
        task = {**task, "decode": "none"}
    loaded: Any = tasks.load(task)
    if task["family"] == "images":
        rows = {"train": len(loaded.set.train), "dev": len(loaded.set.test or ())}
        entry = {"rows": rows, "classes": loaded.num_labels}
        train, dev = _published(task, entry)
        return PlannedRows(train, dev, "rows counted")
    is_exact = isinstance(loaded, ExactTask)
    train, dev = (
        _guessed(loaded.splits[split], is_exact) for split in ("train", "dev")
    )
    return PlannedRows(
        train, dev, "rows counted; lengths assumed, four characters a token"
    )


def _guessed(rows: Any, is_exact: bool) -> Lengths:
    """The lengths of a split, from its characters. is_exact: its rows are prompts and
    responses, of which the responses are predicted."""
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
        responses = [len(pair[1]) / CHARACTERS_OF_TOKEN + 1 for pair in pairs]
        predicted = float(np.mean(responses))
    return Lengths(len(rows), tokens, predicted)


@cache
def known_texts(settings: str) -> int:
    """How many texts a run with these settings of its task (JSON) decodes with an
    adapter: the published items (conf/rows.yaml) or those of its files; 0 where that is
    not known."""
    task: Settings = json.loads(settings)
    if task.get("decode", "none") == "none":
        return 0
    published = in_conf("rows.yaml").get(task["name"], {}).get("items")
    if published:
        limit = task.get("items") or task.get("test_rows") or math.inf
        names = task.get("tests") or [task["decode"]]
        return sum(int(min(published[name], limit)) for name in names)
    # of bad data: the run itself raises it
    with contextlib.suppress(UserError, tasks.DataError):
        if tasks.source(task).files:
            return len(getattr(tasks.load(task), "items", ()))
    return 0


def as_read(run: Run, lengths: Lengths) -> Lengths:
    """The lengths of a split's rows as the model reads them: cut to its longest, or the
    patches of images."""
    architecture = models.architecture_of(run.config["model"])
    if run.config["task"]["modality"] == "image":
        side = run.config["task"].get("image_size") or models.image_side(
            architecture.get("model_type"), architecture.get("image_size")
        )
        patches = (side // architecture.get("patch_size", side)) ** 2 + 1
        return Lengths(lengths.rows, [patches])
    longest = run.config["train"]["max_length"]
    for key in ("max_position_embeddings", "n_positions"):
        if architecture.get(key):
            longest = min(longest, architecture[key])
            break
    return lengths.cut(longest) if len(lengths.tokens) else lengths
