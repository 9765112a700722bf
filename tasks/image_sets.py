"""Where images come from: the layouts of the paper's four data sets, image folders, the hub's parquet files,
digits."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import Array, DataError, listed, named, quoted
from tasks.pixels import Item

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


# --- which files


def local_files(
    name: str, data_dir: Path, train_splits: Sequence[str], test_split: str | None
) -> dict[str, Path]:
    """The files of a local copy by their names inside it. data_dir: the set's own folder, or for a published
    set the one that holds them all by name. Raises DataError where there is nothing that can be read."""
    if not data_dir.is_dir():
        raise DataError(
            f"{data_dir}: {'no folder' if data_dir.exists() else 'no such folder'} (task.data_dir)"
        )
    data_dir = next(
        (data_dir / inner for inner in HOMES.get(name, ()) if (data_dir / inner).is_dir()), data_dir
    )
    found = _upstream(name, data_dir) or _parquet(data_dir, train_splits, test_split) or _folders(data_dir)
    if not found:
        kinds = f"{UPSTREAM[name]}, " if name in UPSTREAM else ""
        if any(path.name.lower().endswith(ENDINGS) for path in data_dir.iterdir()):
            raise DataError(
                f"{data_dir}: images without folders for their classes. Is the folder above meant?"
                " (task.data_dir)"
            )
        raise DataError(
            f"{data_dir}: no images. It should hold {kinds}train/CLASS/*.jpg and test/CLASS/*.jpg, or"
            " CLASS/*.jpg"
        )
    return found


#: What a published set's folder is called, in a folder that holds several.
HOMES = {
    "cifar100": ("cifar100", "cifar-100-binary"),
    "food101": ("food101", "food-101"),
    "flowers102": ("flowers102", "flowers-102"),
    "resisc45": ("resisc45", "NWPU-RESISC45"),
}
#: The files by which each is known.
UPSTREAM = {
    "cifar100": "train.bin, test.bin and fine_label_names.txt",
    "food101": "images/ and meta/",
    "flowers102": "jpg/, imagelabels.mat and setid.mat",
}


def _upstream(name: str, data_dir: Path) -> dict[str, Path]:
    if name == "cifar100":
        files = {file: data_dir / file for file in ("train.bin", "test.bin", "fine_label_names.txt")}
        if all(path.is_file() for path in files.values()):
            return files
        for folder in (data_dir, data_dir / "cifar-100-python"):
            if all((folder / file).is_file() for file in ("train", "test", "meta")):
                raise DataError(
                    f"{folder} holds pickles, which can run code. Take CIFAR-100's binary version"
                    " (cifar-100-binary)"
                )
    if name == "food101":
        lists = {f"meta/{split}.txt": data_dir / "meta" / f"{split}.txt" for split in ("train", "test")}
        if all(path.is_file() for path in lists.values()):
            lines = [line for path in lists.values() for line in _lines(path)]
            return lists | {f"images/{line}.jpg": data_dir / "images" / f"{line}.jpg" for line in lines}
    if name == "flowers102":
        files = {file: data_dir / file for file in ("setid.mat", "imagelabels.mat")}
        if all(path.is_file() for path in files.values()):
            return files | {f"jpg/{path.name}": path for path in sorted((data_dir / "jpg").glob("*.jpg"))}
    return {}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _parquet(data_dir: Path, train_splits: Sequence[str], test_split: str | None) -> dict[str, Path]:
    wanted = [*train_splits, *([test_split] if test_split else [])]
    found: dict[str, Path] = {}
    for split in wanted:
        files = sorted({*data_dir.rglob(f"{split}-*.parquet"), *data_dir.rglob(f"{split}.parquet")})
        homes = sorted({path.parent for path in files})
        if len(homes) > 1:
            several = ", ".join(str(home.relative_to(data_dir)) for home in homes)
            raise DataError(
                f"{data_dir}: parquet files of several configurations ({several}). Give one (task.data_dir=)"
            )
        found |= {f"{split}/{number}.parquet": path for number, path in enumerate(files)}
    lacking = [split for split in wanted if not any(name.startswith(f"{split}/") for name in found)]
    if found and lacking:
        raise DataError(f"{data_dir}: no parquet file of the split {lacking[0]}")
    return found


#: Names of folders that are splits, in small letters; of several that are there the first is the test split.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "dev")


def _folders(data_dir: Path) -> dict[str, Path]:
    """Image files by split/class/name, or class/name. Names that begin with . or __ are none of the
    data's."""
    homes = {
        path.name.lower(): path
        for path in sorted(data_dir.iterdir())
        if path.is_dir() and not _hidden(path.name)
    }
    train = next((homes[name] for name in TRAIN_FOLDERS if name in homes), None)
    test = next((homes[name] for name in TEST_FOLDERS if name in homes), None)
    others = [path.name for name, path in homes.items() if name not in (*TRAIN_FOLDERS, *TEST_FOLDERS)]
    if train is None:
        tops = {"": data_dir}
    elif others:
        which = f"{train.name} and also {', '.join(others[:3])}"
        raise DataError(f"{data_dir}: is {train.name} a split or a class? It holds {which}: move one of them")
    else:
        tops = {"train/": train, "test/": test} if test else {"": train}
    files: dict[str, Path] = {}
    for split, top in tops.items():
        for home in sorted(path for path in top.iterdir() if path.is_dir() and not _hidden(path.name)):
            inside = []
            for folder, inner, names in os.walk(home, followlinks=True):
                inner[:] = [name for name in inner if not _hidden(name)]
                inside += [
                    Path(folder, name)
                    for name in names
                    if name.lower().endswith(ENDINGS) and not _hidden(name)
                ]
            _one_class(home, inside)
            files |= {f"{split}{path.relative_to(top).as_posix()}": path for path in sorted(inside)}
    return files


def _one_class(home: Path, images: list[Path]) -> None:
    """Raises DataError for a folder that would be a class by its place, and by what it holds is none: its
    name would be learnt in a class's stead."""
    if not images:
        raise DataError(
            f"{home}: a folder for a class without an image ({', '.join(ENDINGS[:6])}, ...). Remove it, or"
            " fill it"
        )
    inner = sorted({path.relative_to(home).parts[0] for path in images})
    if len(inner) > 1 and all(path.parent != home for path in images):
        where = f"{home} holds folders of images ({_some(inner)}), where images of one class are expected"
        raise DataError(f"{where}. Splits are called train and test; or is task.data_dir a folder too high?")


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))


# --- what is in them


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
    classes, pools = _lines(files["fine_label_names.txt"]), {}
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
    lines = {split: _lines(files[f"meta/{split}.txt"]) for split in ("train", "test")}
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
        words = [f"only train has {_some(lacking)}"] * bool(lacking) + [
            f"only test has {_some(more)}"
        ] * bool(more)
        raise DataError(f"{where}: the class folders of train and test differ: {'; '.join(words)}")
    index = {name: number for number, name in enumerate(classes)}
    pools = [
        _paths(part, [index[label] for label in words_], files)
        for part, words_ in zip(parts, labels, strict=True)
    ]
    return ImageSet(classes, pools[0], pools[1] if split else None)


def _some(names: list[str]) -> str:
    return ", ".join(map(named, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
