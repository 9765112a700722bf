"""The code of a record: the source files of its method and of its task family, and whether they have changed
since.

A run's id has no code in it. Committed code is known by its commit, and uncommitted code by the hashes of
these files. No torch: a command asks this for every run that is done already."""

import ast
import inspect
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from runs.file_hash import digest, stamp
from runs.methods import source_file
from runs.record import Record

ROOT = Path(__file__).parent.parent


def git(*words: str) -> str | None:
    """The output of a git command in this checkout; None outside of one."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _digest(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file, or of all files of a package."""
    files = tuple(sorted(path.glob("*.py"))) if path.is_dir() else (path,)
    return _digest_once(files, tuple(map(stamp, files)))


@cache
def _digest_once(files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    return digest(*files)[:16]


#: The files when this process, or the one that it was forked from, started: it runs those, whatever is edited
#: later.
AT_START = {
    path: _digest(path)
    for pattern in ("vera/methods/*.py", "tasks/*.py", "tasks/*/")
    for path in ROOT.glob(pattern)
}


def sources(method: object, family: ModuleType) -> dict[str, dict[str, Any]]:
    """For a record: the file of the method's class, and the file or package of the task's family.

    file: its name. sha256: the first 16 hex digits. imports: the same of the modules beside it that it
    imports, by name. uncommitted: whether one of them is untracked or differs from the last commit; None
    outside of the git checkout."""
    task = Path(str(family.__file__))
    task = task.parent if task.name == "__init__.py" else task
    files = {"method": Path(inspect.getfile(type(method))), "task": task}
    return {part: _source(path) for part, path in files.items()}


def _source(path: Path) -> dict[str, Any]:
    files = [path, *_imports(path)]
    now = {file: _digest(file) for file in files}
    began = {file: AT_START.get(file) or now[file] for file in files}
    inside = path.is_relative_to(ROOT)
    # The commits of another project are not known here. An edit since this process started is in no commit
    # that the record could name.
    dirty = uncommitted(tuple(map(_name, files)), tuple(now.values())) if inside else None
    return {
        "file": _name(path) if inside else path.name,
        "sha256": began[path],
        "imports": {file.name: began[file] for file in files[1:]},
        "uncommitted": True if inside and began != now else dirty,
    }


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> list[Path]:
    """The modules in a file's folder that it imports, and those that they import; of a package none, since
    all its files count."""
    files, new = list[Path](), [path] if path.is_file() else []
    while new:
        try:
            tree = ast.parse(new.pop().read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # edited at this moment
            continue
        modules = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in modules for alias in node.names}
        names |= {str(node.module) for node in modules if isinstance(node, ast.ImportFrom)}
        for name in names:
            file = path.with_name(f"{name.rpartition('.')[2]}.py")
            if file.is_file() and file not in (path, *files):
                files.append(file)
                new.append(file)
    return sorted(files)


@cache
def uncommitted(names: tuple[str, ...], digests: tuple[str, ...]) -> bool | None:
    """Whether one of these files of the checkout, with these contents, is untracked or differs from the last
    commit; None outside of a checkout."""
    changes = git("status", "--porcelain", "--untracked-files=all", "--", *names)
    return None if changes is None else bool(changes)


def changed(record: Record) -> list[str]:
    """The source files of a record that have changed since and are, or were, uncommitted. Not a file that has
    moved, one that was committed both times, or one that an older record does not list."""
    files, kind = [], record.get("config", {}).get("method", {}).get("kind", "")
    for part, source in record.get("code", {}).get("sources", {}).items():
        outside = source_file(kind) if part == "method" else None
        path = outside or ROOT / source["file"]
        hashes = {path: source["sha256"]}
        hashes |= {path.parent / name: value for name, value in source.get("imports", {}).items()}
        for file, before in hashes.items():
            now = _digest(file) if file.exists() else before
            if now == before:
                continue
            if outside or source["uncommitted"] or uncommitted((_name(file),), (now,)):
                files.append(file.name if outside else _name(file))
    return list(dict.fromkeys(files))


def changed_words(record: Record) -> str:
    """A sentence on `changed` for the line of a skipped run; empty where nothing has changed."""
    files = changed(record)
    verb = "have" if len(files) > 1 else "has"
    return (
        f"{' and '.join(files)} {verb} changed since this record was made; redo=true runs it again"
        if files
        else ""
    )
