"""Which code made a record: the source files of its method and of its task family, and whether they have
changed since.

A run's id has no code in it. What is committed is told by the commit; what is not, by the hash of these two
files. No torch: a command that finds everything done asks this."""

import inspect
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from runs.file_hash import digest
from runs.methods import source_file
from runs.record import Record

ROOT = Path(__file__).parent.parent


def git(*words: str) -> str | None:
    """What git says of this checkout; None outside of one."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _digest(path: Path) -> str:
    """Of a file, or of all files of a package."""
    return digest(*(sorted(path.glob("*.py")) if path.is_dir() else [path]))[:16]


#: The files as this process, or the one that it was forked from, began with them: an edit after that is not
#: in what it runs.
AT_START = {
    path: _digest(path)
    for pattern in ("vera/methods/*.py", "tasks/*.py", "tasks/*/")
    for path in ROOT.glob(pattern)
}


def sources(method: object, family: ModuleType) -> dict[str, dict[str, Any]]:
    """For a record: the file of the method's class and the file or package of the task's family, by name,
    with the first 16 hex digits of its SHA-256, and whether it is untracked or differs from the last commit
    (None: no git checkout)."""
    task = Path(str(family.__file__))
    task = task.parent if task.name == "__init__.py" else task
    files = {"method": Path(inspect.getfile(type(method))), "task": task}
    return {part: _source(path) for part, path in files.items()}


def _source(path: Path) -> dict[str, Any]:
    began, now = AT_START.get(path) or _digest(path), _digest(path)
    if not path.is_relative_to(ROOT):  # of another project, whose commits are not known here
        return {"file": path.name, "sha256": began, "uncommitted": None}
    name = path.relative_to(ROOT).as_posix()
    # What was edited since this process began is in no commit that could be named here.
    return {"file": name, "sha256": began, "uncommitted": uncommitted(name, now) if began == now else True}


@cache
def uncommitted(name: str, digest: str) -> bool | None:
    """Whether a file of the checkout, with this content, is untracked or differs from the last commit; None:
    no checkout."""
    found = git("status", "--porcelain", "--untracked-files=all", "--", name)
    return None if found is None else bool(found)


def changed(record: Record) -> list[str]:
    """Those of a record's source files that have changed since, and are or were uncommitted. A file that has
    moved, and one that was committed both times, is no change; nor is anything of a record from before this
    was kept."""
    found, kind = [], record.get("config", {}).get("method", {}).get("kind", "")
    for part, source in record.get("code", {}).get("sources", {}).items():
        outside = source_file(kind) if part == "method" else None
        path = outside or ROOT / source["file"]
        now = _digest(path) if path.exists() else source["sha256"]
        if now != source["sha256"] and (outside or source["uncommitted"] or uncommitted(source["file"], now)):
            found.append(source["file"])
    return found


def changed_words(record: Record) -> str:
    """What a skipped run's line says of that; empty where there is nothing to say."""
    found = changed(record)
    verb = "have" if len(found) > 1 else "has"
    return (
        f"{' and '.join(found)} {verb} changed since this record was made; redo=true runs it again"
        if found
        else ""
    )
