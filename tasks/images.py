"""Few-shot image classification, as in the VeRA paper's table 5: CIFAR-100, Food-101, Flowers-102, RESISC45;
scikit-learn's digits; and any folder of images.

`shots` images of each class are drawn from the training split, and the whole test split is evaluated on;
where there is no test split (RESISC45, digits), all the rest is. From the hub, from a local copy in the data
set's own layout, or from a folder: see tasks/image_sets.py. What a model sees of an image belongs to its
weights: see tasks/pixels.py."""

import csv
import functools
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tasks import image_sets
from tasks.base import Array, DataError, Source, Task, fixed_subset, named
from tasks.fetch.hub import content, snapshot
from tasks.image_sets import ImageSet, Pool
from tasks.pixels import BadImageError, Item, Preprocessing, augment, parallel, prepared

PROTOCOL = 1

#: What the published sets hold: classes, training and test images.
PUBLISHED = {
    "cifar100": (100, 50000, 10000),
    "food101": (101, 75750, 25250),
    "flowers102": (102, 1020, 6149),
    "resisc45": (45, 31500, 0),
    "digits": (10, 1797, 0),
}


def source(settings: Any) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=_local(settings, Path(settings["data_dir"])))
    if settings.get("hub"):
        return Source(pinned=content(settings["hub"], settings.get("revision"), "dataset"))
    if settings["name"] == "digits":
        return Source(files={"digits.csv.gz": image_sets.digits_file()})
    raise DataError(
        "the task names no images. Give task.data_dir=/a/folder (train/CLASS/*.jpg, test/CLASS/*.jpg) or"
        " task.hub="
    )


def load(settings: Any) -> "ImageTask":
    """See tasks.load. Raises DataError for classes with too few images, and settings out of range; decodes
    none yet."""
    _check(settings)
    source(settings)
    if settings.get("data_dir") or settings.get("hub"):
        folder = Path(settings["data_dir"]) if settings.get("data_dir") else _fetched(settings)
        files = _local(settings, folder)
        found = image_sets.read(settings["name"], files, settings)
        stamps = [[name, str(path.absolute()), *_stamp(path)] for name, path in files.items()]
        key = json.dumps([settings["image_column"], stamps])
    else:
        found, key = image_sets.digits(), "digits"
    return ImageTask(settings, found, hashlib.sha256(key.encode()).hexdigest())


def _local(settings: Any, folder: Path) -> dict[str, Path]:
    return image_sets.local_files(settings["name"], folder, settings["train_splits"], settings["test_split"])


def _fetched(settings: Any) -> Path:
    splits = [*settings["train_splits"], *([settings["test_split"]] if settings["test_split"] else [])]
    instead = (
        "Give a local copy: task.data_dir=/its/folder, or the folder that holds several sets by name (with"
        " make: DATA=)"
    )
    return snapshot(
        settings["hub"],
        settings.get("revision"),
        [f"*{split}-*.parquet" for split in splits],
        "dataset",
        instead,
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # an image that is not there is one that cannot be read
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def _check(settings: Any) -> None:
    """What the configuration's types do not catch."""
    for key, least in (("shots", 1), ("image_size", 1), ("workers", 1), ("draw_seed", 0)):
        value = settings[key]
        if value is not None and (type(value) is not int or value < least):
            raise DataError(f"task.{key}={value}: should be a whole number of at least {least}")
    for key, words in (("augment", ("none", "flip", "crop")), ("bad_images", ("refuse", "skip"))):
        if settings[key] not in words:
            raise DataError(f"task.{key}={settings[key]}: should be one of {', '.join(words)}")
    scale = settings["crop_scale"]
    numbers = len(scale) == 2 and all(isinstance(share, int | float) for share in scale)
    if not (numbers and 0 < scale[0] <= scale[1] <= 1):
        raise DataError(
            f"task.crop_scale={list(settings['crop_scale'])}: should be two shares of the area, such as"
            " [0.25,1.0]"
        )


class ImageTask(Task):
    """Images of classes. Rows are settled by `prepare`, which decodes: some may not be readable."""

    metric = "accuracy"
    reported = "last"
    problem = "single_label_classification"
    pictures = True
    unit = "img"
    block = 1

    def __init__(self, settings: Any, found: ImageSet, key: str) -> None:
        self.name, self.settings, self.set, self.key = settings["name"], settings, found, key
        self.classes, self.num_labels = found.classes, len(found.classes)
        self.notes: list[str] = []
        self.shots: int | None = settings["shots"]
        self.workers: int = settings["workers"] or os.cpu_count() or 1
        self.holdout: float | None = None
        self.selection: str | None = None
        self.unreadable: dict[str, str] = {}
        self._pixels: dict[str, Array] = {}
        self._rows: dict[str, Array] = {}  # of each split: indices into its pool
        self._at: dict[str, Array] = {}  # and into its pixels
        self._items: dict[int, Item] = {}  # of each training row, where more than one view of it is taken
        self._pool: dict[str, Pool] = {}
        self._epoch, self._ahead = 0, deque[int]()
        self._waiting: dict[int, Future[Array]] = {}
        self._check_set()

    def _check_set(self) -> None:
        if self.num_labels < 2:
            raise DataError(
                f"{self.name}: one class, {named(self.classes[0])}. Two are needed; is task.data_dir a folder"
                " too high?"
            )
        counts = np.bincount(self.set.train.labels, minlength=self.num_labels)
        fewest = int(counts.argmin())
        if counts[fewest] < (self.shots or 1):
            few = f"class {named(self.classes[fewest])} has {counts[fewest]} training images"
            raise DataError(
                f"{self.name}: {few}, fewer than task.shots={self.shots}. Give a smaller task.shots, or more"
                " images"
            )
        whole = self.shots is None or counts.sum() < self.shots * self.num_labels + 2
        if self.set.test is None and whole and not self.settings["holdout"]:
            less = "task.shots=null leaves" if self.shots is None else f"task.shots={self.shots} leaves"
            raise DataError(f"{self.name}: there is no test split, and {less} nothing to evaluate on")
        test = 0 if self.set.test is None else len(self.set.test)
        is_, there = (self.num_labels, len(self.set.train), test), PUBLISHED.get(self.name)
        if there and is_ != there:
            words = "{:,} classes, {:,} training and {:,} test images"
            self.notes.append(
                f"{self.name}: {words.format(*is_)}; the published set has {words.format(*there)}"
            )
        if self.settings["augment"] != "none":
            self.notes.append(f"training images are augmented ({self.settings['augment']})")

    def hold_out(self, share: float) -> None:
        """See tasks.Task. Of the images drawn for training, the last `share` of each class; no test image is
        read."""
        self.holdout = share

    # --- preparing

    def prepare(self, tokenizer: Preprocessing, max_length: int = 0, positions: int | None = None) -> None:
        """Draws the training images and makes the evaluation's ready, from a file that is made once.
        `tokenizer` is the model's preprocessing. Raises DataError for images that cannot be read, unless
        task.bad_images=skip."""
        if isinstance(self.settings["image_size"], int):
            self.notes.append(
                f"images of {self.settings['image_size']} pixels, not the {tokenizer.size[0]} of the weights"
            )
        self.wanted = tokenizer.at(self.settings["image_size"])
        bad: dict[str, str] = {}
        drawn = self._draw(bad)
        train, held = self._split(drawn)
        whole = self.set.test or self.set.train
        self._rows["train"], self._pool = np.concatenate(train), {"train": self.set.train, "dev": whole}
        if self.holdout is not None:
            self._rows["dev"], self._pool["dev"] = np.concatenate(held), self.set.train
            self._pixels["dev"], self._at["dev"] = self._pixels["train"], self._positions(self._rows["dev"])
        else:
            pixels, unreadable = self._file("test" if self.set.test else "train", whole)
            bad |= {whole.names[index]: why for index, why in unreadable.items()}
            if len(whole) - len(unreadable) < 2:
                self._tell(bad, f"{self.name}: fewer than two evaluation images can be read")
            away = {*unreadable, *(self._rows["train"].tolist() if self.set.test is None else ())}
            rows = [index for index in range(len(whole)) if index not in away]
            rows = [rows[i] for i in fixed_subset(len(rows), self.settings["dev_rows"], self.name)]
            self._rows["dev"] = self._at["dev"] = np.asarray(rows, np.int64)
            self._pixels["dev"] = pixels
        self._at["train"] = self._positions(self._rows["train"])
        if bad:
            self._tell(bad)
        self.selection = hashlib.sha256(json.dumps(self._rows["train"].tolist()).encode()).hexdigest()[:16]
        if self.holdout is not None:
            rows_ = f"{len(self._rows['dev'])} of {sum(map(len, drawn))} training images"
            self.notes.append(
                f"dev: {rows_} held out (task.holdout={self.holdout}), the test images are not used"
            )
        elif self.settings["dev_rows"]:
            self.notes.append(f"{self.name} dev: a fixed subset of {len(self._rows['dev'])} images")

    def _draw(self, bad: dict[str, str]) -> list[Array]:
        """Of each class the training images, in the order drawn; their pixels in the order of the whole."""
        pool, seed = self.set.train, self.settings["draw_seed"]
        members = [np.flatnonzero(pool.labels == label) for label in range(self.num_labels)]
        orders = [
            np.random.Generator(np.random.Philox(key=[seed, label])).permutation(rows)
            for label, rows in enumerate(members)
        ]
        if self.shots is None:
            self._pixels["train"], unreadable = self._file("train", pool)
            bad |= {pool.names[index]: why for index, why in unreadable.items()}
            self._where = {index: index for index in range(len(pool))}
            readable = [
                np.asarray([row for row in order if row not in unreadable], np.int64) for order in orders
            ]
            empty = next(
                (name for name, rows in zip(self.classes, readable, strict=True) if not len(rows)), None
            )
            if empty is not None:
                self._tell(bad, f"{self.name}: class {named(empty)} has no training image that can be read")
            return readable
        coming, chosen = [iter(order.tolist()) for order in orders], [list[int]() for _ in orders]
        pixels: dict[int, Array] = {}
        while todo := [
            row
            for have, more in zip(chosen, coming, strict=True)
            for row in _next(more, self.shots - len(have))
        ]:
            todo.sort()  # a file of many images is read from its beginning to its end
            items = list(pool.items(todo))
            for row, item, result in zip(
                todo, items, parallel(self.wanted.read, items, self.workers), strict=True
            ):
                if isinstance(result, BadImageError):
                    bad[pool.names[row]] = str(result)
                    continue
                pixels[row] = result
                if self.settings["augment"] != "none":
                    self._items[row] = item
            chosen = [[row for row in order.tolist() if row in pixels] for order in orders]
        for label, have in enumerate(chosen):
            if len(have) < self.shots:
                fewer = f"class {named(self.classes[label])} has {len(have)} training images that can be read"
                self._tell(
                    bad,
                    f"{self.name}: {fewer}, fewer than task.shots={self.shots}. Mend them, or give a smaller"
                    " task.shots",
                )
        every = [row for have in chosen for row in have]
        self._where = {row: position for position, row in enumerate(every)}
        self._pixels["train"] = np.stack([pixels[row] for row in every])
        return [np.asarray(have, np.int64) for have in chosen]

    def _split(self, drawn: list[Array]) -> tuple[list[Array], list[Array]]:
        """The training rows and the held-out ones of each class."""
        cuts = [
            len(rows) - (max(1, math.ceil(len(rows) * self.holdout)) if self.holdout else 0) for rows in drawn
        ]
        if min(cuts) < 1:
            raise DataError(
                f"{self.name}: task.holdout={self.holdout} of task.shots={self.shots} leaves nothing to"
                " train on"
            )
        pairs = list(zip(drawn, cuts, strict=True))
        return [rows[:cut] for rows, cut in pairs], [rows[cut:] for rows, cut in pairs]

    def _positions(self, rows: Array) -> Array:
        return np.asarray([self._where[row] for row in rows.tolist()], np.int64)

    def _file(self, split: str, pool: Pool) -> tuple[Array, dict[int, str]]:
        items = pool.items(range(len(pool)))
        folder = Path(self.settings["cache_dir"])
        return prepared(items, len(pool), f"{self.key} {split}", self.wanted, folder, self.workers)

    def _tell(self, bad: dict[str, str], fatal: str | None = None) -> None:
        """Names the images that cannot be read: as an error where they are refused, else in a note. fatal:
        what is an error even where they are skipped."""
        refused = self.settings["bad_images"] == "refuse"
        shown = sorted(bad.items())[: 20 if refused else 3]  # the record has them all
        first = "; ".join(f"{printable(name)} ({why})" for name, why in shown)
        more = f" and {len(bad) - len(shown)} more" if len(bad) > len(shown) else ""
        one = "1 image" if len(bad) == 1 else f"{len(bad)} images"
        if refused:
            leave = "Mend or remove them, or leave them out by task.bad_images=skip"
            raise DataError(f"{self.name}: {one} cannot be read: {first}{more}. {leave}")
        if fatal:
            raise DataError(fatal)
        self.unreadable = {printable(name): why for name, why in sorted(bad.items())}
        self.notes.append(f"{one} that cannot be read left out: {first}{more}")

    # --- training and evaluation

    def lengths(self, split: str) -> Sequence[int]:
        return [1] * len(self._rows[split])

    def labels(self, split: str) -> Array:
        return self._pool[split].labels[self._rows[split]]

    def begin_epoch(self, epoch: int, batches: Sequence[Sequence[int]]) -> None:
        if self.settings["augment"] != "none":
            self._epoch, self._waiting = epoch, {}
            self._ahead = deque(row for batch in batches for row in batch)

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """pixel_values (images, 3, height, width) as bytes, which `loss` scales on the device; labels
        (images,)."""
        if split == "train" and self.settings["augment"] != "none":
            try:
                pixels = np.stack([view.result() for view in self._views(indices)])
            except BadImageError as error:
                raise DataError(f"{self.name}: an image cannot be read any more: {error}") from None
        else:
            pixels = self._pixels[split][self._at[split][list(indices)]]
        return {"pixel_values": pixels, "labels": self.labels(split)[list(indices)]}

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers)

    def _views(self, rows: Sequence[int]) -> list["Future[Array]"]:
        """The augmented views of some rows, begun before they are asked for, in the order of the epoch."""
        while self._ahead and len(self._waiting) < 2 * len(rows) + 4 * self.workers:
            row = self._ahead.popleft()
            self._waiting[row] = self._threads.submit(self._view, row)
        return [
            self._waiting.pop(row) if row in self._waiting else self._threads.submit(self._view, row)
            for row in rows
        ]

    def _view(self, row: int) -> Array:
        """A pure function of seed, epoch and row: a resumed run sees the same views, and so does any number
        of workers."""
        index, settings = int(self._rows["train"][row]), self.settings
        generator = np.random.Generator(
            np.random.Philox(key=[settings["draw_seed"], (self._epoch << 32) + index])
        )
        item = self._items[index] if index in self._items else next(self.set.train.items([index]))
        return augment(item, settings["augment"], settings["crop_scale"], self.wanted, generator)

    def fixed(self, split: str) -> bool:
        return split != "train" or self.settings["augment"] == "none"

    def units(self, batch: Mapping[str, Any]) -> int:
        return len(batch["labels"])

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Cross entropy, a scalar tensor."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.logits(model, batch).float(), batch["labels"])

    def answers(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, Array]:
        from torch.nn.functional import cross_entropy

        logits = self.logits(model, batch).float()
        return float(cross_entropy(logits, batch["labels"])), logits.cpu().numpy()

    def logits(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """(images, classes), of pixels or, where a head alone trains, of its input (runs/features.py)."""
        if "features" in batch:
            return model(batch["features"])
        pixels = batch["pixel_values"].float()
        mean, std = (
            pixels.new_tensor(values)[:, None, None] for values in (self.wanted.mean, self.wanted.std)
        )
        try:
            return model(pixel_values=(pixels / 255 - mean) / std, **self._resampling(model)).logits
        except (AssertionError, ValueError) as error:
            if self.settings["image_size"] is None:
                raise
            timms = "timm's ViTs take other sizes by model.settings='{model_args: {dynamic_img_size: true}}'"
            raise DataError(
                f"task.image_size={self.settings['image_size']}: {str(error).splitlines()[0]} {timms}"
            ) from None

    def _resampling(self, model: Any) -> dict[str, bool]:
        """ViT resamples its table of positions for images of another size when it is asked to; DINOv2 always
        does."""
        key = "interpolate_pos_encoding"
        forward = getattr(model, "module", model).forward
        return {key: True} if self.settings["image_size"] and key in signature(forward).parameters else {}

    def predict(self, outputs: Array) -> Array:
        predictions: Array = outputs.argmax(-1)
        return predictions

    def score(self, predictions: Array, labels: Array) -> float:
        from tasks.metrics import score  # imports evaluate, and with it torch: not for the plan

        return score("accuracy", predictions, labels)

    # --- what is seen of a run

    def illustrate(self, folder: Path, predictions: Array) -> None:
        """predictions.csv, confusion.png, and predictions.png: 40 evaluation images, the same for every
        method."""
        labels, pool = self.labels("dev"), self._pool["dev"]
        names = [pool.names[row] for row in self._rows["dev"]]
        with open(
            folder / "predictions.csv", "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", "label", "predicted"])
            words = ([self.classes[n] for n in values] for values in (labels, predictions))
            writer.writerows(zip(names, *words, strict=True))
        from tasks import pictures

        shown = fixed_subset(len(labels), 40, self.name)
        pixels = self._pixels["dev"][self._at["dev"][shown]]
        pictures.grid(folder / "predictions.png", pixels, labels[shown], predictions[shown], self.classes)
        pictures.confusion(folder / "confusion.png", labels, predictions, self.classes)


def printable(name: str) -> str:
    """A file's name whose bytes may be no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _next(rows: Iterator[int], count: int) -> list[int]:
    return list(islice(rows, count))
