"""The classes, splits and images in the files of an image set."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Array, DataError, first_line, listed, quoted, require_columns
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
    parquet = all(path.suffix == ".parquet" for path in files.values())
    return _from_parquet(files, settings) if parquet else _from_folders(files)


def digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (the test set of UCI's optical recognition
    data)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    names = [f"digit/{index}" for index in range(len(pixels))]
    pool = Pool(names, data.target.astype(np.int64), lambda indices: (pixels[index] for index in indices))
    return ImageSet([str(digit) for digit in range(10)], pool, None)


def digits_file() -> Path:
    """The file of the digits in scikit-learn's package."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"


def _from_folders(files: dict[str, Path]) -> ImageSet:
    nested = any(name.count("/") > 1 for name in files)
    split = nested and all(name.startswith(("train/", "test/")) for name in files)
    parts = [[n for n in files if n.startswith(top)] for top in (("train/", "test/") if split else ("",))]
    labels = [[name.split("/")[split] for name in part] for part in parts]
    classes = sorted(set(labels[0]))
    if differing := set(classes).symmetric_difference(labels[-1]):
        only = {"train": sorted(differing & set(classes)), "test": sorted(differing - set(classes))}
        words = [f"only {part} has {listed(names)}" for part, names in only.items() if names]
        where = next(iter(files.values())).parents[2]
        raise DataError(f"{where}: the class folders of train and test differ: {'; '.join(words)}")
    pools = [
        Pool(
            part,
            np.asarray([classes.index(n) for n in names], np.int64),
            functools.partial(_paths, part, files),
        )
        for part, names in zip(parts, labels, strict=True)
    ]
    return ImageSet(classes, pools[0], pools[1] if split else None)


def _paths(names: list[str], files: dict[str, Path], indices: Sequence[int]) -> Iterator[Item]:
    return (files[names[index]] for index in indices)


def _from_parquet(files: dict[str, Path], settings: Any) -> ImageSet:
    image, label = settings["image_column"], settings["label_column"]
    labels, names, places = dict[str, list[Any]](), dict[str, list[str]](), dict[str, list[_Place]]()
    classes, where = list[str](), next(iter(files.values()))
    for name, path in files.items():
        split = "test" if name.partition("/")[0] == settings["test_split"] else "train"
        of_file, sizes, own_classes = _read_labels(path, image, label)
        if classes and own_classes and own_classes != classes:
            raise DataError(f"{path}: its class names are not those of {where}")
        classes = classes or own_classes
        labels.setdefault(split, []).extend(of_file)
        names.setdefault(split, []).extend(f"{path.stem}/{row}" for row in range(len(of_file)))
        of_path = [(path, group, row) for group, size in enumerate(sizes) for row in range(size)]
        places.setdefault(split, []).extend(of_path)
    if not all(labels.values()):
        raise DataError(f"{where.parent}: a split without rows")
    every = sorted({x for part in labels.values() for x in part}, key=lambda x: (str(type(x)), x))
    index = {x: n for n, x in enumerate(every)}
    if all(isinstance(x, int) for x in every):
        classes = classes or [str(n) for n in range(max(every) + 1)]
        if every[0] < 0 or every[-1] >= len(classes):
            raise DataError(f"{where}: labels {every[0]} to {every[-1]}, but {len(classes)} class names")
        index = {n: n for n in every}
    else:
        classes = [str(x) for x in every]
    train, *test = (
        Pool(
            names[split],
            np.asarray([index[x] for x in labels[split]], np.int64),
            functools.partial(_cells, places[split], image),
        )
        for split in sorted(labels, reverse=True)
    )
    return ImageSet(classes, train, test[0] if test else None)


#: A file, the number of a row group in it, and that of a row in the group.
_Place = tuple[Path, int, int]


def _read_labels(path: Path, image: str, label: str) -> tuple[list[Any], list[int], list[str]]:
    """The labels of a parquet file, the size of each row group, and the names of the classes, if the hub's
    metadata has them. Raises DataError for a missing column, or a label that is neither a number nor a
    word."""
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
    classes = list[str]()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        about = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        classes = list(about["info"]["features"][label]["names"])
    return labels, sizes, classes


def _cells(places: list[_Place], column: str, indices: Sequence[int]) -> Iterator[Item]:
    """The images at some places. Rows that follow each other read their group once."""
    import pyarrow
    import pyarrow.parquet as parquet

    current, values = None, list[Any]()
    for path, group, row in (places[index] for index in indices):
        if (path, group) != current:
            try:
                values = parquet.ParquetFile(path).read_row_group(group, [column]).column(column).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read ({first_line(error)})") from None
            current = path, group
        value = values[row]["bytes"] if isinstance(values[row], dict) else values[row]
        yield value if value is not None else b""
