"""What is in the files of a set of images: classes, splits, and how to get at the images."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Array, DataError, listed, quoted
from tasks.images.files import read_words, some
from tasks.images.pixels import Item


@dataclass
class Pool:
    """Images of a split: a name and a class index for each, and how to get at some of them (in the order
    asked for)."""

    names: list[str]
    labels: Array
    items: Callable[[Sequence[int]], Iterator[Item]]

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class ImageSet:
    """A data set. test None: there is no split, and whatever is not trained on is evaluated on."""

    classes: list[str]
    train: Pool
    test: Pool | None


def read(name: str, files: dict[str, Path], settings: Any) -> ImageSet:
    """The data set in files of `local_files`. No image is decoded. Raises DataError where classes do not fit
    together."""
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
    """The file in scikit-learn's package that holds them."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"


def _in_memory(name: str, pixels: Array, labels: Array) -> Pool:
    names = [f"{name}/{index}" for index in range(len(pixels))]
    return Pool(names, labels.astype(np.int64), lambda indices: (pixels[index] for index in indices))


def _paths(names: list[str], labels: Sequence[int], files: dict[str, Path]) -> Pool:
    return Pool(
        names, np.asarray(labels, np.int64), lambda indices: (files[names[index]] for index in indices)
    )


def _cifar100(files: dict[str, Path]) -> ImageSet:
    classes, pools = read_words(files["fine_label_names.txt"]), {}
    for split in ("train", "test"):
        raw = np.fromfile(files[f"{split}.bin"], np.uint8)
        if not raw.size or raw.size % 3074:
            raise DataError(f"{files[f'{split}.bin']}: not whole records of 3,074 bytes. Is it cut off?")
        rows = raw.reshape(-1, 3074)  # the coarse label, the fine label, and the red, green and blue plane
        if rows[:, 1].max() >= len(classes):
            raise DataError(
                f"{files[f'{split}.bin']}: label {rows[:, 1].max()}, but {len(classes)} class names"
            )
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

    found: dict[str, Any] = {}
    for name in ("setid.mat", "imagelabels.mat"):
        try:
            found |= loadmat(files[name])
        except Exception as error:  # scipy raises whatever a broken file makes it stumble over
            raise DataError(f"{files[name]}: not a MATLAB file ({error})") from None
    labels = found["labels"].ravel().astype(int)  # from 1, of image_00001.jpg on
    pools = []
    for split in ("trnid", "tstid"):
        numbers = found[split].ravel().tolist()
        pools.append(
            _paths(
                [f"jpg/image_{n:05d}.jpg" for n in numbers], [int(labels[n - 1]) - 1 for n in numbers], files
            )
        )
        lacking = [name for name in pools[-1].names if name not in files]
        if lacking:
            raise DataError(
                f"{files['setid.mat'].parent / lacking[0]}: no such file ({len(lacking)} of {len(numbers)}"
                " lack)"
            )
    return ImageSet([str(n) for n in range(1, labels.max() + 1)], *pools)


def _from_folders(files: dict[str, Path]) -> ImageSet:
    split = all(name.startswith(("train/", "test/")) for name in files) and any(
        name.count("/") > 1 for name in files
    )
    parts = (
        [[n for n in files if n.startswith(f"{p}/")] for p in ("train", "test")] if split else [list(files)]
    )
    labels = [[name.split("/")[1 if split else 0] for name in part] for part in parts]
    classes = sorted(set(labels[0]))
    if split and set(labels[1]) != set(classes):
        lacking, more = sorted(set(classes) - set(labels[1])), sorted(set(labels[1]) - set(classes))
        where = next(iter(files.values())).parents[2]
        words = [f"only train has {some(lacking)}"] * bool(lacking) + [f"only test has {some(more)}"] * bool(
            more
        )
        raise DataError(f"{where}: the class folders of train and test differ: {'; '.join(words)}")
    index = {name: number for number, name in enumerate(classes)}
    pools = [
        _paths(part, [index[label] for label in words_], files)
        for part, words_ in zip(parts, labels, strict=True)
    ]
    return ImageSet(classes, pools[0], pools[1] if split else None)


def _from_parquet(files: dict[str, Path], settings: Any) -> ImageSet:
    import pyarrow
    import pyarrow.parquet as parquet

    image, label = settings["image_column"], settings["label_column"]
    pools, classes = {}, list[str]()
    train = [path for name, path in files.items() if name.partition("/")[0] != settings["test_split"]]
    test = [path for name, path in files.items() if path not in train]
    for split, paths in (("train", train), ("test", test)) if test else (("train", train),):
        names, labels, groups = [], [], []
        for path in paths:
            try:
                opened = parquet.ParquetFile(path)
                lacking = {image, label} - set(opened.schema_arrow.names)
                if lacking:
                    has = listed(opened.schema_arrow.names)
                    raise DataError(
                        f"{path}: no column {sorted(lacking)[0]!r}. It has: {has} (task.image_column,"
                        " label_column)"
                    )
                found = opened.read([label]).column(label).to_pylist()
                strange = next((row for row, x in enumerate(found) if not isinstance(x, int | str)), None)
                if strange is not None:
                    raise DataError(
                        f"{path} row {strange}: label {quoted(found[strange])} is neither a number nor a word"
                    )
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
            names += [f"{path.stem}/{row}" for row in range(len(found))]
            labels += found
            groups += [
                (path, group, opened.metadata.row_group(group).num_rows)
                for group in range(opened.num_row_groups)
            ]
            here = _class_names(opened.schema_arrow.metadata, label)
            if classes and here and here != classes:
                raise DataError(f"{path}: its class names are not those of {train[0]}")
            classes = classes or here
        pools[split] = (names, labels, groups)
    if not all(len(labels) for _, labels, _ in pools.values()):
        raise DataError(f"{train[0].parent}: a split without rows")
    every = sorted({x for _, labels, _ in pools.values() for x in labels}, key=lambda x: (str(type(x)), x))
    if all(isinstance(x, int) for x in every):
        classes = classes or [str(n) for n in range(max(every) + 1)]
        if every[0] < 0 or every[-1] >= len(classes):
            raise DataError(f"{train[0]}: labels {every[0]} to {every[-1]}, but {len(classes)} class names")
        index = {n: n for n in every}
    else:
        classes = [str(x) for x in every]
        index = {x: n for n, x in enumerate(every)}
    made = {
        split: Pool(
            names, np.asarray([index[x] for x in labels], np.int64), functools.partial(_rows, groups, image)
        )
        for split, (names, labels, groups) in pools.items()
    }
    return ImageSet(classes, made["train"], made.get("test"))


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """The names that the hub's own files carry; empty where there are none."""
    try:
        return list(json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"])
    except (KeyError, ValueError, TypeError):
        return []


def _rows(groups: list[tuple[Path, int, int]], column: str, indices: Sequence[int]) -> Iterator[Item]:
    """The images of some rows; a row group is read once for as many as follow each other in it."""
    import pyarrow
    import pyarrow.parquet as parquet

    starts = np.cumsum([0, *(rows for _, _, rows in groups)])
    held, values = -1, list[Any]()
    for index in indices:
        group = int(np.searchsorted(starts, index, "right")) - 1
        if group != held:
            path, number, _ = groups[group]
            try:
                values = parquet.ParquetFile(path).read_row_group(number, [column]).column(column).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
            held = group
        value = values[index - int(starts[group])]
        value = value["bytes"] if isinstance(value, dict) else value
        yield value if value is not None else b""
