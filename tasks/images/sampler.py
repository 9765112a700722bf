"""The draw of training images, and their augmented views."""

import functools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NoReturn

import numpy as np

from tasks.base import Array, DataError, named
from tasks.images.pixels import BadImageError, Item, Preprocessing, augment, parallel
from tasks.images.sets import ImageSet, Pool


@dataclass
class Unreadable:
    """The images that cannot be read, by name, with the reason. refused: whether they are an error; else they
    are left out, with a note."""

    task: str
    refused: bool
    images: dict[str, str] = field(default_factory=dict)

    def add(self, pool: Pool, reasons: Mapping[int, str]) -> None:
        self.images |= {pool.names[index]: why for index, why in reasons.items()}

    def note(self) -> str:
        """A note with the first names. Raises it as a DataError where they are refused."""
        shown = sorted(self.images.items())[: 20 if self.refused else 3]  # the record has them all
        first = "; ".join(f"{printable(name)} ({why})" for name, why in shown)
        count = len(self.images)
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        images = "1 image" if count == 1 else f"{count} images"
        if self.refused:
            raise DataError(f"{self.task}: {images} cannot be read: {first}{more} (or task.bad_images=skip)")
        return f"{images} that cannot be read left out: {first}{more}"

    def fail(self, problem: str) -> NoReturn:
        """Raises DataError: with the images' names where they are refused, else with the problem that they
        cause."""
        self.note()
        raise DataError(f"{self.task}: {problem}")


@dataclass
class Drawn:
    """Training images. rows: for each class, indices into the pool, in the order drawn. pixels: uint8
    (images, 3, height, width). where: the position of each index in pixels. items: raw images for
    augmentation, by index."""

    rows: list[Array]
    pixels: Array
    where: Mapping[int, int]
    items: Mapping[int, Item] = field(default_factory=dict)

    def positions(self, rows: Array) -> Array:
        """The positions of these indices in pixels."""
        return np.asarray([self.where[row] for row in rows.tolist()], np.int64)


def _orders(images: ImageSet, seed: int) -> list[list[int]]:
    """The indices of each class's training images, shuffled."""
    orders = []
    for label in range(len(images.classes)):
        generator = np.random.Generator(np.random.Philox(key=[seed, label]))
        orders.append(generator.permutation(np.flatnonzero(images.train.labels == label)).tolist())
    return orders


def take_all(images: ImageSet, seed: int, whole: tuple[Array, dict[int, str]], bad: Unreadable) -> Drawn:
    """All training images that can be read. whole: the pixels of all, and the reasons for unreadable ones."""
    pixels, unreadable = whole
    bad.add(images.train, unreadable)
    rows = [[row for row in order if row not in unreadable] for order in _orders(images, seed)]
    if not all(rows):
        name = images.classes[next(label for label, of_class in enumerate(rows) if not of_class)]
        bad.fail(f"class {named(name)} has no training image that can be read")
    where = {index: index for index in range(len(images.train))}
    return Drawn([np.asarray(of_class, np.int64) for of_class in rows], pixels, where)


def draw(images: ImageSet, settings: Any, wanted: Preprocessing, workers: int, bad: Unreadable) -> Drawn:
    """`shots` training images of each class. The next image replaces one that cannot be read."""
    pool, shots, orders = images.train, settings["shots"], _orders(images, settings["draw_seed"])
    candidates = [iter(order) for order in orders]
    chosen: list[list[int]] = [[] for _ in orders]
    pixels, raw = dict[int, Array](), dict[int, Item]()
    while todo := sorted(  # in the order of the files
        row for rows, more in zip(chosen, candidates, strict=True) for row in islice(more, shots - len(rows))
    ):
        items = list(pool.items(todo))
        for row, item, result in zip(todo, items, parallel(wanted.read, items, workers), strict=True):
            if isinstance(result, BadImageError):
                bad.add(pool, {row: str(result)})
                continue
            pixels[row] = result
            if settings["augment"] != "none":
                raw[row] = item
        chosen = [[row for row in order if row in pixels] for order in orders]
    for name, rows in zip(images.classes, chosen, strict=True):
        if len(rows) < shots:
            few = f"class {named(name)} has {len(rows)} training images that can be read"
            mend = "Mend them, or give a smaller task.shots"
            bad.fail(f"{few}, fewer than task.shots={shots}. {mend}")
    every = [row for rows in chosen for row in rows]
    where = {row: position for position, row in enumerate(every)}
    of_classes = [np.asarray(rows, np.int64) for rows in chosen]
    return Drawn(of_classes, np.stack([pixels[row] for row in every]), where, raw)


class Views:
    """Augmented views of training images. rows: indices into the pool. items: raw images by index; others are
    read again."""

    def __init__(
        self, pool: Pool, rows: Array, items: Mapping[int, Item], settings: Any, wanted: Any, workers: int
    ) -> None:
        self.pool, self.rows, self.items = pool, rows, items
        self.settings, self.wanted, self.workers = settings, wanted, workers
        self.begin_epoch(0, ())

    def begin_epoch(self, epoch: int, order: Iterable[int]) -> None:
        """order: the positions in `rows` of the epoch's images, in the order of their batches."""
        self._epoch, self._ahead = epoch, deque(order)
        self._pending: dict[int, Future[Array]] = {}

    def of(self, positions: Sequence[int]) -> Array:
        """The views at these positions, uint8 (images, 3, height, width). Views of later batches start in
        advance. Raises BadImageError."""
        while self._ahead and len(self._pending) < 2 * len(positions) + 4 * self.workers:
            position = self._ahead.popleft()
            self._pending[position] = self._threads.submit(self._view, position)
        for position in set(positions) - self._pending.keys():
            self._pending[position] = self._threads.submit(self._view, position)
        views = {position: self._pending.pop(position) for position in set(positions)}
        return np.stack([views[position].result() for position in positions])

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers)

    def _view(self, position: int) -> Array:
        """Depends on seed, epoch and position alone: the same in a resumed run, and for any workers."""
        index, settings = int(self.rows[position]), self.settings
        key = [settings["draw_seed"], (self._epoch << 32) + index]
        generator = np.random.Generator(np.random.Philox(key=key))
        item = self.items[index] if index in self.items else next(self.pool.items([index]))
        return augment(item, settings["augment"], settings["crop_scale"], self.wanted, generator)


def printable(name: str) -> str:
    """A file's name, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
