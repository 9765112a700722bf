"""Finds the files of an image set (folders of images, or the hub's parquet), and reads
their classes, splits and images."""

import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.base import (
    Array,
    DataError,
    Settings,
    first_line,
    list_names,
    quoted,
    require_columns,
)
from tasks.images.pixels import Item

#: The endings of files that are images, in lower case.
ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".avif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pnm",
)
#: Names of folders that are splits, in lower case. Of several that exist, the first one
#: here is the split.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "dev")

#: A class in a parquet file: its index, or its name.
Label = int | str


@dataclass
class Pool:
    """The images of a split. names, labels: the name and the class index of each. items: a
    function that reads the images at some indices, which must ascend."""

    names: list[str]
    labels: Array
    items: Callable[[Sequence[int]], Iterator[Item]]

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class ImageSet:
    """A data set. classes: the names of the classes, by index. test: None for a set without
    a test split, of which all images that are not trained on are evaluated on."""

    classes: list[str]
    train: Pool
    test: Pool | None


def read_images(files: Mapping[str, Path], settings: Settings) -> ImageSet:
    """The data set in the files of `local_files`, without decoding images. Raises
    DataError where classes of the splits differ, and for damaged files."""
    if all(path.suffix == ".parquet" for path in files.values()):
        return _from_parquet(files, settings)
    return _from_folders(files)


def digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI's optical
    recognition, its test set)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    # Its pixels are from 0 to 16
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    names = [f"digit/{index}" for index in range(len(pixels))]
    labels = data.target.astype(np.int64)
    pool = Pool(names, labels, lambda indices: (pixels[index] for index in indices))
    return ImageSet([str(digit) for digit in range(10)], pool, None)


# --- folders of images


def _from_folders(files: Mapping[str, Path]) -> ImageSet:
    """The set whose files are named split/class/name, or class/name where there are no
    splits. A name may have folders in it."""
    nested = any(name.count("/") > 1 for name in files)
    has_splits = nested and all(name.startswith(("train/", "test/")) for name in files)
    if not has_splits:
        names_and_labels = [(name, name.split("/")[0]) for name in files]
        classes = sorted({label for _, label in names_and_labels})
        return ImageSet(classes, _folder_pool(files, names_and_labels, classes), None)
    train = []
    test = []
    for name in files:
        split, label, *_ = name.split("/")
        if split == "train":
            train.append((name, label))
        else:
            test.append((name, label))
    classes = sorted({label for _, label in train})
    test_classes = sorted({label for _, label in test})
    if test_classes != classes:
        first_name, first_path = next(iter(files.items()))
        folder = first_path.parents[first_name.count("/")]  # which holds the splits
        raise DataError(
            f"{folder}: the class folders of train and test differ: "
            f"{_classes_of_one_split(classes, test_classes)}"
        )
    return ImageSet(
        classes,
        _folder_pool(files, train, classes),
        _folder_pool(files, test, classes),
    )


def _classes_of_one_split(train: Sequence[str], test: Sequence[str]) -> str:
    """Says which classes only one of the splits has, for an error."""
    phrases = []
    only_train = [name for name in train if name not in test]
    if only_train:
        phrases.append(f"only train has {list_names(only_train)}")
    only_test = [name for name in test if name not in train]
    if only_test:
        phrases.append(f"only test has {list_names(only_test)}")
    return "; ".join(phrases)


def _folder_pool(
    files: Mapping[str, Path],
    names_and_labels: Sequence[tuple[str, str]],
    classes: list[str],
) -> Pool:
    """The pool of these images. files: by the images' names."""
    names = [name for name, _ in names_and_labels]
    index_by_class = {label: index for index, label in enumerate(classes)}
    labels = np.asarray(
        [index_by_class[label] for _, label in names_and_labels], np.int64
    )
    return Pool(names, labels, lambda rows: (files[names[row]] for row in rows))


# --- the hub's parquet files


def _from_parquet(files: Mapping[str, Path], settings: Settings) -> ImageSet:
    """The set whose files are named split/number.parquet. Every split but task.test_split
    is trained on."""
    image_column, label_column = settings["image_column"], settings["label_column"]
    first_path = next(iter(files.values()))
    # The labels of each file, by split
    splits: dict[str, dict[Path, list[Label]]] = {}
    class_names: list[str] = []
    for name, path in files.items():
        split = "train"
        if name.partition("/")[0] == settings["test_split"]:
            split = "test"
        labels, names_in_file = _read_labels(path, image_column, label_column)
        splits.setdefault(split, {})[path] = labels
        if class_names and names_in_file and names_in_file != class_names:
            raise DataError(f"{path}: its class names are not those of {first_path}")
        class_names = class_names or names_in_file
    for labels_by_file in splits.values():
        if not any(labels_by_file.values()):  # no file of the split has a row
            raise DataError(f"{first_path.parent}: a split without rows")
    classes, index_by_label = _class_indices(splits, class_names, first_path)

    def pool(split: str) -> Pool:
        """The images of a split, from all of its files."""
        names, indices = [], []
        for path, labels in splits[split].items():
            names += [f"{path.stem}/{row}" for row in range(len(labels))]
            indices += [index_by_label[label] for label in labels]
        items = functools.partial(_read_images_at, list(splits[split]), image_column)
        return Pool(names, np.asarray(indices, np.int64), items)

    test = pool("test") if "test" in splits else None
    return ImageSet(classes, pool("train"), test)


def _class_indices(
    splits: Mapping[str, Mapping[Path, list[Label]]],
    class_names: list[str],
    first_path: Path,
) -> tuple[list[str], dict[Label, int]]:
    """The names of the classes, and the class index of each label. A number is its own
    index; but where any label is a word, the classes are the sorted labels.

    Args:
        splits: the labels of each file, by split.
        class_names: those in the hub's metadata; empty where it has none.
        first_path: a file, for the message.

    Raises DataError for a number beyond the names."""
    labels: set[Label] = set()
    for labels_by_file in splits.values():
        labels.update(*labels_by_file.values())
    numbers = sorted(label for label in labels if isinstance(label, int))
    if len(numbers) < len(labels):
        # By type first, since numbers and words cannot be compared
        ordered = sorted(labels, key=lambda label: (str(type(label)), label))
        return [str(label) for label in ordered], {
            label: index for index, label in enumerate(ordered)
        }
    classes = class_names or [str(number) for number in range(max(numbers) + 1)]
    if numbers[0] < 0 or numbers[-1] >= len(classes):
        raise DataError(
            f"{first_path}: labels {numbers[0]} to {numbers[-1]}, but {len(classes)} class "
            "names"
        )
    return classes, {number: number for number in numbers}


def _read_labels(
    path: Path, image_column: str, label_column: str
) -> tuple[list[Label], list[str]]:
    """The labels of a parquet file, and the names of the classes, which are none where the
    hub's metadata lacks them. Raises DataError for a missing column, or a label that is
    neither a number nor a word."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        hint = " (task.image_column, label_column)"
        require_columns(path, columns, sorted((image_column, label_column)), hint)
        labels = file.read([label_column]).column(label_column).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({first_line(error)})") from None
    for row, value in enumerate(labels):
        if not isinstance(value, int | str):
            raise DataError(
                f"{path} row {row}: label {quoted(value)} is neither a number nor a word"
            )
    classes: list[str] = []
    with contextlib.suppress(KeyError, ValueError, TypeError):
        metadata = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        classes = list(metadata["info"]["features"][label_column]["names"])
    return labels, classes


#: How many rows of a parquet file are read at a time.
READ_ROWS = 256


def _read_images_at(
    paths: Sequence[Path], column: str, rows: Sequence[int]
) -> Iterator[Item]:
    """The images of some rows. rows: ascending indices, which count the rows of all files
    as one list. column: where the images are. Rows are read in batches of READ_ROWS, up to
    the batch with the last of these."""
    import pyarrow
    import pyarrow.parquet as parquet

    remaining = deque(rows)
    # `start` is the index of the batch's first row, `end` that after its file's last row
    end = 0
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            start, end = end, end + file.metadata.num_rows
            if not remaining or remaining[0] >= end:
                continue
            for batch in file.iter_batches(READ_ROWS, columns=[column]):
                while remaining and remaining[0] < start + len(batch):
                    value = batch.column(0)[remaining.popleft() - start].as_py()
                    content = value["bytes"] if isinstance(value, dict) else value
                    yield content or b""  # an image without bytes fails when decoded
                if not remaining:
                    return
                start += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read ({first_line(error)})") from None


# --- files


def local_files(
    data_dir: Path, train_splits: Sequence[str], test_split: str | None
) -> dict[str, Path]:
    """The files of a local copy: parquet files as split/number.parquet, or else images as
    split/class/name or class/name, where a name may have folders in it. test_split: None
    without one. Raises DataError where the folder holds neither."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder (task.data_dir)")
    files = _parquet_files(data_dir, train_splits, test_split)
    files = files or _image_files(data_dir)
    if not files:
        raise DataError(
            f"{data_dir}: no images in folders. It should hold train/CLASS/*.jpg and "
            "test/CLASS/*.jpg, or CLASS/*.jpg, or the hub's parquet files "
            "(task.data_dir)"
        )
    return files


def _parquet_files(
    data_dir: Path, train_splits: Sequence[str], test_split: str | None
) -> dict[str, Path]:
    """The parquet files of the splits, by split/number.parquet; none in a folder without
    any. Raises DataError where only some splits have files, or splits have files in
    several folders."""
    splits = [*train_splits]
    if test_split:
        splits.append(test_split)
    files: dict[str, Path] = {}
    missing = []
    for split in splits:
        numbered = data_dir.rglob(f"{split}-*.parquet")
        paths = sorted({*numbered, *data_dir.rglob(f"{split}.parquet")})
        folders = sorted({path.parent for path in paths})
        if len(folders) > 1:
            names = ", ".join(str(folder.relative_to(data_dir)) for folder in folders)
            raise DataError(
                f"{data_dir}: parquet files of several configurations: {names}"
            )
        for number, path in enumerate(paths):
            files[f"{split}/{number}.parquet"] = path
        if not paths:
            missing.append(split)
    if files and missing:
        raise DataError(f"{data_dir}: no parquet file of the split {missing[0]}")
    return files


def _image_files(data_dir: Path) -> dict[str, Path]:
    """The image files, by split/class/name, or class/name without splits. Names that begin
    with . or __ are ignored."""
    files: dict[str, Path] = {}
    for prefix, folder in _split_folders(data_dir).items():
        for class_folder in _subfolders(folder):
            for path in _images_of_class(class_folder):
                files[f"{prefix}{path.relative_to(folder).as_posix()}"] = path
    return files


def _split_folders(data_dir: Path) -> dict[str, Path]:
    """The folders that hold the classes' folders, by the prefix that their images' names
    get: "train/" and "test/", or "" where there is only one such folder. Raises
    DataError where a folder called train may be a class."""
    folders = {path.name.lower(): path for path in _subfolders(data_dir)}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    if train is None:
        return {"": data_dir}
    splits = (*TRAIN_FOLDERS, *TEST_FOLDERS)
    classes = [path.name for name, path in folders.items() if name not in splits]
    if classes:
        raise DataError(
            f"{data_dir}: is {train.name} a split or a class? It holds {train.name} and "
            f"also {', '.join(classes[:3])}: move one of them"
        )
    return {"train/": train, "test/": test} if test else {"": train}


def _images_of_class(folder: Path) -> list[Path]:
    """The images in a class's folder. Raises DataError for one without images, and for
    one that seems to hold the folders of several classes."""
    images = images_in(folder)
    if not images:
        raise DataError(
            f"{folder}: a class's folder without an image. Remove it, or fill it"
        )
    inner = sorted({path.relative_to(folder).parts[0] for path in images})
    if len(inner) > 1 and all(path.parent != folder for path in images):
        raise DataError(
            f"{folder} holds folders of images, not of one class ({list_names(inner)}). "
            "Splits are called train and test; or is task.data_dir a folder too high?"
        )
    return images


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, and of the folders in it, sorted."""
    images = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]  # for os.walk
        for name in names:
            if name.lower().endswith(ENDINGS) and not _is_hidden(name):
                images.append(Path(parent, name))
    return sorted(images)


def _subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted."""
    paths = [path for path in folder.iterdir() if not _is_hidden(path.name)]
    return sorted(path for path in paths if path.is_dir())


def _is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is ignored, such as .git and __MACOSX."""
    return name.startswith((".", "__"))
