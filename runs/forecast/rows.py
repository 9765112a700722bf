"""How many rows of data a run has for training and evaluation, and how long they are in tokens."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import yaml

import tasks
from runs.config import CONF
from runs.errors import UserError
from runs.run import Run

#: Larger files are not read to count their rows.
QUICK_BYTES = 16_000_000
#: Shares of the rows, sorted by length, at which the length is known. The longest row of a batch decides how
#: much is computed, so the grid is finer at its end.
GRID = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 1)
#: Shares over which a mean is taken.
EVENLY = (np.arange(2000) + 0.5) / 2000


@dataclass(frozen=True)
class Lengths:
    """The lengths of a split's rows, in tokens. at: at the shares of GRID, or () where no length is known.
    predicted: how many of a row's tokens a language model is trained to predict, on average."""

    rows: int
    mean: float = 0.0
    at: tuple[float, ...] = ()
    predicted: float = 0.0

    def cut(self, longest: float) -> "Lengths":
        """These lengths where rows are cut to so many tokens. The end of a row is cut, which is predicted."""
        at = tuple(min(length, longest) for length in self.at)
        mean = self.mean * float(np.interp(EVENLY, GRID, at).mean() / np.interp(EVENLY, GRID, self.at).mean())
        return Lengths(self.rows, mean, at, max(self.predicted - (self.mean - mean), 0.0))

    def padded(self, batch: int, blocks: int = 1) -> float:
        """The tokens that a row takes in a batch on average, padded to the batch's longest row.

        blocks: 1 for random batches; for batches of like lengths, how many are sorted together. The largest
        of n draws lies at the share u^(1/n) for a random share u; the k-th of n sorted draws at k / (n + 1)
        on average."""
        sorted_together = np.arange(1, blocks + 1) * batch / (batch * blocks + 1)
        share = sorted_together if blocks > 1 else EVENLY ** (1 / batch)
        return float(np.interp(share, GRID, self.at).mean())


@dataclass(frozen=True)
class Data:
    """The rows of a run's data by split. exact: whether the numbers of rows are. assumed: how the lengths
    are known, in words."""

    train: Lengths
    dev: Lengths
    exact: bool
    assumed: tuple[str, ...] = ()


def known_data(run: Run) -> Data | None:
    """What is known of a run's data; None where the number of rows is not. Of the hub's data these are the
    published numbers (conf/rows.yaml); local files are counted if they are small, and else taken for the
    published ones."""
    return _known(json.dumps(run.config["task"]))


@cache
def _known(settings: str) -> Data | None:
    task: dict[str, Any] = json.loads(settings)
    published = yaml.safe_load((CONF / "rows.yaml").read_text()).get(task["name"])
    data = _published(task, published) if published else None
    if task.get("data_dir") or task.get("train_file") or not data:
        data = _counted(task) or (data and replace(data, exact=False))
    if not data or not published or "tokens" not in published:
        return data
    of = {s: Lengths(0, **values | {"at": tuple(values["at"])}) for s, values in published["tokens"].items()}
    dev = of["train" if task.get("holdout") else "dev"]
    words = ["lengths assumed: as published, in GPT-2's tokens (conf/rows.yaml)", published.get("note")]
    lengths = replace(of["train"], rows=data.train.rows), replace(dev, rows=data.dev.rows)
    return Data(*lengths, exact=data.exact, assumed=tuple(filter(None, words)))


def _published(task: Mapping[str, Any], entry: Mapping[str, Any]) -> Data:
    """From an entry of conf/rows.yaml and the task's settings."""
    (train, dev), share, shots, exact = entry["rows"].values(), task.get("holdout"), task.get("shots"), True
    if "classes" in entry:  # images: `shots` of each class, or all; evaluated on the test set or on the rest
        train, rest = (entry["classes"] * shots if shots else train), train
        dev = dev or rest - train
        dev = min(task.get("dev_rows") or dev, dev)
    elif task.get("prepare") == "reviews":  # as many rows as its settings name
        train, dev = task["train_rows"], task["dev_rows"]
    else:
        # Without a dev set its rows are held out, and a row whose prompt fills max_length is left out
        exact, held = dev > 0, 0 if dev else task["dev_rows"]
        dev = task.get("dev_rows") or dev
        train = min(task.get("train_rows") or train - held, train - held)
    if share:  # of each class, which rounds
        dev = max(math.ceil(share * (shots or train)) * (entry["classes"] if shots else 1), 2)
        train, exact = train - dev, False
    return Data(Lengths(train), Lengths(dev), exact)


def _counted(task: Mapping[str, Any]) -> Data | None:
    """By reading the files, where these are small; of texts the lengths, too."""
    try:
        files, is_image = tasks.source(task).files, task["family"] == "images"
        size = sum(path.stat().st_size for path in files.values() if path.is_file())
        if not files or (size > QUICK_BYTES and not is_image):
            return None
        loaded: Any = tasks.load({**task, "decode": "none"} if task["family"] == "e2e" else task)
    except (UserError, tasks.DataError):  # of bad data: the run itself raises it
        return None
    if is_image:
        rows = {"train": len(loaded.set.train), "dev": len(loaded.set.test or ())}
        return _published(task, {"rows": rows, "classes": loaded.num_labels})
    if not hasattr(loaded, "splits"):
        return None
    train, dev = (_measured(loaded.splits[split]) for split in ("train", "dev"))
    return Data(train, dev, task["family"] != "instruct", ("lengths assumed: four characters a token",))


def _measured(rows: Any) -> Lengths:
    """From texts: tasks.Rows, or rows of several parts, of which the last one is predicted."""
    if isinstance(rows, tasks.Rows):
        parts = list(zip(rows.texts, rows.pairs or rows.texts, strict=True))
        parts = parts if rows.pairs else [(text, "") for text, _ in parts]
    else:
        parts = [tuple(vars(row).values()) if hasattr(row, "__dict__") else tuple(row) for row in rows]
    tokens = np.array([sum(map(len, part)) / 4 + 3 for part in parts])
    predicted = float(np.mean([len(part[-1]) / 4 + 1 for part in parts]))
    return Lengths(len(parts), float(tokens.mean()), tuple(np.quantile(tokens, GRID).tolist()), predicted)
