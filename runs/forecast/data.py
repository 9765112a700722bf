"""The rows that a run trains and is evaluated on, and their lengths, before it is done:
as published (conf/rows.yaml), or counted in local files."""

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import tasks
from runs import models
from runs.command.errors import UserError
from runs.record.ledger import in_conf
from runs.run.definition import Run, epoch_batches
from tasks.exact import ExactTask

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
EVENLY = (np.arange(2000) + 0.5) / 2000  # those of a sample of the rows


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

    def cut(self, longest: float) -> "Lengths":
        """These lengths where rows are cut to so many tokens. The end of a row is cut,
        which is predicted."""
        cut = Lengths(self.rows, np.minimum(self.tokens, longest))
        return replace(cut, predicted=max(self.predicted - (self.mean - cut.mean), 0.0))

    def padded(self, batch: int, block: int = 1) -> float:
        """A row's tokens on average, padded to the longest of its batch, in a run's
        `epoch_batches`."""
        batches = epoch_batches(self.tokens, batch, 0, 0, block)
        return sum(
            len(rows) * max(self.tokens[row] for row in rows) for rows in batches
        ) / len(self.tokens)


@cache
def known_data(settings: str) -> tuple[Lengths, Lengths, str] | None:
    """The rows for training and for evaluation of a run with these settings of its task
    (JSON), and in words how both are known; None where they are not. Local files are
    counted; of the hub's data these are the published numbers (conf/rows.yaml), of
    which a run may leave some out."""
    task: dict[str, Any] = json.loads(settings)
    published, data = in_conf("rows.yaml").get(task["name"]), None
    if task.get("data_dir") or task.get("train_file") or not published:
        # of bad data: the run itself raises it
        with contextlib.suppress(UserError, tasks.DataError):
            data = _counted(task) if tasks.source(task).files else None
    if not published:
        return data
    data = data or (*_published(task, published), "rows as published (conf/rows.yaml)")
    if not (tokens := published.get("tokens")):
        return data
    lengths = published.get("lengths", "lengths as published, in GPT-2's tokens")
    words = [data[2].partition(";")[0], lengths, published.get("note")]
    parts = [tokens["train"], tokens["train" if task.get("holdout") else "dev"]]
    train, dev = (
        Lengths(
            of.rows, np.interp(EVENLY, GRID, part["at"]), part.get("predicted", 0.0)
        )
        for of, part in zip(data[:2], parts, strict=True)
    )
    return train, dev, "; ".join(filter(None, words))


def _published(
    task: Mapping[str, Any], entry: Mapping[str, Any]
) -> tuple[Lengths, Lengths]:
    """From an entry of conf/rows.yaml and the task's settings."""
    (train, dev), share, shots = (
        entry["rows"].values(),
        task.get("holdout"),
        task.get("shots"),
    )
    train = min(train, task.get("first_rows") or train)
    # images: `shots` of each class, or all; evaluated on the test set or on the rest
    if "classes" in entry:
        train, rest = (entry["classes"] * shots if shots else train), train
        dev = dev or rest - train
        dev = min(task.get("dev_rows") or dev, dev)
    else:
        # Without a dev set its rows are held out, and a row whose prompt fills
        # max_length is left out
        held = 0 if dev else task["dev_rows"]
        dev = task.get("dev_rows") or dev
        train = min(task.get("train_rows") or train - held, train - held)
    if share:  # of each class, which rounds
        dev = max(
            math.ceil(share * (shots or train)) * (entry["classes"] if shots else 1), 2
        )
        train -= dev
    return Lengths(train), Lengths(dev)


def _counted(task: Mapping[str, Any]) -> tuple[Lengths, Lengths, str]:
    """By reading the files; of texts the lengths, too. Raises UserError or DataError
    for bad data."""
    loaded: Any = tasks.load(
        {**task, "decode": "none"} if task["family"] == "e2e" else task
    )
    if task["family"] == "images":
        rows = {"train": len(loaded.set.train), "dev": len(loaded.set.test or ())}
        return (
            *_published(task, {"rows": rows, "classes": loaded.num_labels}),
            "rows counted",
        )
    # whose rows are prompts and responses
    found, exact = list[Lengths](), isinstance(loaded, ExactTask)
    for rows in (loaded.splits["train"], loaded.splits["dev"]):
        texts = rows if isinstance(rows, tasks.Rows) else None
        pairs = (
            [*zip(texts.texts, texts.pairs or [""] * len(rows), strict=True)]
            if texts
            else []
        )
        pairs = rows if exact else pairs
        tokens = [(len(one) + len(other)) / 4 + 3 for one, other in pairs]
        predicted = (
            float(np.mean([len(of) / 4 + 1 for _, of in pairs])) if exact else 0.0
        )
        found.append(Lengths(len(rows), tokens, predicted))
    return found[0], found[1], "rows counted; lengths assumed, four characters a token"


@cache
def known_texts(settings: str) -> int:
    """How many texts a run with these settings of its task (JSON) decodes with an
    adapter: the published items (conf/rows.yaml) or those of its files; 0 where that is
    not known."""
    task: dict[str, Any] = json.loads(settings)
    if task.get("decode", "none") == "none":
        return 0
    if published := in_conf("rows.yaml").get(task["name"], {}).get("items"):
        most = task.get("items") or task.get("test_rows") or math.inf
        return sum(
            int(min(published[of], most))
            for of in task.get("tests") or [task["decode"]]
        )
    # of bad data: the run itself raises it
    with contextlib.suppress(UserError, tasks.DataError):
        return (
            len(getattr(tasks.load(task), "items", ()))
            if tasks.source(task).files
            else 0
        )
    return 0


def as_read(run: Run, lengths: Lengths) -> Lengths:
    """The lengths of a split's rows as the model reads them: cut to its longest, or the
    patches of images."""
    get, longest = (
        models.architecture_of(run.config["model"]).get,
        run.config["train"]["max_length"],
    )
    if run.config["task"]["modality"] == "image":
        side = run.config["task"].get("image_size") or models.image_side(
            get("model_type"), get("image_size")
        )
        patches = (side // get("patch_size", side)) ** 2 + 1
        return Lengths(lengths.rows, [patches])
    longest = min(
        longest, get("max_position_embeddings") or get("n_positions") or longest
    )
    return lengths.cut(longest) if len(lengths.tokens) else lengths
