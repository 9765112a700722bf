"""Reads and writes files: atomic writes, texts, JSON that is checked, and the one file of a
folder that matches a pattern."""

import contextlib
import importlib.util
import json
import os
import string
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from tasks.base import DataError, first_line, list_names, unquoted


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to. At the end of the with block this file becomes
    `path`; after an error it is removed. So nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other process or thread uses
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens UTF-8 text with or without a byte order mark. Line ends stay as they are in the
    file. Errors of reading become DataErrors."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        problem = f"{error.reason} at byte {error.start}"
        raise DataError(f"{path}: not UTF-8 text ({problem})") from None


T = TypeVar("T")
#: pydantic's reader of a type, built once.
_adapter: Any = cache(TypeAdapter)


def validated(kind: type[T], text: str, place: str) -> T:
    """The value in a JSON text, checked to be of this type.

    Args:
        kind: the type.
        text: the JSON text.
        place: where the text is from, which begins the error's message.

    Raises DataError, which names the key, for a value of another type, and for a text that
    is not JSON, has more than 200 levels, or a lone surrogate (half a character)."""
    try:
        value: T = _adapter(kind).validate_json(text)
    except ValidationError as error:
        raise DataError(f"{place}: {problem_of(error)}") from None
    return value


def problem_of(error: ValidationError) -> str:
    """The first problem that pydantic has found, as "key: message"."""
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{unquoted(key)}: {first['msg']}" if key else first["msg"]


# --- rows of a file


def read_objects(path: Path, model: type[T]) -> Iterator[tuple[str, T]]:
    """The objects of a JSONL file, each as (its file and line for messages, object). Blank
    lines are skipped. Raises DataError for a wrong object, and for a path that is no
    file: reading a pipe would wait forever."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a file")
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path} line {number}"
                yield place, validated(model, line, place)


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a parquet file, with their numbers from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({first_line(error)})") from None
    yield from enumerate(rows, 1)


def read_list(path: Path, model: type[T]) -> Iterator[tuple[str, T]]:
    """The objects of a JSONL file, a parquet file or a JSON file, each as (its file and
    number for messages, object). A JSON file holds one object or a list of them, which
    are numbered from 0. Raises DataError for a wrong object."""
    if path.suffix == ".jsonl":
        yield from read_objects(path, model)
        return
    if path.suffix == ".parquet":
        for number, row in read_parquet(path):
            place = f"{path} row {number}"
            yield place, validated(model, json.dumps(row), place)
        return
    with open_text(path) as file:
        text = file.read()
    if text.lstrip().startswith("{"):
        text = f"[{text}]"
    rows = validated(list[model], text, str(path))  # type: ignore[valid-type]
    for number, row in enumerate(rows):
        yield f"{path} row {number}", row


def placeholders(template: str) -> set[str]:
    """The names of the placeholders in a template of str.format, so that the caller can
    refuse unknown ones.

    Some results are meant to match no name that a caller knows: a placeholder with a
    conversion, a format or an attribute is returned together with that ("x!r:", "x!:>3",
    "x.real"), and a text that is no template is returned as a whole."""
    names = set()
    try:
        for _, name, form, conversion in string.Formatter().parse(template):
            if name is None:  # text without a placeholder after it
                continue
            if form or conversion:
                name = f"{name}!{conversion or ''}:{form}"
            names.add(name)
    except ValueError:
        return {template}
    return names


# --- files of a folder


def stamp(path: Path) -> tuple[int, int]:
    """A file's size in bytes and its time of change in nanoseconds; (-1, 0) where there is
    none. Another stamp means that the file may have changed."""
    try:
        stat = path.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def split_files(
    patterns: Mapping[str, Sequence[str]], *folders: Path
) -> dict[str, Path]:
    """The file of each split. All files are taken from the first of the folders that has
    any of them. patterns: of each split, as `find_file` takes them. Raises DataError where
    the first folder does not exist, or a split has no file."""
    if not folders[0].is_dir():
        problem = "no such folder"
        if folders[0].is_file():
            problem = "a file: give the folder that holds it"
        raise DataError(f"{folders[0]}: {problem} (task.data_dir)")
    place = " or ".join(map(str, folders))
    files: dict[str, Path] = {}
    for folder in folders:
        files = _files_by_split(patterns, folder)
        if files:
            place = str(folder)
            break
    for split, patterns_of_split in patterns.items():
        if split not in files:
            file = " or ".join(patterns_of_split[:3])
            raise DataError(f"{place}: no {file} (task.data_dir)")
    return files


def _files_by_split(
    patterns: Mapping[str, Sequence[str]], folder: Path
) -> dict[str, Path]:
    """The file of each split. A split that has none in the folder is left out."""
    files = {}
    for split, patterns_of_split in patterns.items():
        path = find_file(folder, *patterns_of_split)
        if path:
            files[split] = path
    return files


#: The hub's own file beside a data set's.
HUB_FILE = "dataset_infos.json"


def find_file(folder: Path, *patterns: str) -> Path | None:
    """The file that matches the first pattern with a match; None without any. Raises
    DataError where several match it. The hub's own dataset_infos.json does not count."""
    for pattern in patterns:
        matches = sorted(folder.glob(pattern))
        paths = [path for path in matches if path.is_file() and path.name != HUB_FILE]
        if len(paths) > 1:
            names = list_names(path.relative_to(folder) for path in paths)
            raise DataError(
                f"{folder}: {len(paths)} files where one is expected: {names}"
            )
        if paths:
            return paths[0]
    return None


def require_file(folder: Path, key: str, *patterns: str) -> Path:
    """As `find_file`, but raises DataError where there is none. key: the task's setting
    that names the folder."""
    path = find_file(folder, *patterns)
    if path is None:
        raise DataError(f"{folder}: no {' or '.join(patterns)} (task.{key})")
    return path


def module_file(name: str) -> Path | None:
    """The file of the module in a dotted name such as module.function; None if the name has
    no module, or the module no file. The module is not imported, but a package around it
    is."""
    try:
        spec = importlib.util.find_spec(name.rpartition(".")[0])
    except Exception:  # the package's own code may raise anything
        return None
    return Path(spec.origin) if spec and spec.origin else None
