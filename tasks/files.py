"""Files that are written whole or not at all, texts, lines of JSON, and the one file of
a folder."""

import contextlib
import importlib.util
import json
import os
import socket
import string
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from tasks.base import DataError, first_line, listed, named


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end, or nothing where that fails:
    never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no other process or thread uses
    partial = path.with_name(
        f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    )
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens UTF-8 text with or without a byte order mark. Errors of reading become
    DataErrors."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


T = TypeVar("T")
_adapter: Any = cache(TypeAdapter)


def validated(kind: type[T], text: str, where: str) -> T:
    """The value in a JSON text. Raises DataError, which begins with `where` and names
    the key, for another kind, and for what is not JSON, has more than 200 levels, or a
    lone surrogate (half a character)."""
    try:
        return cast(T, _adapter(kind).validate_json(text))
    except ValidationError as error:
        raise DataError(f"{where}: {problem_of(error)}") from None


def problem_of(error: ValidationError) -> str:
    """The first problem that pydantic has found, after its key."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{named(place)}: {first['msg']}" if place else first["msg"]


def read_objects(path: Path, model: type[T]) -> Iterator[tuple[str, T]]:
    """The objects of a JSONL file, each with its file and line for messages. Raises
    DataError for a wrong one, and for what is no file: a pipe would be waited for."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a file")
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield (where := f"{path} line {number}"), validated(model, line, where)


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
    """The same of a JSONL or parquet file, a JSON list, whose objects are numbered from
    0, or one object."""
    if path.suffix == ".jsonl":
        yield from read_objects(path, model)
    elif path.suffix == ".parquet":
        for number, row in read_parquet(path):
            yield (
                (where := f"{path} row {number}"),
                validated(model, json.dumps(row), where),
            )
    else:
        with open_text(path) as file:
            text = file.read()
        text = f"[{text}]" if text.lstrip().startswith("{") else text
        rows = validated(list[model], text, str(path))  # type: ignore[valid-type]
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows))


def placeholders(template: str) -> set[str]:
    """The placeholders of a template of str.format, as they stand in their braces, and
    so that a form or an attribute is no known name; of what is no template, itself."""
    try:
        parts = [
            part[1:]
            for part in string.Formatter().parse(template)
            if part[1] is not None
        ]
    except ValueError:
        return {template}
    return {
        f"{name}!{kind or ''}:{form}" if form or kind else f"{name}"
        for name, form, kind in parts
    }


def stamp(path: Path) -> tuple[int, int]:
    """A file's size and time of change; -1 and 0 where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


def split_files(
    patterns: Mapping[str, Sequence[str]], *folders: Path
) -> dict[str, Path]:
    """The file of each split by its patterns (see `only_file`), from the first folder
    that has one. Raises DataError where the first is no folder, or a split has no
    file."""
    if not folders[0].is_dir():
        problem = (
            "a file: give the folder that holds it"
            if folders[0].is_file()
            else "no such folder"
        )
        raise DataError(f"{folders[0]}: {problem} (task.data_dir)")
    where: Any = " or ".join(map(str, folders))
    for folder in folders:
        found = {
            split: only_file(folder, *of_split) for split, of_split in patterns.items()
        }
        if any(found.values()):
            where = folder
            break
    if missing := [
        " or ".join(patterns[split][:3]) for split, path in found.items() if not path
    ]:
        raise DataError(f"{where}: no {missing[0]} (task.data_dir)")
    return {split: path for split, path in found.items() if path}


def only_file(folder: Path, *patterns: str) -> Path | None:
    """The file of the first pattern that has one; None without any. Raises DataError
    where it has several. The hub's own dataset_infos.json does not count."""
    for pattern in patterns:
        paths = sorted(
            p
            for p in folder.glob(pattern)
            if p.is_file() and p.name != "dataset_infos.json"
        )
        if len(paths) > 1:
            names = listed(path.relative_to(folder) for path in paths)
            raise DataError(
                f"{folder}: {len(paths)} files where one is expected: {names}"
            )
        if paths:
            return paths[0]
    return None


def the_file(folder: Path, key: str, *patterns: str) -> Path:
    """The same; raises DataError where it has none. key: of the task's settings, which
    names the folder."""
    if path := only_file(folder, *patterns):
        return path
    raise DataError(f"{folder}: no {' or '.join(patterns)} (task.{key})")


def module_file(name: str) -> Path | None:
    """The file of a dotted name's module, which is not imported (its package is); None
    without one."""
    try:
        spec = importlib.util.find_spec(name.rpartition(".")[0])
    except Exception:  # of the package's own code, and of a name without a dot
        return None
    return Path(spec.origin) if spec and spec.origin else None
