"""The files of a set of images: folders of images, or the hub's parquet files."""

import os
from collections.abc import Sequence
from pathlib import Path

from tasks.base import DataError, listed

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)
#: Names of folders that are splits, in lower case. The first that exists is the test split.
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "dev")


def local_files(data_dir: Path, train_splits: Sequence[str], test_split: str | None) -> dict[str, Path]:
    """The files of a local copy by their names inside it. Raises DataError where it holds no images."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder (task.data_dir)")
    files = _parquet(data_dir, train_splits, test_split) or _folders(data_dir)
    if not files:
        layout = "train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg, or the hub's parquet files"
        raise DataError(f"{data_dir}: no images in folders. It should hold {layout} (task.data_dir)")
    return files


def _parquet(data_dir: Path, train_splits: Sequence[str], test_split: str | None) -> dict[str, Path]:
    """Parquet files by split/number.parquet."""
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
            images = sorted(_images(class_folder))
            if not images:
                raise DataError(
                    f"{class_folder}: a folder for a class without an image. Remove it, or fill it"
                )
            inner = sorted({path.relative_to(class_folder).parts[0] for path in images})
            if len(inner) > 1 and all(path.parent != class_folder for path in images):
                mend = "Splits are called train and test; or is task.data_dir a folder too high?"
                raise DataError(
                    f"{class_folder} holds folders of images, not of one class ({listed(inner)}). {mend}"
                )
            files |= {f"{split}{path.relative_to(top).as_posix()}": path for path in images}
    return files


def _images(folder: Path) -> list[Path]:
    found = list[Path]()
    for inner, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        found += [Path(inner, n) for n in names if not _hidden(n) and n.lower().endswith(ENDINGS)]
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))
