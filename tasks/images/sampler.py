"""The draw of training images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from tasks.base import Array, DataError, named
from tasks.images.pixels import BadImageError, Item, Preprocessing, parallel
from tasks.images.sets import ImageSet


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


def take_all(images: ImageSet, seed: int, pixels: Array, unreadable: Mapping[int, str]) -> Drawn:
    """All training images that can be read. pixels: of all; unreadable: those that are to be left out."""
    rows = [[row for row in order if row not in unreadable] for order in _orders(images, seed)]
    for name, of_class in zip(images.classes, rows, strict=True):
        if not of_class:
            raise DataError(f"class {named(name)} has no training image that can be read")
    where = {index: index for index in range(len(images.train))}
    return Drawn([np.asarray(of_class, np.int64) for of_class in rows], pixels, where)


def draw(
    images: ImageSet, settings: Any, wanted: Preprocessing, workers: int, unreadable: dict[str, str]
) -> Drawn:
    """`shots` training images of each class. The next image replaces one that cannot be read, whose name and
    reason come into `unreadable`."""
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
                unreadable[pool.names[row]] = str(result)
            else:
                pixels[row], raw[row] = result, item
        chosen = [[row for row in order if row in pixels] for order in orders]
    for name, rows in zip(images.classes, chosen, strict=True):
        if len(rows) < shots:
            few = f"class {named(name)} has {len(rows)} training images that can be read"
            raise DataError(f"{few}, fewer than task.shots={shots}. Mend them, or give a smaller task.shots")
    every = [row for rows in chosen for row in rows]
    where = {row: position for position, row in enumerate(every)}
    of_classes = [np.asarray(rows, np.int64) for rows in chosen]
    return Drawn(of_classes, np.stack([pixels[row] for row in every]), where, raw)
