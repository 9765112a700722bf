"""What a run was done with: code, versions and machine; and whether a record's sources
have changed since.

A run's id does not depend on the code. A record names committed code by its commit, and
uncommitted code by the hashes of the source files of its method and task family. torch is
not imported, since commands compare the sources of every finished run."""

import contextlib
import hashlib
import inspect
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import yaml

from runs.machine.gpus import driver_version, processor, processor_model
from runs.machine.hashes import files_sha256
from runs.record.files import write_atomically
from runs.record.ledger import INSTALLED, ROOT, built_from, run_folder
from runs.record.schema import Code, CodeSource, Device, Provenance, Record
from runs.run.definition import Run
from tasks.files import module_file

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def git_output(*arguments: str) -> str | None:
    """What `git ARGUMENTS` prints in this checkout; None outside of one, or where the
    command fails."""
    if INSTALLED:  # a repository around it, if any, is another project's
        return None
    try:
        finished = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return finished.stdout.strip()


#: What may change a run's numbers without being part of its identity, by name: see
#: `conditions_of_attempt`.
Conditions = dict[str, object]
#: An import statement. The group is all that it names, also in parentheses over several
#: lines.
IMPORT_STATEMENT = re.compile(
    r"^ *(?:import|from) ([^(\n]*(?:\([^)]*\))?)", re.MULTILINE
)
#: The folders of the checkout that a result depends on.
CODE_FOLDERS = ("vera", "tasks", "runs", "conf")


@cache
def code_state() -> Code:
    """The state of the code, as it was when this process, or the one that it was forked
    from, first called this.

    Returns:
        In a checkout, its commit; "dirty", whether a tracked file has changed since or
        CODE_FOLDERS have a file that is neither tracked nor ignored (records are no
        code); and what `upstream_commit` and `altered_files` return. For an installed
        wheel, commit and dirty alone, as they were when it was built, or None where
        that is not known.
    """
    commit = git_output("rev-parse", "HEAD")
    if commit is None:
        return built_from()
    without_records = ":!runs/records"
    changed_files = git_output(
        "status", "--porcelain", "--untracked-files=no", "--", without_records
    )
    untracked = ("--others", "--exclude-standard")
    new_files = git_output("ls-files", *untracked, "--", *CODE_FOLDERS, without_records)
    return {
        "commit": commit,
        "dirty": bool(changed_files or new_files),
        "upstream": upstream_commit(),
        "altered": altered_files(),
    }


def upstream_commit() -> str | None:
    """The newest commit of this checkout's history that the project itself has; None
    without a git checkout. The project is the remote "upstream", else the main branch
    of origin; without either, every commit counts as the project's."""
    # the commits of all its branches, one a line
    refs = git_output("for-each-ref", "--format=%(objectname)", "refs/remotes/upstream")
    if not refs:
        main = "refs/remotes/origin/HEAD"
        refs = git_output("rev-parse", "--verify", "--quiet", main) or "HEAD"
    # The newest common ancestor of HEAD and of any of these commits
    return git_output("merge-base", "HEAD", *refs.split())


def altered_files() -> list[str]:
    """The files in CODE_FOLDERS that `upstream_commit` has and that now differ from it, or
    are gone; none if there is no such commit."""
    commit = upstream_commit()
    if commit is None:
        return []
    # --diff-filter=a: without files that the commit lacks. -z: names are not quoted
    options = ("--name-only", "-z", "--no-renames", "--diff-filter=a")
    paths = (*CODE_FOLDERS, ":!runs/records")
    output = git_output("diff", *options, commit, "--", *paths) or ""
    return [name for name in output.split("\0") if name]


def _short_hash(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file, or of a package's files one after
    another."""
    return files_sha256(*_files_of(path))[:16]


def _files_of(path: Path) -> list[Path]:
    """The .py files of a package's folder; for a file, that file alone."""
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


#: The files and packages that a method's class or a task's family may be in.
SOURCE_PATTERNS = ("vera/methods/*.py", "tasks/*.py", "tasks/*/")
#: Their `_short_hash` when this process, or the one that it was forked from, started. It
#: runs the code of that moment, even where a file has been edited since.
HASHES_AT_START = {}
for _pattern in SOURCE_PATTERNS:
    for _path in ROOT.glob(_pattern):
        HASHES_AT_START[_path] = _short_hash(_path)


def code_sources(method: object, family: ModuleType) -> dict[str, CodeSource]:
    """What a record says of the file of the method's class ("method"), and of the file
    or package of the task's family ("task")."""
    family_file = Path(str(family.__file__))
    is_package = family_file.name == "__init__.py"
    return {
        "method": _describe_source(Path(inspect.getfile(type(method)))),
        "task": _describe_source(family_file.parent if is_package else family_file),
    }


def _describe_source(path: Path) -> CodeSource:
    """What a record says of a source file or package.

    Returns:
        file: its path from the checkout on, or its name if it lies elsewhere.
        sha256: the first 16 hex digits of its hash. A file of the checkout is hashed when
        this process starts, a user's own file when this function is called.
        imports: one hash of the modules beside it that it imports.
        uncommitted: whether it or one of them differs from the last commit; None if it
        lies outside of a checkout.
    """
    files = [path, *imports_of(path)]
    current = [_short_hash(file) for file in files]
    at_start = [HASHES_AT_START.get(file) or _short_hash(file) for file in files]
    imports = hashlib.sha256(" ".join(at_start[1:]).encode()).hexdigest()[:16]
    source: CodeSource = {"file": path.name, "sha256": at_start[0], "imports": imports}
    # a file elsewhere belongs to a project whose commits are not known
    if not path.is_relative_to(ROOT):
        source["uncommitted"] = None
        return source
    names = list[str]()
    for file in files:
        names += [part.relative_to(ROOT).as_posix() for part in _files_of(file)]
    uncommitted = _is_uncommitted(tuple(names), tuple(current))
    # The record names the commit of this process's start, which lacks later edits
    if uncommitted is not None and at_start != current:
        uncommitted = True
    source["file"] = path.relative_to(ROOT).as_posix()
    source["uncommitted"] = uncommitted
    return source


@cache
def _is_uncommitted(names: tuple[str, ...], hashes: tuple[str, ...]) -> bool | None:
    """Whether one of these files differs from the commit of `code_state`, or is not in
    it; None outside of a checkout. hashes: of the files. They are not read here, but make
    the cached answer hold for these contents only."""
    commit = str(code_state()["commit"])
    changed_files = git_output("diff", "--name-only", commit, "--", *names)
    if changed_files is None:
        return None
    untracked_files = git_output("ls-files", "--others", "--", *names)
    return bool(changed_files or untracked_files)


def imports_of(path: Path) -> list[Path]:
    """The modules beside a file that it imports, directly or through one of them; none
    for a package, whose files all count as its own."""
    modules = [path] if path.is_file() else []
    for module in modules:  # the list grows in the loop, so that all are searched
        text = module.read_text(encoding="utf-8", errors="replace")
        for imported in IMPORT_STATEMENT.findall(text):
            for name in re.findall(r"[\w.]+", imported):
                # the last part names a module, or something that is imported from one
                file = path.with_name(f"{name.rpartition('.')[2]}.py")
                if file.is_file() and file not in modules:
                    modules.append(file)
    return sorted(modules[1:])  # the first one is the file itself


def is_committed(record: Record) -> bool:
    """Whether the commit that a record names has the code that made it: no file of the
    checkout, of the method or of the task differed from it."""
    if record["code"]["dirty"]:
        return False
    sources = record["code"].get("sources", {}).values()
    return all(source.get("uncommitted") is False for source in sources)


def changed_sources(record: Record) -> list[str]:
    """What has changed since a record was made, for messages: a source file of its method
    or task by its name, or "a module that FILE imports".

    A file that was committed then and is committed now does not count: the commit
    of the record says which code it was. Neither does one that has moved. Older records
    lack the hash of their imports, which is then not compared.
    """
    names = []
    kind = record.get("config", {}).get("method", {}).get("kind", "")
    for part, source in record.get("code", {}).get("sources", {}).items():
        # the file of a class of the user's own, which is outside of the checkout
        user_file = module_file(kind) if part == "method" else None
        path = user_file or ROOT / source["file"]
        if not path.exists():
            continue
        current = _describe_source(path)
        has_uncommitted_code = source["uncommitted"] or current["uncommitted"]
        if not has_uncommitted_code and not user_file:
            continue
        if current["sha256"] != source.get("sha256", current["sha256"]):
            names.append(source["file"])
        elif current["imports"] != source.get("imports", current["imports"]):
            names.append(f"a module that {source['file']} imports")
    return names


def difference_if_run_again(record: Record, run: Run) -> str:
    """What of a finished run's record differs from the run as it would be done now, in
    words: its source files, and the settings of the adapter that it kept; "" if neither
    does."""
    settings = list[str]()
    keys: tuple[Literal["keep", "adapter_precision"], ...] = (
        "keep",
        "adapter_precision",
    )
    for key in keys:
        recorded = record["config"].get(key)
        if recorded != run.config[key]:
            settings.append(f"{key}={recorded} (not {run.config[key]})")
    differences = list[str]()
    files = changed_sources(record)
    if files:
        verb = "have" if len(files) > 1 else "has"
        names = " and ".join(files)
        differences.append(f"{names} {verb} changed since this record was made")
    if settings and record["status"] == "done" and run.config["keep"] != "none":
        differences.append(f"its adapter was kept with {' and '.join(settings)}")
    if not differences:
        return ""
    return "; ".join([*differences, "redo=true runs it again"])


# --- versions, machine, configuration


#: The packages whose versions a record has.
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "tokenizers",
    "spacy",
    "sacrebleu",
    "pycocoevalcap",
    "timm",
    "pillow",
    "numpy",
    "datasets",
    "evaluate",
    "scikit-learn",
    "scipy",
    "hydra-core",
)


def write_configuration(run: Run, run_id: str) -> None:
    """Writes config.yaml, the resolved configuration, and overrides.yaml into a run's
    folder, as Hydra's own main() would."""
    folder = run_folder(run.config["output"], run_id)
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", config)
    overrides = [*run.overrides, f"seed={run.seed}"]
    text = yaml.safe_dump(overrides, allow_unicode=True)
    write_atomically(folder / "overrides.yaml", text)


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of RECORDED_PACKAGES, as far as they are installed."""
    installed = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def describe_device(device: "torch.device") -> Device:
    """The record's `device`: the device and the system, without the machine's name."""
    import torch

    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor()
    description: Device = {
        "type": device.type,
        "name": name,
        "cpu": processor_model(),
        "system": platform.system(),
        "cuda": torch.version.cuda,
    }
    if not on_gpu:
        return description
    major, minor = torch.cuda.get_device_capability(device)
    description["driver"] = driver_version()
    description["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    description["capability"] = f"{major}.{minor}"
    return description


def make_provenance(code: Code, device: "torch.device") -> Provenance:
    """The code, versions and device of a run, as its record has them."""
    return {"code": code, "versions": {**versions()}, "device": describe_device(device)}


def conditions_of_attempt(
    code: Code, accelerator: "Accelerator", micro_batch: int | None
) -> Conditions:
    """The conditions of an attempt that starts now, by name. code: of this process.
    micro_batch: the run's setting."""
    import torch

    commit = str(code["commit"])[:12]
    if code["dirty"]:
        commit += " with uncommitted changes"
    return {
        "commit": commit,
        **versions(),
        "device": describe_device(accelerator.device)["name"],
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "micro_batch": micro_batch,
    }


def changed_conditions(earlier: Conditions, later: Conditions) -> str:
    """What differs between the conditions of two attempts, in words; "" if nothing."""
    texts = []
    for key in {**earlier, **later}:
        if earlier.get(key) != later.get(key):
            texts.append(f"{key} {earlier.get(key)}, then {later.get(key)}")
    return "; ".join(texts)
