"""The task: its images, drawn and prepared; loss, metric, and pictures of a run."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import (
    Array,
    DataError,
    Source,
    Task,
    first_line,
    fixed_subset,
    unquoted,
)
from tasks.fetch import cache_folder, content, data_folder
from tasks.files import stamp
from tasks.images import sets
from tasks.images.pixels import Preprocessing, prepared, read_all
from tasks.images.sets import ImageSet, Pool, local_files

#: The published sets: the numbers of classes, training and test images.
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
        return Source(
            pinned=content(settings["hub"], settings.get("revision"), "dataset")
        )
    if settings["name"] == "digits":
        import sklearn.datasets

        data = Path(sklearn.datasets.__file__).parent / "data"
        return Source(files={"digits.csv.gz": data / "digits.csv.gz"})
    raise DataError(
        "the task names no images. Give task.data_dir=/a/folder or task.hub="
    )


def load(settings: Any) -> "ImageTask":
    """See tasks.load. Decodes no image yet. Raises DataError for too few images or a
    wrong setting."""
    if settings.get("data_dir") or settings.get("hub"):
        splits = [*settings["train_splits"], *filter(None, [settings["test_split"]])]
        patterns = [
            f"*{split}{end}" for split in splits for end in ("-*.parquet", ".parquet")
        ]
        files = _local(settings, data_folder(settings, patterns, "/where/images"))
        images = sets.read(files, settings)
        stamps = [
            [name, str(path.absolute()), *stamp(path)] for name, path in files.items()
        ]
        key = json.dumps([settings["image_column"], stamps])
    else:
        source(settings)  # which refuses others
        images, key = sets.digits(), "digits"
    return ImageTask(settings, images, hashlib.sha256(key.encode()).hexdigest())


def _local(settings: Any, folder: Path) -> dict[str, Path]:
    """The files of the set's own folder or, for a published set, of one that holds it
    under its name."""
    name = settings["name"]
    own = folder / name if name in PUBLISHED and (folder / name).is_dir() else folder
    return local_files(own, settings["train_splits"], settings["test_split"])


@dataclass
class Split:
    """Prepared images. rows: indices into the pool. at: into pixels, uint8 (images, 3,
    height, width)."""

    pool: Pool
    rows: Array
    pixels: Array
    at: Array


class ImageTask(Task):
    """Images of classes. `prepare` decodes, so only then it is known which rows can be
    read."""

    metric = "accuracy"
    reported = "last"
    problem = "single_label_classification"
    unit = "img"
    block = 1

    def __init__(self, settings: Any, images: ImageSet, key: str) -> None:
        self.name, self.settings, self.set, self.key = (
            settings["name"],
            settings,
            images,
            key,
        )
        self.classes, self.num_labels = images.classes, len(images.classes)
        self.notes: list[str] = []
        self.shots: int | None = settings["shots"]
        self.workers: int = settings["workers"] or os.cpu_count() or 1
        self.holdout: float | None = None
        self._splits: dict[str, Split] = {}
        self._check_set()

    def _check_set(self) -> None:
        if self.num_labels < 2:
            raise DataError(
                f"{self.name}: one class, {unquoted(self.classes[0])}. Is task.data_dir too high?"
            )
        counts = np.bincount(self.set.train.labels, minlength=self.num_labels)
        fewest = int(counts.argmin())
        if counts[fewest] < (self.shots or 1):
            few = f"class {unquoted(self.classes[fewest])} has {counts[fewest]} training images"
            mend = f", fewer than task.shots={self.shots}. Give a smaller task.shots, or more images"
            raise DataError(f"{self.name}: {few}{mend if self.shots else ''}")
        whole = self.shots is None or counts.sum() < self.shots * self.num_labels + 2
        if self.set.test is None and whole and not self.settings["holdout"]:
            raise DataError(
                f"{self.name}: no test split, and task.shots={self.shots} leaves no image for it"
            )
        sizes = self.num_labels, len(self.set.train), len(self.set.test or ())
        published = PUBLISHED.get(self.name, sizes)
        if sizes != published:
            words = "{:,} classes, {:,} training and {:,} test images"
            here, there = words.format(*sizes), words.format(*published)
            self.notes.append(f"{self.name}: {here}; the published set has {there}")

    def hold_out(self, share: float) -> None:
        """See Task.hold_out: the last `share` of each class's drawn images. No test
        image is read."""
        self.holdout = share

    # --- preparing

    def prepare(
        self,
        tokenizer: Preprocessing,
        max_length: int = 0,
        positions: int | None = None,
    ) -> None:
        """Draws the training images, and prepares the evaluation's, which are kept in a
        file. tokenizer: the model's preprocessing. Raises DataError for images that
        cannot be read."""
        size = self.settings["image_size"]
        if size is not None:
            self.notes.append(
                f"images of {size} pixels, not the {tokenizer.size[0]} of the weights"
            )
        self.wanted = tokenizer.at(size)
        train, test = self.set.train, self.set.test
        drawn = [rows[: self.shots] for rows in self._orders()]
        held = [
            math.ceil(len(rows) * self.holdout) if self.holdout else 0 for rows in drawn
        ]
        if not all(len(rows) > count for rows, count in zip(drawn, held, strict=True)):
            raise DataError(
                f"{self.name}: task.holdout={self.holdout} leaves nothing to train on"
            )
        parts = [
            np.split(rows, [len(rows) - count])
            for rows, count in zip(drawn, held, strict=True)
        ]
        rows, dev = (np.concatenate(part) for part in zip(*parts, strict=True))
        self._splits["train"] = self._split("train", train, rows, self.shots is None)
        self.selection = hashlib.sha256(json.dumps(rows.tolist()).encode()).hexdigest()[
            :16
        ]
        if self.holdout is not None:
            self._splits["dev"] = self._split("train", train, dev, self.shots is None)
            held_rows = f"{len(dev)} of {len(dev) + len(rows)} training images held out"
            self.notes.append(
                f"dev: {held_rows} (task.holdout={self.holdout}), the test images are not used"
            )
            return
        pool = test or train
        left = np.setdiff1d(np.arange(len(pool)), () if test else rows)
        dev = left[fixed_subset(len(left), self.settings["dev_rows"], self.name)]
        self._splits["dev"] = self._split("test" if test else "train", pool, dev, True)
        if self.settings["dev_rows"]:
            self.notes.append(f"{self.name} dev: a fixed subset of {len(dev)} images")

    def _orders(self) -> list[Array]:
        """The indices of each class's training images, shuffled."""
        orders = []
        for label in range(self.num_labels):
            generator = np.random.Generator(
                np.random.Philox(key=[self.settings["draw_seed"], label])
            )
            orders.append(
                generator.permutation(np.flatnonzero(self.set.train.labels == label))
            )
        return orders

    def _split(self, name: str, pool: Pool, rows: Array, whole: bool) -> Split:
        """The images at these rows of a pool. whole: all of the pool's are prepared,
        and kept in a file."""
        # in the order of the files
        order = np.arange(len(pool)) if whole else np.sort(rows)
        items, names = pool.items(order.tolist()), [pool.names[row] for row in order]
        try:
            if whole:
                folder = cache_folder() / "images"
                pixels = prepared(
                    items,
                    names,
                    f"{self.key} {name}",
                    self.wanted,
                    folder,
                    self.workers,
                )
            else:
                pixels = np.stack(
                    list(read_all(items, names, self.wanted, self.workers))
                )
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        return Split(pool, rows, pixels, np.searchsorted(order, rows))

    # --- training and evaluation

    def lengths(self, split: str) -> Sequence[int]:
        return [1] * len(self._splits[split].rows)

    def labels(self, split: str) -> Array:
        return self._splits[split].pool.labels[self._splits[split].rows]

    def about(self, split: str) -> Mapping[str, Sequence[Any]]:
        """The images' names; of one that is no UTF-8, its bytes as Python writes
        them."""
        names = [
            self._splits[split].pool.names[row] for row in self._splits[split].rows
        ]
        return {
            "image": [
                name.encode("utf-8", "backslashreplace").decode() for name in names
            ]
        }

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """pixel_values (images, 3, height, width), bytes for `logits` to scale; labels
        (images,)."""
        of, rows = self._splits[split], list(indices)
        return {
            "pixel_values": of.pixels[of.at[rows]],
            "labels": self.labels(split)[rows],
        }

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Cross entropy, a scalar tensor."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.logits(model, batch).float(), batch["labels"])

    def answers(self, model: Any, batch: Mapping[str, Any]) -> tuple[float, Array]:
        from torch.nn.functional import cross_entropy

        logits = self.logits(model, batch).float()
        return float(cross_entropy(logits, batch["labels"])), logits.cpu().numpy()

    def logits(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """(images, classes)."""
        pixels = batch["pixel_values"].float()
        mean, std = (
            pixels.new_tensor(per)[:, None, None]
            for per in (self.wanted.mean, self.wanted.std)
        )
        try:
            return model(
                pixel_values=(pixels / 255 - mean) / std, **self._resampling(model)
            ).logits
        except (AssertionError, ValueError) as error:
            if self.settings["image_size"] is None:
                raise
            mend = "timm's ViTs take other sizes by model.settings='{model_args: {dynamic_img_size: true}}'"
            problem = f"{first_line(error)} {mend}"
            raise DataError(
                f"task.image_size={self.settings['image_size']}: {problem}"
            ) from None

    def _resampling(self, model: Any) -> dict[str, bool]:
        """By it a ViT resamples position embeddings for another image size. DINOv2
        needs none."""
        key = "interpolate_pos_encoding"
        forward = getattr(model, "module", model).forward
        return (
            {key: True}
            if self.settings["image_size"] and key in signature(forward).parameters
            else {}
        )

    # --- files of a finished run

    def illustrate(self, folder: Path, predictions: Array) -> None:
        """Draws predictions.png: 40 evaluation images, the same for every method."""
        from tasks import pictures

        dev, labels = self._splits["dev"], self.labels("dev")
        shown = fixed_subset(len(labels), 40, self.name)
        pixels = dev.pixels[dev.at[shown]]
        pictures.grid(
            folder / "predictions.png",
            pixels,
            labels[shown],
            predictions[shown],
            self.classes,
        )


class NewImages(ImageTask):
    """The images of a folder, and of folders in it, without labels: dev rows of a
    finished run's model."""

    def __init__(self, settings: Any, folder: Path, classes: list[str]) -> None:
        """Raises DataError for a folder without images."""
        files = {
            path.relative_to(folder).as_posix(): path for path in sets.images_in(folder)
        }
        if not files:
            raise DataError(f"{folder}: no images in it ({', '.join(sets.ENDINGS)})")
        names, stamps = (
            list(files),
            [[name, *stamp(path)] for name, path in files.items()],
        )
        pool = Pool(
            names,
            np.zeros(len(names), np.int64),
            lambda rows: (files[names[row]] for row in rows),
        )
        key = hashlib.sha256(
            json.dumps([str(folder.absolute()), stamps]).encode()
        ).hexdigest()
        super().__init__(settings, ImageSet(classes, pool, None), key)

    def _check_set(self) -> None:
        """They need not be of every class."""

    def prepare(
        self,
        tokenizer: Preprocessing,
        max_length: int = 0,
        positions: int | None = None,
    ) -> None:
        """See ImageTask.prepare."""
        self.wanted, pool = tokenizer.at(self.settings["image_size"]), self.set.train
        self._splits["dev"] = self._split("new", pool, np.arange(len(pool)), True)
