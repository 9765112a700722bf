"""The code of a record: the source files of its method and of its task family, and whether they have changed
since.

A run's id has no code in it. Committed code is known by its commit, and uncommitted code by the hashes of
these files. No torch: a command asks this for every run that is done already."""

import ast
import hashlib
import inspect
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from runs.file_hash import digest
from runs.methods import source_file
from runs.record import INSTALLED, ROOT, Record
from runs.run import Run
from tasks.files import stamp


def git(*words: str) -> str | None:
    """The output of a git command in this checkout; None outside of one."""
    if INSTALLED:  # the repository around it, if any, is another project's
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@cache
def head() -> str | None:
    """The commit of this checkout when a process first asks, or the one that it was forked from did."""
    return git("rev-parse", "HEAD")


def _digest(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file, or of all files of a package."""
    files = _files_of(path)
    return _digest_once(files, tuple(map(stamp, files)))


def _files_of(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(path.glob("*.py"))) if path.is_dir() else (path,)


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

    file: its name. sha256: the first 16 hex digits. imports: one hash of the modules beside it that it
    imports. uncommitted: whether one of them is untracked or differs from the last commit; None outside of a
    git checkout."""
    task = Path(str(family.__file__))
    task = task.parent if task.name == "__init__.py" else task
    files = {"method": Path(inspect.getfile(type(method))), "task": task}
    return {part: _source(path) for part, path in files.items()}


def _source(path: Path) -> dict[str, Any]:
    files = [path, *_imports(path)]
    now = [_digest(file) for file in files]
    began = [AT_START.get(file) or value for file, value in zip(files, now, strict=True)]
    imports = hashlib.sha256(" ".join(began[1:]).encode()).hexdigest()[:16]
    source: dict[str, Any] = {"file": path.name, "sha256": began[0], "imports": imports}
    if not path.is_relative_to(ROOT):  # the commits of another project are not known here
        return source | {"uncommitted": None}
    # What was edited since this process started is in no commit that the record could name
    commit, edited = head(), None
    if commit is not None:
        names = [one.relative_to(ROOT).as_posix() for file in files for one in _files_of(file)]
        edited = began != now or uncommitted(tuple(names), tuple(now), commit)
    return source | {"file": path.relative_to(ROOT).as_posix(), "uncommitted": edited}


def _imports(path: Path) -> list[Path]:
    """The modules in a file's folder that it imports, and those that they import; of a package none, since
    all its files count."""
    files, new = list[Path](), [path] if path.is_file() else []
    while new:
        file = new.pop()
        for name in _imported_names(file, stamp(file)):
            beside = path.with_name(f"{name}.py")
            if beside.is_file() and beside not in (path, *files):
                files.append(beside)
                new.append(beside)
    return sorted(files)


@cache
def _imported_names(path: Path, stamp: tuple[int, int]) -> set[str]:
    """The last parts of the names that a file imports: modules, and what is imported from modules."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # being edited at this moment
        return set()
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    return {name.rpartition(".")[2] for name in names}


@cache
def uncommitted(names: tuple[str, ...], digests: tuple[str, ...], commit: str) -> bool | None:
    """Whether one of these files of the checkout, with these contents, is untracked or differs from a commit;
    None outside of a checkout."""
    changes = git("diff", "--name-only", commit, "--", *names)
    if changes is None:
        return None
    return bool(changes or git("ls-files", "--others", "--", *names))  # with ignored files


def is_committed(record: Record) -> bool:
    """Whether the commit that a record names has the code that made it."""
    sources = record["code"].get("sources", {}).values()
    return not (record["code"]["dirty"] or any(source.get("uncommitted") is not False for source in sources))


def changed(record: Record) -> list[str]:
    """The source files of a record that have changed since, or whose imports have, and that are or were
    uncommitted. Not a file that has moved, and none that was committed both times; of an older record, whose
    imports are not known, only the files themselves."""
    names, kind = [], record.get("config", {}).get("method", {}).get("kind", "")
    for part, source in record.get("code", {}).get("sources", {}).items():
        outside = source_file(kind) if part == "method" else None
        path = outside or ROOT / source["file"]
        if path.exists():
            now = _source(path)
            itself, beside = (now[key] != source.get(key, now[key]) for key in ("sha256", "imports"))
            if (itself or beside) and (outside or source["uncommitted"] or now["uncommitted"]):
                names.append(source["file"] if itself else f"a module that {source['file']} imports")
    return names


def differs(record: Record, run: Run) -> str:
    """What is not as it would be if a finished run were done now: sources, and the adapter on disk."""
    # Records of old versions have no adapter_precision
    had, keys = {"adapter_precision": "fp32"} | record["config"], ["keep", "adapter_precision"]
    kept = [f"{key}={had[key]} (not {run.config[key]})" for key in keys if had[key] != run.config[key]]
    files, found = changed(record), list[str]()
    if files:
        verb = "have" if len(files) > 1 else "has"
        found.append(f"{' and '.join(files)} {verb} changed since this record was made")
    if kept and record["status"] == "done" and run.config["keep"] != "none":
        found.append(f"its adapter was kept with {' and '.join(kept)}")
    return "; ".join([*found, "redo=true runs it again"]) if found else ""
