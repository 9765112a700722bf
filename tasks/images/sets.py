"""The classes, splits and images in the files of an image set."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Array, DataError, first_line, listed, quoted, require_columns
from tasks.images.files import read_words
from tasks.images.pixels import Item


@dataclass
class Pool:
    """A name and a class index for each image of a split. items: the images of some indices, in order."""

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
    """The data set in the files of `local_files`, without decoding images. Raises DataError where classes of
    the splits differ, and for damaged files."""
    if "train.bin" in files:
        return _cifar100(files)
    if "meta/train.txt" in files:
        return _food101(files)
    if "setid.mat" in files:
        return _flowers102(files)
    if all(path.suffix == ".parquet" for path in files.values()):
        return _from_parquet(files, settings)
    return _from_folders(files)


def digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (the test set of UCI's optical recognition
    data)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return ImageSet([str(digit) for digit in range(10)], _in_memory("digit", pixels, data.target), None)


def digits_file() -> Path:
    """The file of the digits in scikit-learn's package."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"


def _in_memory(name: str, pixels: Array, labels: Array) -> Pool:
    names = [f"{name}/{index}" for index in range(len(pixels))]
    return Pool(names, labels.astype(np.int64), lambda indices: (pixels[index] for index in indices))


def _paths(names: list[str], labels: Sequence[int], files: dict[str, Path]) -> Pool:
    labels_ = np.asarray(labels, np.int64)
    return Pool(names, labels_, lambda indices: (files[names[index]] for index in indices))


def _cifar100(files: dict[str, Path]) -> ImageSet:
    classes, pools = read_words(files["fine_label_names.txt"]), {}
    for split in ("train", "test"):
        path = files[f"{split}.bin"]
        raw = np.fromfile(path, np.uint8)
        if not raw.size or raw.size % 3074:
            raise DataError(f"{path}: not whole records of 3,074 bytes. Is it cut off?")
        rows = raw.reshape(-1, 3074)  # the coarse label, the fine label, and the red, green and blue plane
        if rows[:, 1].max() >= len(classes):
            raise DataError(f"{path}: label {rows[:, 1].max()}, but {len(classes)} class names")
        pools[split] = _in_memory(split, rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 1])
    return ImageSet(classes, pools["train"], pools["test"])


def _food101(files: dict[str, Path]) -> ImageSet:
    lines = {split: read_words(files[f"meta/{split}.txt"]) for split in ("train", "test")}
    classes = sorted({line.partition("/")[0] for part in lines.values() for line in part})
    pools = [
        _paths([f"images/{x}.jpg" for x in part], [classes.index(x.partition("/")[0]) for x in part], files)
        for part in lines.values()
    ]
    return ImageSet(classes, *pools)


def _flowers102(files: dict[str, Path]) -> ImageSet:
    from scipy.io import loadmat

    arrays: dict[str, Any] = {}
    for name in ("setid.mat", "imagelabels.mat"):
        try:
            arrays |= loadmat(files[name])
        except Exception as error:  # scipy raises any error for a broken file
            raise DataError(f"{files[name]}: not a MATLAB file ({error})") from None
    labels = arrays["labels"].ravel().astype(int)  # from 1; the first is image_00001.jpg's
    pools = []
    for split in ("trnid", "tstid"):
        numbers = arrays[split].ravel().tolist()
        names = [f"jpg/image_{n:05d}.jpg" for n in numbers]
        if missing := [name for name in names if name not in files]:
            count = f"{len(missing)} of {len(numbers)} lack"
            raise DataError(f"{files['setid.mat'].parent / missing[0]}: no such file ({count})")
        pools.append(_paths(names, [int(labels[n - 1]) - 1 for n in numbers], files))
    return ImageSet([str(n) for n in range(1, labels.max() + 1)], *pools)


def _from_folders(files: dict[str, Path]) -> ImageSet:
    nested = any(name.count("/") > 1 for name in files)
    split = nested and all(name.startswith(("train/", "test/")) for name in files)
    splits = ("train/", "test/") if split else ("",)
    parts = [[name for name in files if name.startswith(prefix)] for prefix in splits]
    labels = [[name.split("/")[split] for name in part] for part in parts]
    classes = sorted(set(labels[0]))
    if differing := set(classes).symmetric_difference(labels[-1]):
        only = {"train": sorted(differing & set(classes)), "test": sorted(differing - set(classes))}
        words = [f"only {part} has {listed(names)}" for part, names in only.items() if names]
        where = next(iter(files.values())).parents[2]
        raise DataError(f"{where}: the class folders of train and test differ: {'; '.join(words)}")
    index = {name: number for number, name in enumerate(classes)}
    pools = [
        _paths(part, [index[name] for name in names], files)
        for part, names in zip(parts, labels, strict=True)
    ]
    return ImageSet(classes, pools[0], pools[1] if split else None)


def _from_parquet(files: dict[str, Path], settings: Any) -> ImageSet:
    image, label = settings["image_column"], settings["label_column"]
    splits: dict[str, list[Path]] = {"train": [], "test": []}
    for name, path in files.items():
        splits["test" if name.partition("/")[0] == settings["test_split"] else "train"].append(path)
    if not splits["test"]:
        del splits["test"]
    classes, labels, names, groups = list[str](), dict[str, list](), dict[str, list[str]](), dict[str, list]()
    for split, paths in splits.items():
        labels[split], names[split], groups[split] = [], [], []
        for path in paths:
            of_file, sizes, own_classes = _read_labels(path, image, label)
            labels[split] += of_file
            names[split] += [f"{path.stem}/{row}" for row in range(len(of_file))]
            groups[split] += [(path, group, size) for group, size in enumerate(sizes)]
            if classes and own_classes and own_classes != classes:
                raise DataError(f"{path}: its class names are not those of {splits['train'][0]}")
            classes = classes or own_classes
    where = splits["train"][0]
    if not all(labels.values()):
        raise DataError(f"{where.parent}: a split without rows")
    every = sorted({x for part in labels.values() for x in part}, key=lambda x: (str(type(x)), x))
    if all(isinstance(x, int) for x in every):
        classes = classes or [str(n) for n in range(max(every) + 1)]
        if every[0] < 0 or every[-1] >= len(classes):
            raise DataError(f"{where}: labels {every[0]} to {every[-1]}, but {len(classes)} class names")
        index = {n: n for n in every}
    else:
        classes = [str(x) for x in every]
        index = {x: n for n, x in enumerate(every)}
    pools = []
    for split, part in labels.items():
        indices = np.asarray([index[x] for x in part], np.int64)
        pools.append(Pool(names[split], indices, functools.partial(_rows, groups[split], image)))
    return ImageSet(classes, pools[0], pools[1] if len(pools) > 1 else None)


def _read_labels(path: Path, image: str, label: str) -> tuple[list[Any], list[int], list[str]]:
    """The labels of a parquet file, the size of each row group, and the names of the classes, if it has them.
    Raises DataError for a missing column, or a label that is neither a number nor a word."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
        require_columns(path, columns, sorted((image, label)), " (task.image_column, label_column)")
        labels = file.read([label]).column(label).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({first_line(error)})") from None
    odd = next((row for row, x in enumerate(labels) if not isinstance(x, int | str)), None)
    if odd is not None:
        raise DataError(f"{path} row {odd}: label {quoted(labels[odd])} is neither a number nor a word")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return labels, sizes, _class_names(file.schema_arrow.metadata, label)


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """The names of the classes in the hub's metadata; empty if there are none."""
    try:
        return list(json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"])
    except (KeyError, ValueError, TypeError):
        return []


def _rows(groups: list[tuple[Path, int, int]], column: str, indices: Sequence[int]) -> Iterator[Item]:
    """The images of some rows. groups: file, number and size of each row group. Rows that follow each other
    read their group once."""
    import pyarrow
    import pyarrow.parquet as parquet

    starts = np.cumsum([0, *(rows for _, _, rows in groups)])
    current, values = -1, list[Any]()
    for index in indices:
        group = int(np.searchsorted(starts, index, "right")) - 1
        if group != current:
            path, number, _ = groups[group]
            try:
                values = parquet.ParquetFile(path).read_row_group(number, [column]).column(column).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read ({first_line(error)})") from None
            current = group
        value = values[index - int(starts[group])]
        value = value["bytes"] if isinstance(value, dict) else value
        yield value if value is not None else b""
