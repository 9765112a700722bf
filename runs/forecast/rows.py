"""How many rows of data a run has for training and evaluation, and how long they are."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import tasks
from runs.config import CONF
from runs.errors import UserError
from runs.identity import Contents, data_content, data_of, hash_of
from runs.lengths import Lengths, from_plain, kept_lengths
from runs.record import Record, cache_folder, read_study, study_folders, write_atomically
from runs.run import Run

#: Larger files are not read to count their rows, and larger folders of images are not listed.
QUICK_BYTES, QUICK_IMAGES = 16_000_000, 20_000
#: Settings of a task that decide how many rows there are.
SIZES = ("train_rows", "dev_rows", "holdout", "shots")
COUNTED = (*SIZES, "name", "decode", "items")


@dataclass(frozen=True)
class Data:
    """The rows of a run's data by split."""

    train: Lengths
    dev: Lengths
    items: int  # texts to decode
    exact: bool  # whether the numbers of rows are
    assumed: str | None = None  # a note on lengths that are assumed; None: measured, or not known


@dataclass
class Sources:
    """Where numbers of rows may be known from."""

    records: Sequence[Record] = ()  # of finished runs
    contents: Contents = field(default_factory=Contents)  # of the data that were hashed already


#: Rows of training and of evaluation, texts to decode, and whether these are exact.
Counts = tuple[int, int, int, bool]


def known_data(run: Run, sources: Sources) -> Data | None:
    """What is known of a run's data; None where the number of rows is not.

    The first source that knows it: what an earlier run left in the cache, records of the same data, the
    published numbers (conf/rows.yaml) with the task's settings, a count of files that are small, published
    records of the same data, and last the published numbers for a local copy, which may differ."""
    if kept := kept_lengths(run, sources.contents):
        return Data(kept[0]["train"], kept[0]["dev"], kept[1], exact=True)
    task = run.config["task"]
    ways: list[Callable[[], Counts | None]] = [
        lambda: _of_records(run, sources, sources.records),
        lambda: None if task.get("data_dir") else _of_table(task),
        lambda: _counted(task),
        lambda: _of_records(run, sources, _published()),
        lambda: _of_table(task),
    ]
    for number, count in enumerate(ways):
        try:
            counts = count()
        except (UserError, tasks.DataError):  # of bad data: the run itself raises it
            continue
        if counts:
            is_copy = number == len(ways) - 1
            return _with_lengths(task, counts[:3], exact=counts[3] and not is_copy)
    return None


def _with_lengths(task: Mapping[str, Any], counts: tuple[int, int, int], exact: bool) -> Data:
    """Data of so many rows, with the published lengths where conf/rows.yaml has them."""
    train, dev, items = counts
    entry = table().get(task["name"], {})
    if "tokens" not in entry:
        return Data(Lengths(train), Lengths(dev), items, exact)

    def lengths(split: str, rows: int) -> Lengths:
        return replace(from_plain({"rows": 1, **entry["tokens"][split]}), rows=rows)

    of_dev = lengths("train" if task.get("holdout") else "dev", dev)
    return Data(lengths("train", train), of_dev, items, exact, entry.get("note") or "")


@cache
def table() -> dict[str, Any]:
    """conf/rows.yaml by task."""
    import yaml

    return dict(yaml.safe_load((CONF / "rows.yaml").read_text()))


# --- the sources


def _of_records(run: Run, sources: Sources, records: Sequence[Record]) -> Counts | None:
    """From the first record on the same data with the same settings."""
    content, task = data_of(run, sources.contents), run.config["task"]
    for record in records:
        other = record["config"]["task"]
        same = record["data"]["content"] == content and other["name"] == task["name"]
        if not same or any(other.get(key) != task.get(key) for key in SIZES):
            continue
        # An instruction is left out where its prompt fills max_length
        lengths = [config["train"].get("max_length") for config in (record["config"], run.config)]
        if task["family"] == "instruct" and lengths[0] != lengths[1]:
            continue
        items = (record.get("texts") or {}).get("items", 0)
        if bool(items) == _decodes(task) and other.get("items") == task.get("items"):
            return record["data"]["train_rows"], record["data"]["dev_rows"], items, True
    return None


def _decodes(task: Mapping[str, Any]) -> bool:
    return task.get("decode") not in (None, "none")


@cache
def _published() -> list[Record]:
    records = [record for folder in study_folders() for record in read_study(folder)]
    return [record for record in records if record["status"] == "done"]


def _of_table(task: Mapping[str, Any]) -> Counts | None:
    """From the published numbers and the task's settings."""
    if task.get("prepare") == "reviews":  # has as many rows as its settings name
        return _hold_out((task["train_rows"], task["dev_rows"], 0, True), task.get("holdout"))
    entry = table().get(task["name"])
    if entry is None or entry.get("family", task["family"]) != task["family"]:
        return None
    rows = entry["rows"]
    if "classes" in entry:
        return _draw_images(task, entry["classes"], rows["train"], rows["dev"])
    train, dev, exact = rows["train"], task.get("dev_rows") or rows["dev"], True
    if not rows["dev"]:  # held out from the training rows
        train, exact = train - dev, False  # and a row whose prompt fills max_length is left out
    counts = min(task.get("train_rows") or train, train), dev, _items(task, entry), exact
    return _hold_out(counts, task.get("holdout"))


def _items(task: Mapping[str, Any], entry: Mapping[str, Any]) -> int:
    most = entry.get("items", {}).get(task.get("decode"), 0)
    return min(task.get("items") or most, most)


def _hold_out(counts: Counts, share: float | None) -> Counts:
    """Evaluates on a share of the training rows. Not exact: a task rounds the share of each class."""
    if not share:
        return counts
    train, items = counts[0], counts[2]
    held = max(round(share * train), 2)
    return train - held, held, items, False


def _draw_images(task: Mapping[str, Any], classes: int, images: int, test: int) -> Counts:
    """The rows of an image task: `shots` images of each class, or all of them.

    images: of training. test: of evaluation; 0: those that training leaves."""
    shots, share = task["shots"], task.get("holdout")
    held = 0
    if share:
        held = classes * max(1, math.ceil(shots * share)) if shots else max(round(share * images), 2)
    drawn = classes * shots if shots else images
    rest = held or test or images - drawn
    dev = rest if held else min(task.get("dev_rows") or rest, rest)
    return drawn - held, dev, 0, bool(shots) or not share


# --- counting


def _counted(task: Mapping[str, Any]) -> Counts | None:
    """By reading the files, where these are small; each count is kept in the cache."""
    files = tasks.source(task).files
    family, size = task["family"], sum(path.stat().st_size for path in files.values() if path.is_file())
    packed = any(path.suffix in (".parquet", ".bin") for path in files.values())
    quick = len(files) <= QUICK_IMAGES and not packed if family == "images" else size <= QUICK_BYTES
    if not files or not quick or family not in ("glue", "text", "instruct", "e2e", "images"):
        return None
    key = hash_of([data_content(task), family, [task.get(key) for key in COUNTED]])
    path = cache_folder() / "rows" / f"{key[:24]}.json"
    try:
        train, dev, items, exact = json.loads(path.read_bytes())
        return int(train), int(dev), int(items), bool(exact)
    except (OSError, ValueError, TypeError):
        counts = _count_pairs(task, files) if family == "e2e" else _count(task)
    with contextlib.suppress(OSError):  # a read-only home costs time, no more
        write_atomically(path, json.dumps(counts))
    return counts


def _count_pairs(task: Mapping[str, Any], files: Mapping[str, Path]) -> Counts:
    from tasks.e2e_files import count

    pairs = {split: count(path) for split, path in files.items()}  # texts and their MRs
    train, dev = (min(task.get(f"{s}_rows") or pairs[s][0], pairs[s][0]) for s in ("train", "dev"))
    mrs = pairs[task["decode"]][1] if _decodes(task) else 0
    return _hold_out((train, dev, min(task.get("items") or mrs, mrs), True), task.get("holdout"))


def _count(task: Mapping[str, Any]) -> Counts:
    loaded: Any = tasks.load(task)
    if task["family"] == "images":
        train, test = loaded.set.train, loaded.set.test
        return _draw_images(task, loaded.num_labels, len(train), len(test) if test else 0)
    train, dev = (len(loaded.splits[split]) for split in ("train", "dev"))
    return train, dev, 0, task["family"] != "instruct"
