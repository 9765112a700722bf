"""Which training images are drawn, and the views of them that a model is shown."""

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
    """The images that cannot be read, by name, with the reason. refused: they are an error; else they are
    left out, and a note says so."""

    task: str
    refused: bool
    images: dict[str, str] = field(default_factory=dict)

    def add(self, pool: Pool, reasons: Mapping[int, str]) -> None:
        self.images |= {pool.names[index]: why for index, why in reasons.items()}

    def note(self) -> str:
        """Names the first of them; as a DataError where they are refused."""
        shown = sorted(self.images.items())[: 20 if self.refused else 3]  # the record has them all
        first = "; ".join(f"{printable(name)} ({why})" for name, why in shown)
        count = len(self.images)
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        one = "1 image" if count == 1 else f"{count} images"
        if self.refused:
            leave = "Mend or remove them, or leave them out by task.bad_images=skip"
            raise DataError(f"{self.task}: {one} cannot be read: {first}{more}. {leave}")
        return f"{one} that cannot be read left out: {first}{more}"

    def fail(self, fatal: str) -> NoReturn:
        """Raises DataError: with their names where they are refused, else with what is an error even where
        they are skipped."""
        self.note()
        raise DataError(f"{self.task}: {fatal}")


@dataclass
class Drawn:
    """Training images. rows: of each class, indices into the pool, in the order drawn. pixels: uint8 (images,
    3, height, width). where: the place of each index among the pixels. items: each index's image as it comes,
    where more than one view of it is taken and it is at hand."""

    rows: list[Array]
    pixels: Array
    where: Mapping[int, int]
    items: Mapping[int, Item] = field(default_factory=dict)

    def positions(self, rows: Array) -> Array:
        """Where the rows of a batch lie among the drawn ones."""
        return np.asarray([self.where[row] for row in rows.tolist()], np.int64)


def _orders(found: ImageSet, seed: int) -> list[Array]:
    """Of each class the training images' indices, shuffled."""
    return [
        np.random.Generator(np.random.Philox(key=[seed, label])).permutation(
            np.flatnonzero(found.train.labels == label)
        )
        for label in range(len(found.classes))
    ]


def take_all(found: ImageSet, seed: int, whole: tuple[Array, dict[int, str]], bad: Unreadable) -> Drawn:
    """Every training image that can be read. whole: the pixels of all, and which cannot be read."""
    pixels, unreadable = whole
    bad.add(found.train, unreadable)
    rows = [
        np.asarray([row for row in order if row not in unreadable], np.int64)
        for order in _orders(found, seed)
    ]
    empty = next((name for name, of in zip(found.classes, rows, strict=True) if not len(of)), None)
    if empty is not None:
        bad.fail(f"class {named(empty)} has no training image that can be read")
    return Drawn(rows, pixels, {index: index for index in range(len(found.train))})


def draw(found: ImageSet, settings: Any, wanted: Preprocessing, workers: int, bad: Unreadable) -> Drawn:
    """`shots` training images of each class; one that cannot be read is replaced by the next."""
    pool, shots, orders = found.train, settings["shots"], _orders(found, settings["draw_seed"])
    coming, chosen = [iter(order.tolist()) for order in orders], [list[int]() for _ in orders]
    pixels, kept = dict[int, Array](), dict[int, Item]()
    while todo := [
        row for have, more in zip(chosen, coming, strict=True) for row in islice(more, shots - len(have))
    ]:
        todo.sort()  # a file of many images is read from its beginning to its end
        items = list(pool.items(todo))
        for row, item, result in zip(todo, items, parallel(wanted.read, items, workers), strict=True):
            if isinstance(result, BadImageError):
                bad.add(pool, {row: str(result)})
                continue
            pixels[row] = result
            if settings["augment"] != "none":
                kept[row] = item
        chosen = [[row for row in order.tolist() if row in pixels] for order in orders]
    for label, have in enumerate(chosen):
        if len(have) < shots:
            fewer = f"class {named(found.classes[label])} has {len(have)} training images that can be read"
            mend = "Mend them, or give a smaller task.shots"
            bad.fail(f"{fewer}, fewer than task.shots={shots}. {mend}")
    every = [row for have in chosen for row in have]
    where = {row: position for position, row in enumerate(every)}
    rows = [np.asarray(have, np.int64) for have in chosen]
    return Drawn(rows, np.stack([pixels[row] for row in every]), where, kept)


class Views:
    """Augmented views of training images. rows: indices into the pool."""

    def __init__(
        self, pool: Pool, rows: Array, items: Mapping[int, Item], settings: Any, wanted: Any, workers: int
    ) -> None:
        self.pool, self.rows, self.items = pool, rows, items
        self.settings, self.wanted, self.workers = settings, wanted, workers
        self.begin_epoch(0, ())

    def begin_epoch(self, epoch: int, coming: Iterable[int]) -> None:
        """coming: the places in `rows` that will be asked for, in this order."""
        self._epoch, self._ahead = epoch, deque(coming)
        self._waiting: dict[int, Future[Array]] = {}

    def of(self, places: Sequence[int]) -> Array:
        """uint8 (images, 3, height, width). Raises BadImageError. Views are begun before they are asked for,
        in the order of the epoch."""
        while self._ahead and len(self._waiting) < 2 * len(places) + 4 * self.workers:
            place = self._ahead.popleft()
            self._waiting[place] = self._threads.submit(self._view, place)
        views = [
            self._waiting.pop(place) if place in self._waiting else self._threads.submit(self._view, place)
            for place in places
        ]
        return np.stack([view.result() for view in views])

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers)

    def _view(self, place: int) -> Array:
        """A pure function of seed, epoch and place: a resumed run sees the same views, and so does any number
        of workers."""
        index, settings = int(self.rows[place]), self.settings
        generator = np.random.Generator(
            np.random.Philox(key=[settings["draw_seed"], (self._epoch << 32) + index])
        )
        item = self.items[index] if index in self.items else next(self.pool.items([index]))
        return augment(item, settings["augment"], settings["crop_scale"], self.wanted, generator)


def printable(name: str) -> str:
    """A file's name whose bytes may be no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
