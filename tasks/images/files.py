"""The files of a set of images: the layouts of the paper's four data sets, image folders, the hub's parquet
files."""

import os
from collections.abc import Sequence
from pathlib import Path

from tasks.base import DataError, listed

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)


def local_files(
    name: str, data_dir: Path, train_splits: Sequence[str], test_split: str | None
) -> dict[str, Path]:
    """The files of a local copy by their names inside it. data_dir: the set's own folder, or for a published
    set the folder of several sets. Raises DataError where it holds no images."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder (task.data_dir)")
    inner = (data_dir / folder for folder in FOLDERS.get(name, ()))
    data_dir = next((folder for folder in inner if folder.is_dir()), data_dir)
    files = _upstream(name, data_dir) or _parquet(data_dir, train_splits, test_split) or _folders(data_dir)
    if not files:
        if any(path.name.lower().endswith(ENDINGS) for path in data_dir.iterdir()):
            raise DataError(f"{data_dir}: images without folders for their classes (task.data_dir)")
        layouts = [*UPSTREAM.get(name, ()), "train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg"]
        raise DataError(f"{data_dir}: no images. It should hold {', '.join(layouts)}")
    return files


#: The folder of a published set, in a folder of several sets.
FOLDERS = {
    "cifar100": ("cifar100", "cifar-100-binary"),
    "food101": ("food101", "food-101"),
    "flowers102": ("flowers102", "flowers-102"),
    "resisc45": ("resisc45", "NWPU-RESISC45"),
}
#: The files of each as published, beside those of single images.
UPSTREAM = {
    "cifar100": ("train.bin", "test.bin", "fine_label_names.txt"),
    "food101": ("meta/train.txt", "meta/test.txt"),
    "flowers102": ("setid.mat", "imagelabels.mat"),
}


def _upstream(name: str, data_dir: Path) -> dict[str, Path]:
    files = {file: data_dir / file for file in UPSTREAM.get(name, ())}
    if not all(path.is_file() for path in files.values()):
        for folder in (data_dir, data_dir / "cifar-100-python"):
            if name == "cifar100" and all((folder / file).is_file() for file in ("train", "test", "meta")):
                raise DataError(f"{folder} holds pickles, which can run code. Take cifar-100-binary")
        return {}
    if name == "food101":
        lines = [f"images/{line}.jpg" for path in list(files.values()) for line in read_words(path)]
        files |= {line: data_dir / line for line in lines}
    if name == "flowers102":
        files |= {f"jpg/{path.name}": path for path in sorted((data_dir / "jpg").glob("*.jpg"))}
    return files


def read_words(path: Path) -> list[str]:
    """The words of a text file. Raises DataError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _parquet(data_dir: Path, train_splits: Sequence[str], test_split: str | None) -> dict[str, Path]:
    files: dict[str, Path] = {}
    missing = []
    for split in [*train_splits, *([test_split] if test_split else [])]:
        paths = sorted({*data_dir.rglob(f"{split}-*.parquet"), *data_dir.rglob(f"{split}.parquet")})
        folders = sorted({path.parent for path in paths})
        if len(folders) > 1:
            several = ", ".join(str(folder.relative_to(data_dir)) for folder in folders)
            raise DataError(f"{data_dir}: parquet files of several configurations: {several}")
        files |= {f"{split}/{number}.parquet": path for number, path in enumerate(paths)}
        missing += [] if paths else [split]
    if files and missing:
        raise DataError(f"{data_dir}: no parquet file of the split {missing[0]}")
    return files


#: Names of folders that are splits, in lower case. The first that exists is the test split.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "dev")


def _folders(data_dir: Path) -> dict[str, Path]:
    """Image files by split/class/name, or class/name. Names that begin with . or __ are ignored."""
    folders = {path.name.lower(): path for path in _subfolders(data_dir)}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    others = [path.name for name, path in folders.items() if name not in (*TRAIN_FOLDERS, *TEST_FOLDERS)]
    if train is None:
        tops = {"": data_dir}
    elif others:
        which = f"{train.name} and also {', '.join(others[:3])}"
        raise DataError(f"{data_dir}: is {train.name} a split or a class? It holds {which}: move one of them")
    else:
        tops = {"train/": train, "test/": test} if test else {"": train}
    files: dict[str, Path] = {}
    for split, top in tops.items():
        for class_folder in _subfolders(top):
            images = []
            for folder, inner, names in os.walk(class_folder, followlinks=True):
                inner[:] = [name for name in inner if not _hidden(name)]
                names = [name for name in names if not _hidden(name)]
                images += [Path(folder, name) for name in names if name.lower().endswith(ENDINGS)]
            _check_class(class_folder, images)
            files |= {f"{split}{path.relative_to(top).as_posix()}": path for path in sorted(images)}
    return files


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _check_class(folder: Path, images: list[Path]) -> None:
    """Raises DataError for a folder that is not one of a class: without images, or with folders of images."""
    if not images:
        raise DataError(f"{folder}: a folder for a class without an image. Remove it, or fill it")
    inner = sorted({path.relative_to(folder).parts[0] for path in images})
    if len(inner) > 1 and all(path.parent != folder for path in images):
        problem = f"holds folders of images ({listed(inner)}), where images of one class are expected"
        mend = "Splits are called train and test; or is task.data_dir a folder too high?"
        raise DataError(f"{folder} {problem}. {mend}")


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))
