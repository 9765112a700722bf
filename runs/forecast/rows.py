"""How many rows a run trains and is judged on, and how long they are: exact where something here says so."""

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import tasks
from runs.config import CONF, Run
from runs.errors import UserError
from runs.identity import Contents, data_content, data_of, hash_of
from runs.lengths import Lengths, from_plain, kept_lengths
from runs.record import Record, cache_folder, read_study, study_folders, write_atomically

#: Files of so many bytes are read to count their rows, and folders of so many images listed.
QUICK_BYTES, QUICK_IMAGES = 16_000_000, 20_000
#: Settings of a task that decide how many rows there are.
SIZES = ("train_rows", "dev_rows", "holdout", "shots")
COUNTED = (*SIZES, "name", "decode", "items")


@dataclass(frozen=True)
class Data:
    """The rows of a run by split, how many texts it decodes, and how these are known.

    exact: the number of rows. assumed: in words, what was taken for the lengths; None where they were
    measured, or there are none.
    """

    train: Lengths
    dev: Lengths
    items: int
    exact: bool
    assumed: str | None = None


@dataclass
class Sources:
    """What may say how many rows a run has: finished runs; contents: of the data that were looked at."""

    records: Sequence[Record] = ()
    contents: Contents = field(default_factory=Contents)


#: Rows of training, of evaluation, texts to decode, and whether that is exact.
Counts = tuple[int, int, int, bool]


def known_data(run: Run, sources: Sources) -> Data | None:
    """What is known of a run's data; None where nothing says how many rows there are.

    First what an earlier run has left in the cache, then records of the same data,
    the task's own numbers with the published ones (conf/rows.yaml), files that are quick to count, published
    records, and at last the published numbers for a copy that nobody has counted."""
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
    for number, way in enumerate(ways):
        try:
            counts = way()
        except (UserError, tasks.DataError):  # of bad data: the run itself says what is wrong
            continue
        if counts:
            copy = number == len(ways) - 1
            return _with_lengths(task, counts[:3], exact=counts[3] and not copy)
    return None


def _with_lengths(task: Mapping[str, Any], counts: tuple[int, int, int], exact: bool) -> Data:
    train, dev, items = counts
    entry = table().get(task["name"], {})
    if "tokens" not in entry:
        return Data(Lengths(train), Lengths(dev), items, exact)
    splits = {split: entry["tokens"]["train" if task.get("holdout") else split] for split in ("train", "dev")}
    known = {split: from_plain({"rows": 1, **values}) for split, values in splits.items()}
    of_train, of_dev = (replace(known[split], rows=rows) for split, rows in (("train", train), ("dev", dev)))
    return Data(of_train, of_dev, items, exact, entry.get("note") or "")


@cache
def table() -> dict[str, Any]:
    """conf/rows.yaml by task."""
    import yaml

    return dict(yaml.safe_load((CONF / "rows.yaml").read_text()))


# --- ways to know


def _of_records(run: Run, sources: Sources, records: Sequence[Record]) -> Counts | None:
    content, task = data_of(run, sources.contents), run.config["task"]
    for record in records:
        other = record["config"]["task"]
        same = record["data"]["content"] == content and other["name"] == task["name"]
        if not same or any(other.get(key) != task.get(key) for key in SIZES):
            continue
        # Where the prompt fills max_length, an instruction is left out
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
    """From the published numbers and the task's own."""
    if task.get("prepare") == "reviews":  # which takes as many as it is told
        share = task.get("holdout")
        return _held((task["train_rows"], task["dev_rows"], 0, True), share)
    entry = table().get(task["name"])
    if entry is None or entry.get("family", task["family"]) != task["family"]:
        return None
    rows = entry["rows"]
    if "classes" in entry:
        return _drawn(task, entry["classes"], rows["train"], rows["dev"])
    train, dev, exact = rows["train"], task.get("dev_rows") or rows["dev"], True
    if not rows["dev"]:  # held out from the training rows
        train, exact = train - dev, False  # and a row whose prompt fills max_length is left out
    counts = min(task.get("train_rows") or train, train), dev, _items(task, entry), exact
    return _held(counts, task.get("holdout"))


def _items(task: Mapping[str, Any], entry: Mapping[str, Any]) -> int:
    there = entry.get("items", {}).get(task.get("decode"), 0)
    return min(task.get("items") or there, there)


def _held(counts: Counts, share: float | None) -> Counts:
    """With a share of the training rows held out; of each class, which only the rows themselves know."""
    if not share:
        return counts
    train, items = counts[0], counts[2]
    held = max(round(share * train), 2)
    return train - held, held, items, False


def _drawn(task: Mapping[str, Any], classes: int, images: int, test: int) -> Counts:
    """Of images, a few of each class."""
    shots, share = task["shots"], task.get("holdout")
    held = classes * max(1, math.ceil(shots * share)) if shots and share else 0
    drawn = classes * shots if shots else images
    rest = held or test or images - drawn
    dev = rest if held else min(task.get("dev_rows") or rest, rest)
    return drawn - held, dev, 0, bool(shots) or not share


# --- counting


def _counted(task: Mapping[str, Any]) -> Counts | None:
    """By reading the files, where these are few and small; counted once, and kept in the cache."""
    files = tasks.source(task).files
    family, size = task["family"], sum(path.stat().st_size for path in files.values() if path.is_file())
    pictures = family == "images"
    packed = any(path.suffix in (".parquet", ".bin") for path in files.values())
    quick = len(files) <= QUICK_IMAGES and not packed if pictures else size <= QUICK_BYTES
    if not files or not quick or family not in ("glue", "text", "instruct", "e2e", "images"):
        return None
    content = data_content(task)
    path = (
        cache_folder()
        / "rows"
        / f"{hash_of([content, family, [task.get(key) for key in COUNTED]])[:24]}.json"
    )
    try:
        train, dev, items, exact = json.loads(path.read_bytes())
        return int(train), int(dev), int(items), bool(exact)
    except (OSError, ValueError, TypeError):
        counts = _count_pairs(task, files) if family == "e2e" else _count(task, pictures)
    with contextlib.suppress(OSError):  # a home that cannot be written costs time, no more
        write_atomically(path, json.dumps(counts))
    return counts


def _count_pairs(task: Mapping[str, Any], files: Mapping[str, Path]) -> Counts:
    from tasks.e2e_files import count

    there = {split: count(path) for split, path in files.items()}
    train, dev = (min(task.get(f"{s}_rows") or there[s][0], there[s][0]) for s in ("train", "dev"))
    mrs = there[task["decode"]][1] if _decodes(task) else 0
    return _held((train, dev, min(task.get("items") or mrs, mrs), True), task.get("holdout"))


def _count(task: Mapping[str, Any], pictures: bool) -> Counts:
    loaded: Any = tasks.load(task)
    if pictures:
        images = loaded.set
        return _drawn(task, loaded.num_labels, len(images.train), len(images.test) if images.test else 0)
    train, dev = (len(loaded.splits[split]) for split in ("train", "dev"))
    return train, dev, 0, task["family"] != "instruct"
