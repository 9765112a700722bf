"""Which files a set of images is made of: the layouts of the paper's four data sets, image folders, the hub's
parquet files."""

import os
from collections.abc import Sequence
from pathlib import Path

from tasks.base import DataError, named

_ENDINGS = ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .avif .tif .tiff .ppm .pgm .pnm"
ENDINGS = tuple(_ENDINGS.split())


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
            lines = [line for path in lists.values() for line in read_words(path)]
            return lists | {f"images/{line}.jpg": data_dir / "images" / f"{line}.jpg" for line in lines}
    if name == "flowers102":
        files = {file: data_dir / file for file in ("setid.mat", "imagelabels.mat")}
        if all(path.is_file() for path in files.values()):
            return files | {f"jpg/{path.name}": path for path in sorted((data_dir / "jpg").glob("*.jpg"))}
    return {}


def read_words(path: Path) -> list[str]:
    """The words of a text file. Raises DataError where it cannot be read."""
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
        where = f"{home} holds folders of images ({some(inner)}), where images of one class are expected"
        raise DataError(f"{where}. Splits are called train and test; or is task.data_dir a folder too high?")


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def some(names: list[str]) -> str:
    """The first five of several names, and how many more there are."""
    return ", ".join(map(named, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
