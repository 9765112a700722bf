"""The task: its images, drawn and prepared; loss, metric, and pictures of a run."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.base import (
    Array,
    Batch,
    DataError,
    Settings,
    Source,
    Task,
    first_line,
    fixed_subset,
    unquoted,
)
from tasks.fetch import cache_folder, data_folder, pinned_content
from tasks.files import stamp
from tasks.images import sets
from tasks.images.pixels import (
    Preprocessing,
    load_prepared_images,
    printable_name,
    read_all,
)
from tasks.images.sets import ImageSet, Pool, local_files

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

#: The published sets: how many classes, training images and test images each has.
PUBLISHED = {
    "cifar100": (100, 50000, 10000),
    "food101": (101, 75750, 25250),
    "flowers102": (102, 1020, 6149),
    "resisc45": (45, 31500, 0),
    "digits": (10, 1797, 0),
}
#: How many images predictions.png shows.
SHOWN_IMAGES = 40


def source(settings: Settings) -> Source:
    """See tasks.source."""
    if settings.get("data_dir"):
        return Source(files=_files_in(Path(settings["data_dir"]), settings))
    if settings.get("hub"):
        pinned = pinned_content(settings["hub"], settings.get("revision"), "dataset")
        return Source(pinned=pinned)
    if settings["name"] == "digits":
        import sklearn.datasets

        data = Path(sklearn.datasets.__file__).parent / "data"
        return Source(files={"digits.csv.gz": data / "digits.csv.gz"})
    raise DataError(
        "the task names no images. Give task.data_dir=/a/folder or task.hub="
    )


def load(settings: Settings) -> "ImageTask":
    """See tasks.load. Decodes no image yet. Raises DataError for too few images or a
    wrong setting."""
    if settings.get("data_dir") or settings.get("hub"):
        files = _files_in(data_folder(settings, _patterns(settings), COPY), settings)
        images = sets.read_images(files, settings)
        identity = json.dumps([settings["image_column"], _stamps(files)])
    else:
        source(settings)  # raises DataError for any set but the digits
        images = sets.digits()
        identity = "digits"
    return ImageTask(settings, images, hashlib.sha256(identity.encode()).hexdigest())


#: An example of a local path, for an error.
COPY = "/where/images"


def _patterns(settings: Settings) -> list[str]:
    """The patterns of the splits' files in the hub's repository."""
    splits = [*settings["train_splits"]]
    if settings["test_split"]:
        splits.append(settings["test_split"])
    patterns = []
    for split in splits:
        patterns += [f"*{split}-*.parquet", f"*{split}.parquet"]
    return patterns


def _stamps(files: Mapping[str, Path]) -> list[list[Any]]:
    """The name, path, size and time of each file, which stand for its content without
    reading it."""
    return [[name, str(path.absolute()), *stamp(path)] for name, path in files.items()]


def _files_in(folder: Path, settings: Settings) -> dict[str, Path]:
    """The files of the task's set in a folder, or, for a published set, in a subfolder of
    its name."""
    name = settings["name"]
    if name in PUBLISHED and (folder / name).is_dir():
        folder = folder / name
    return local_files(folder, settings["train_splits"], settings["test_split"])


@dataclass
class Split:
    """The prepared images of a split. pool: where its images are from. rows: for each row
    of the split, the index of its image in the pool. pixels: uint8 (images, 3, height,
    width), of the rows' images or of the whole pool. places: for each row, the index of
    its image in pixels."""

    pool: Pool
    rows: Array
    pixels: Array
    places: Array

    @property
    def labels(self) -> Array:
        """The class index of each row."""
        return self.pool.labels[self.rows]

    @property
    def names(self) -> list[str]:
        """The name of each row's image."""
        return [printable_name(self.pool.names[row]) for row in self.rows]


class ImageTask(Task):
    """Images of classes. They are decoded by `prepare`, which is the first to know whether
    all can be read.

    key: a hash that stands for the images of the set. shots: how many images of each class
    are drawn for training; None for all. workers: how many threads read images. holdout:
    the share of the drawn images that are dev rows; None for those of the test split."""

    metric = "accuracy"
    reported = "last"
    problem = "single_label_classification"
    unit = "img"
    block = 1

    def __init__(self, settings: Settings, images: ImageSet, key: str) -> None:
        self.name = settings["name"]
        self.settings = settings
        self.set = images
        self.key = key
        self.classes = images.classes
        self.num_labels = len(images.classes)
        self.notes = []
        self.shots: int | None = settings["shots"]
        self.workers: int = settings["workers"] or os.cpu_count() or 1
        self.holdout: float | None = None
        self._splits: dict[str, Split] = {}
        self._check_set()

    def _check_set(self) -> None:
        """Raises DataError for too few classes or images. Adds a note where a published set
        has other numbers of them here."""
        if self.num_labels < 2:
            raise DataError(
                f"{self.name}: one class, {unquoted(self.classes[0])}. "
                "Is task.data_dir too high?"
            )
        counts = np.bincount(self.set.train.labels, minlength=self.num_labels)
        self._check_class_sizes(counts)
        # Without a test split, dev rows are the images that are not drawn: none where all
        # images are trained on, and at least two have to be left
        leaves_too_few = True
        if self.shots is not None:
            leaves_too_few = counts.sum() < self.shots * self.num_labels + 2
        if self.set.test is None and leaves_too_few and not self.settings["holdout"]:
            raise DataError(
                f"{self.name}: no test split, and task.shots={self.shots} leaves no "
                "image for it"
            )
        test_images = len(self.set.test) if self.set.test else 0
        sizes = self.num_labels, len(self.set.train), test_images
        published = PUBLISHED.get(self.name, sizes)  # others have no published sizes
        if sizes != published:
            template = "{:,} classes, {:,} training and {:,} test images"
            self.notes.append(
                f"{self.name}: {template.format(*sizes)}; the published set has "
                f"{template.format(*published)}"
            )

    def _check_class_sizes(self, counts: Array) -> None:
        """Raises DataError for a class with fewer images than are drawn from it. counts: of
        each class, (classes,)."""
        smallest = int(counts.argmin())
        count = counts[smallest]
        if count >= (self.shots or 1):
            return
        problem = (
            f"class {unquoted(self.classes[smallest])} has {count} training images"
        )
        if self.shots:
            problem += (
                f", fewer than task.shots={self.shots}. Give a smaller task.shots, or "
                "more images"
            )
        raise DataError(f"{self.name}: {problem}")

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
        """Draws the training and dev images and prepares both. Whole pools of images are
        prepared only once, and then read from a file (see `_split`).

        tokenizer: the model's preprocessing. max_length, positions: not used. Raises
        DataError for images that cannot be read."""
        self._set_size(tokenizer)
        train, test = self.set.train, self.set.test
        train_rows, held_rows = self._draw()
        # With task.shots, a few drawn images alone are prepared, not the whole pool
        takes_all = self.shots is None
        self._splits["train"] = self._split(
            "train", train, train_rows, prepare_all=takes_all
        )
        digest = hashlib.sha256(json.dumps(train_rows.tolist()).encode()).hexdigest()
        self.selection = digest[:16]  # the record tells by it which images were drawn
        if self.holdout is not None:
            dev = self._split("train", train, held_rows, prepare_all=takes_all)
            self._splits["dev"] = dev
            drawn_count = len(train_rows) + len(held_rows)
            self.notes.append(
                f"dev: {len(held_rows)} of {drawn_count} training images "
                f"held out (task.holdout={self.holdout}), the test images are not used"
            )
            return
        if test is None:
            name, pool = "train", train
            remaining = np.setdiff1d(np.arange(len(train)), train_rows)
        else:
            name, pool = "test", test
            remaining = np.arange(len(test))
        size = self.settings["dev_rows"]
        dev_rows = remaining[fixed_subset(len(remaining), size, self.name)]
        self._splits["dev"] = self._split(name, pool, dev_rows, prepare_all=True)
        if size:
            self.notes.append(
                f"{self.name} dev: a fixed subset of {len(dev_rows)} images"
            )

    def _set_size(self, preprocessing: Preprocessing) -> None:
        """Takes the model's preprocessing, at task.image_size."""
        size = self.settings["image_size"]
        if size is not None:
            self.notes.append(
                f"images of {size} pixels, not the {preprocessing.size[0]} of the weights"
            )
        self.preprocessing = preprocessing.at_size(size)

    def _draw(self) -> tuple[Array, Array]:
        """Draws task.shots images of each class. Gives the indices in the training pool of
        those that are trained on, class by class, and of those that are held out. Raises
        DataError where a class has nothing to train on."""
        train_rows, held_rows = [], []
        for rows_of_class in self._shuffled_classes():
            drawn = rows_of_class[: self.shots]
            held_out = math.ceil(len(drawn) * self.holdout) if self.holdout else 0
            if held_out >= len(drawn):
                raise DataError(
                    f"{self.name}: task.holdout={self.holdout} leaves nothing to train on"
                )
            train_rows.append(drawn[: len(drawn) - held_out])
            held_rows.append(drawn[len(drawn) - held_out :])
        return np.concatenate(train_rows), np.concatenate(held_rows)

    def _shuffled_classes(self) -> list[Array]:
        """For each class the indices of its training images, shuffled by task.draw_seed."""
        shuffled = []
        for label in range(self.num_labels):
            key = [self.settings["draw_seed"], label]
            generator = np.random.Generator(np.random.Philox(key=key))
            rows = np.flatnonzero(self.set.train.labels == label)
            shuffled.append(generator.permutation(rows))
        return shuffled

    def _split(self, name: str, pool: Pool, rows: Array, *, prepare_all: bool) -> Split:
        """The prepared images at these indices of a pool.

        name: the pool's, which its file is found by. prepare_all: whether all images of the
        pool are prepared and kept in a file, which other runs then read; else only these
        images are prepared, each time."""
        # Ascending: images are read in the order of the files
        order = np.arange(len(pool)) if prepare_all else np.sort(rows)
        items = pool.items(order.tolist())
        names = [pool.names[row] for row in order]
        try:
            if prepare_all:
                folder = cache_folder() / "images"
                key = f"{self.key} {name}"
                pixels = load_prepared_images(
                    items, names, key, self.preprocessing, folder, self.workers
                )
            else:
                images = read_all(items, names, self.preprocessing, self.workers)
                pixels = np.stack(list(images))
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        return Split(pool, rows, pixels, np.searchsorted(order, rows))

    # --- training and evaluation

    def lengths(self, split: str) -> Sequence[int]:
        """1 for each image, since images have no tokens."""
        return [1] * len(self._splits[split].rows)

    def labels(self, split: str) -> Array:
        return self._splits[split].labels

    def about(self, split: str) -> Mapping[str, Sequence[Any]]:
        """The images' names, as they can be printed."""
        return {"image": self._splits[split].names}

    def collate(self, split: str, indices: Sequence[int]) -> dict[str, Array]:
        """pixel_values, uint8 (images, 3, height, width), which `logits` normalises on the
        model's device; and labels (images,)."""
        images = self._splits[split]
        rows = list(indices)
        pixels = images.pixels[images.places[rows]]
        return {"pixel_values": pixels, "labels": images.labels[rows]}

    def loss(self, model: "Module", batch: Batch) -> "Tensor":
        """The mean cross entropy of a batch, a scalar."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.logits(model, batch).float(), batch["labels"])

    def answers(self, model: "Module", batch: Batch) -> tuple[float, Array]:
        from torch.nn.functional import cross_entropy

        logits = self.logits(model, batch).float()
        return float(cross_entropy(logits, batch["labels"])), logits.cpu().numpy()

    def logits(self, model: "Module", batch: Batch) -> "Tensor":
        """The model's logits (images, classes) for a batch of `collate`. Raises DataError
        where the model cannot take images of task.image_size."""
        pixels = batch["pixel_values"].float()
        mean = pixels.new_tensor(self.preprocessing.mean)[:, None, None]
        std = pixels.new_tensor(self.preprocessing.std)[:, None, None]
        normalised = (pixels / 255 - mean) / std
        try:
            return model(pixel_values=normalised, **self._resampling(model)).logits
        except (AssertionError, ValueError) as error:
            size = self.settings["image_size"]
            if size is None:
                raise
            raise DataError(
                f"task.image_size={size}: {first_line(error)} timm's ViTs take other "
                "sizes by model.settings='{model_args: {dynamic_img_size: true}}'"
            ) from None

    def _resampling(self, model: "Module") -> dict[str, bool]:
        """The argument of forward that makes a ViT resample its position embeddings for
        another image size; none where the model takes no such argument (DINOv2)."""
        key = "interpolate_pos_encoding"
        forward = getattr(model, "module", model).forward
        if self.settings["image_size"] and key in signature(forward).parameters:
            return {key: True}
        return {}

    # --- files of a finished run

    def illustrate(self, folder: Path, predictions: Array) -> None:
        """See Task.illustrate. Draws predictions.png: SHOWN_IMAGES dev images, the same for
        every method."""
        from tasks import pictures

        dev = self._splits["dev"]
        rows = fixed_subset(len(dev.rows), SHOWN_IMAGES, self.name)
        pictures.draw_grid(
            folder / "predictions.png",
            dev.pixels[dev.places[rows]],
            dev.labels[rows],
            predictions[rows],
            self.classes,
        )


class NewImages(ImageTask):
    """The unlabelled images of a folder, and of folders in it, which a finished run's model
    predicts. They are the dev rows, all with the label 0; there are no training rows."""

    def __init__(self, settings: Settings, folder: Path, classes: list[str]) -> None:
        """classes: of the finished run. Raises DataError for a folder without images."""
        paths = sets.images_in(folder)
        if not paths:
            raise DataError(f"{folder}: no images in it ({', '.join(sets.ENDINGS)})")
        names = [path.relative_to(folder).as_posix() for path in paths]
        labels = np.zeros(len(names), np.int64)
        pool = Pool(names, labels, lambda rows: (paths[row] for row in rows))
        stamps = [[name, *stamp(path)] for name, path in zip(names, paths, strict=True)]
        identity = json.dumps([str(folder.absolute()), stamps])
        digest = hashlib.sha256(identity.encode()).hexdigest()
        super().__init__(settings, ImageSet(classes, train=pool, test=None), digest)

    def _check_set(self) -> None:
        """Checks nothing: a folder of new images need not have every class."""

    def prepare(
        self,
        tokenizer: Preprocessing,
        max_length: int = 0,
        positions: int | None = None,
    ) -> None:
        """See ImageTask.prepare: prepares all images as dev rows."""
        self.preprocessing = tokenizer.at_size(self.settings["image_size"])
        pool = self.set.train
        rows = np.arange(len(pool))
        self._splits["dev"] = self._split("new", pool, rows, prepare_all=True)
