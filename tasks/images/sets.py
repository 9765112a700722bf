"""An image set's files (folders of images, or the hub's parquet), and the classes,
splits, images in them."""

import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Array, DataError, first_line, list_names, quoted, require_columns
from tasks.images.pixels import Item

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)
#: Names of folders that are splits, in lower case. The first that exists is the test
#: split.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "dev")


@dataclass
class Pool:
    """A name and a class index for each image of a split. items: the images of some
    ascending indices."""

    names: list[str]
    labels: Array
    items: Callable[[Sequence[int]], Iterator[Item]]

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class ImageSet:
    """A data set. test: None if all images that are not trained on are evaluated on."""

    classes: list[str]
    train: Pool
    test: Pool | None


def read(files: dict[str, Path], settings: Any) -> ImageSet:
    """The data set in the files of `local_files`, without decoding images. Raises
    DataError where classes of the splits differ, and for damaged files."""
    parquet = all(path.suffix == ".parquet" for path in files.values())
    return _from_parquet(files, settings) if parquet else _from_folders(files)


def digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI's optical
    recognition, its test set)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    names = [f"digit/{index}" for index in range(len(pixels))]
    pool = Pool(
        names,
        data.target.astype(np.int64),
        lambda indices: (pixels[index] for index in indices),
    )
    return ImageSet([str(digit) for digit in range(10)], pool, None)


def _from_folders(files: dict[str, Path]) -> ImageSet:
    nested = any(name.count("/") > 1 for name in files)
    split = nested and all(name.startswith(("train/", "test/")) for name in files)
    parts = [
        [n for n in files if n.startswith(top)]
        for top in (("train/", "test/") if split else ("",))
    ]
    labels = [[name.split("/")[split] for name in part] for part in parts]
    classes = sorted(set(labels[0]))
    if differing := set(classes).symmetric_difference(labels[-1]):
        only = {
            "train": sorted(differing & set(classes)),
            "test": sorted(differing - set(classes)),
        }
        words = [
            f"only {part} has {list_names(names)}"
            for part, names in only.items()
            if names
        ]
        where = next(iter(files.values())).parents[2]
        raise DataError(
            f"{where}: the class folders of train and test differ: {'; '.join(words)}"
        )

    def pool(names: list[str], of: list[str]) -> Pool:
        indices = np.asarray([classes.index(label) for label in of], np.int64)
        return Pool(names, indices, lambda rows: (files[names[row]] for row in rows))

    return ImageSet(
        classes, pool(parts[0], labels[0]), pool(parts[1], labels[1]) if split else None
    )


def _from_parquet(files: dict[str, Path], settings: Any) -> ImageSet:
    image, label = settings["image_column"], settings["label_column"]
    splits, classes, where = (
        dict[str, dict[Path, list[Any]]](),
        list[str](),
        next(iter(files.values())),
    )
    for name, path in files.items():
        split = "test" if name.partition("/")[0] == settings["test_split"] else "train"
        splits.setdefault(split, {})[path], own_classes = _read_labels(
            path, image, label
        )
        if classes and own_classes and own_classes != classes:
            raise DataError(f"{path}: its class names are not those of {where}")
        classes = classes or own_classes
    if not all(any(parts.values()) for parts in splits.values()):
        raise DataError(f"{where.parent}: a split without rows")
    every = {
        x for parts in splits.values() for labels in parts.values() for x in labels
    }
    ordered = sorted(every, key=lambda x: (str(type(x)), x))
    index = {x: n for n, x in enumerate(ordered)}
    if all(isinstance(x, int) for x in ordered):
        classes = classes or [str(n) for n in range(max(ordered) + 1)]
        if ordered[0] < 0 or ordered[-1] >= len(classes):
            raise DataError(
                f"{where}: labels {ordered[0]} to {ordered[-1]}, but {len(classes)} class names"
            )
        index = {n: n for n in ordered}
    else:
        classes = [str(x) for x in ordered]

    def pool(parts: dict[Path, list[Any]]) -> Pool:
        names = [
            f"{path.stem}/{row}"
            for path, labels in parts.items()
            for row in range(len(labels))
        ]
        indices = np.asarray(
            [index[x] for labels in parts.values() for x in labels], np.int64
        )
        return Pool(names, indices, functools.partial(_cells, list(parts), image))

    return ImageSet(
        classes,
        pool(splits["train"]),
        pool(splits["test"]) if "test" in splits else None,
    )


def _read_labels(path: Path, image: str, label: str) -> tuple[list[Any], list[str]]:
    """The labels of a parquet file, and the names of the classes, if the hub's metadata
    has them. Raises DataError for a missing column, or a label that is neither a number
    nor a word."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        require_columns(
            path, columns, sorted((image, label)), " (task.image_column, label_column)"
        )
        labels = file.read([label]).column(label).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({first_line(error)})") from None
    odd = next(
        (row for row, x in enumerate(labels) if not isinstance(x, int | str)), None
    )
    if odd is not None:
        raise DataError(
            f"{path} row {odd}: label {quoted(labels[odd])} is neither a number nor a word"
        )
    classes = list[str]()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        about = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        classes = list(about["info"]["features"][label]["names"])
    return labels, classes


def _cells(paths: Sequence[Path], column: str, rows: Sequence[int]) -> Iterator[Item]:
    """The images of some rows, ascending, counted through all files; nothing is read
    beyond the last."""
    import pyarrow
    import pyarrow.parquet as parquet

    wanted, start = deque(rows), 0
    for path in paths:
        try:
            file, at = parquet.ParquetFile(path), start
            start += file.metadata.num_rows
            batches = (
                file.iter_batches(256, columns=[column])
                if wanted and wanted[0] < start
                else ()
            )
            for batch in batches:
                while wanted and wanted[0] < at + len(batch):
                    value = batch.column(0)[wanted.popleft() - at].as_py()
                    yield (value["bytes"] if isinstance(value, dict) else value) or b""
                if not wanted:
                    return
                at += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read ({first_line(error)})") from None


# --- files


def local_files(
    data_dir: Path, train_splits: Sequence[str], test_split: str | None
) -> dict[str, Path]:
    """The files of a local copy by their names inside it. Raises DataError where it
    holds no images."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder (task.data_dir)")
    files = _parquet(data_dir, train_splits, test_split) or _folders(data_dir)
    if not files:
        layout = "train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg, or the hub's parquet files"
        raise DataError(
            f"{data_dir}: no images in folders. It should hold {layout} (task.data_dir)"
        )
    return files


def _parquet(
    data_dir: Path, train_splits: Sequence[str], test_split: str | None
) -> dict[str, Path]:
    """Parquet files by split/number.parquet."""
    files: dict[str, Path] = {}
    missing = []
    for split in [*train_splits, *([test_split] if test_split else [])]:
        paths = sorted(
            {*data_dir.rglob(f"{split}-*.parquet"), *data_dir.rglob(f"{split}.parquet")}
        )
        folders = sorted({path.parent for path in paths})
        if len(folders) > 1:
            several = ", ".join(str(folder.relative_to(data_dir)) for folder in folders)
            raise DataError(
                f"{data_dir}: parquet files of several configurations: {several}"
            )
        files |= {
            f"{split}/{number}.parquet": path for number, path in enumerate(paths)
        }
        missing += [] if paths else [split]
    if files and missing:
        raise DataError(f"{data_dir}: no parquet file of the split {missing[0]}")
    return files


def _folders(data_dir: Path) -> dict[str, Path]:
    """Image files by split/class/name, or class/name. Names that begin with . or __ are
    ignored."""
    folders = {path.name.lower(): path for path in _subfolders(data_dir)}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    others = [
        path.name
        for name, path in folders.items()
        if name not in (*TRAIN_FOLDERS, *TEST_FOLDERS)
    ]
    if train is None:
        tops = {"": data_dir}
    elif others:
        which = f"{train.name} and also {', '.join(others[:3])}"
        raise DataError(
            f"{data_dir}: is {train.name} a split or a class? It holds {which}: move one of them"
        )
    else:
        tops = {"train/": train, "test/": test} if test else {"": train}
    files: dict[str, Path] = {}
    for split, top in tops.items():
        for class_folder in _subfolders(top):
            images = images_in(class_folder)
            if not images:
                raise DataError(
                    f"{class_folder}: a class's folder without an image. Remove it, or fill it"
                )
            inner = sorted({path.relative_to(class_folder).parts[0] for path in images})
            if len(inner) > 1 and all(path.parent != class_folder for path in images):
                mend = "Splits are called train and test; or is task.data_dir a folder too high?"
                problem = (
                    f"holds folders of images, not of one class ({list_names(inner)})"
                )
                raise DataError(f"{class_folder} {problem}. {mend}")
            files |= {
                f"{split}{path.relative_to(top).as_posix()}": path for path in images
            }
    return files


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, and of the folders in it, sorted."""
    found = list[Path]()
    for inner, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [
            Path(inner, n)
            for n in names
            if not _hidden(n) and n.lower().endswith(ENDINGS)
        ]
    return sorted(found)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)
    )


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))
