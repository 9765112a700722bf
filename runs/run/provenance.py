"""What a run was done with: code, versions and machine; and whether a record's sources
have changed since.

A run's id has no code in it. Committed code is known by its commit, and uncommitted
code by the hashes of the source files of its method and task family. torch is not
imported: commands ask of every run that is done."""

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

from runs.machine.gpus import driver, processor, processor_model
from runs.machine.hashes import files_sha256
from runs.record.files import write_atomically
from runs.record.ledger import INSTALLED, ROOT, built_from, run_folder
from runs.record.schema import Code, CodeSource, Device, Provenance, Record
from runs.run.definition import Run
from tasks.files import module_file

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


def git(*words: str) -> str | None:
    """The output of a git command in this checkout; None outside of one."""
    if INSTALLED:  # the repository around it, if any, is another project's
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


#: What may change a run's numbers without being part of its identity.
Conditions = dict[str, object]
#: What a module imports, with all that follows in parentheses.
IMPORT = re.compile(r"^ *(?:import|from) ([^(\n]*(?:\([^)]*\))?)", re.MULTILINE)
#: The folders of the checkout that a result depends on.
MAKING = ("vera", "tasks", "runs", "conf")


@cache
def code_state() -> Code:
    """The commit of the code, and whether files differ from it (dirty): a tracked file
    has changed, or a folder of MAKING holds a file that is neither tracked nor ignored.
    upstream, altered: as `upstream` and `altered`. As it was when this process, or the
    one that it was forked from, first asked; of an installed wheel commit and dirty
    alone, when it was built. Without a checkout or a wheel's build.json both are None.
    Records are no code."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return built_from()
    changed_files = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":!runs/records"
    )
    new_files = git(
        "ls-files", "--others", "--exclude-standard", "--", *MAKING, ":!runs/records"
    )
    return {
        "commit": commit,
        "dirty": bool(changed_files or new_files),
        "upstream": upstream(),
        "altered": altered(),
    }


def upstream() -> str | None:
    """The newest commit of this checkout's history that the project has: of the remote
    "upstream" or else of origin's main branch; without either, the last one. None
    without a git checkout."""
    main = "refs/remotes/origin/HEAD"
    refs = git("for-each-ref", "--format=%(objectname)", "refs/remotes/upstream")
    refs = refs or git("rev-parse", "--verify", "--quiet", main) or "HEAD"
    return git("merge-base", "HEAD", *refs.split())


def altered() -> list[str]:
    """The project's own files in MAKING that differ from `upstream` or are gone; added
    files do not count."""
    options = ("--name-only", "-z", "--no-renames", "--diff-filter=a")
    paths = (*MAKING, ":!runs/records")
    output = git("diff", *options, f"{upstream()}", "--", *paths) or ""
    return [name for name in output.split("\0") if name]


def _digest(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file, or of all files of a
    package."""
    return files_sha256(*_files_of(path))[:16]


def _files_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


#: The files when this process, or the one that it was forked from, started: it runs
#: those, however edited.
PATTERNS = ("vera/methods/*.py", "tasks/*.py", "tasks/*/")
AT_START = {path: _digest(path) for pattern in PATTERNS for path in ROOT.glob(pattern)}


def code_sources(method: object, family: ModuleType) -> dict[str, CodeSource]:
    """For a record: the file of the method's class, and the file or package of the
    task's family.

    file: its name. sha256: the first 16 hex digits. imports: one hash of the modules
    beside it that it imports. uncommitted: whether one of them is not as in the last
    commit; None outside of a git checkout."""
    task = Path(str(family.__file__))
    task = task.parent if task.name == "__init__.py" else task
    files = {"method": Path(inspect.getfile(type(method))), "task": task}
    return {part: _source(path) for part, path in files.items()}


def _source(path: Path) -> CodeSource:
    files = [path, *imports_of(path)]
    current = [_digest(file) for file in files]
    # as this process runs them
    at_start = [AT_START.get(file) or _digest(file) for file in files]
    imports = hashlib.sha256(" ".join(at_start[1:]).encode()).hexdigest()[:16]
    source: CodeSource = {"file": path.name, "sha256": at_start[0], "imports": imports}
    # the commits of another project are not known here
    if not path.is_relative_to(ROOT):
        source["uncommitted"] = None
        return source
    names = list[str]()
    for file in files:
        names += [part.relative_to(ROOT).as_posix() for part in _files_of(file)]
    uncommitted = _uncommitted(tuple(names), tuple(current))
    # What was edited since this process started is in no commit that the record could
    # name
    if uncommitted is not None and at_start != current:
        uncommitted = True
    source["file"] = path.relative_to(ROOT).as_posix()
    source["uncommitted"] = uncommitted
    return source


@cache
def _uncommitted(names: tuple[str, ...], digests: tuple[str, ...]) -> bool | None:
    """Whether one of these files, with these contents, is in no commit or differs from
    the last."""
    commit = str(code_state()["commit"])
    changed_files = git("diff", "--name-only", commit, "--", *names)
    if changed_files is None:
        return None
    # with ignored files
    return bool(changed_files or git("ls-files", "--others", "--", *names))


def imports_of(path: Path) -> list[Path]:
    """The modules beside a file that it imports, and that they do; none of a package:
    all its files count."""
    modules = [path] if path.is_file() else []
    for module in modules:  # which grows
        text = module.read_text(encoding="utf-8", errors="replace")
        for imported in IMPORT.findall(text):
            for name in re.findall(r"[\w.]+", imported):
                # the last part: of a module, or of what is imported from it
                file = path.with_name(f"{name.rpartition('.')[2]}.py")
                if file.is_file() and file not in modules:
                    modules.append(file)
    return sorted(modules[1:])


def is_committed(record: Record) -> bool:
    """Whether the commit that a record names has the code that made it."""
    if record["code"]["dirty"]:
        return False
    sources = record["code"].get("sources", {}).values()
    return all(source.get("uncommitted") is False for source in sources)


def changed_sources(record: Record) -> list[str]:
    """The source files of a record that have changed since, or whose imports have, and
    that are or were uncommitted. Not a file that has moved, and none that was committed
    both times; of an older record, whose imports are not known, only the files
    themselves."""
    names = []
    kind = record.get("config", {}).get("method", {}).get("kind", "")
    for part, source in record.get("code", {}).get("sources", {}).items():
        outside = module_file(kind) if part == "method" else None
        path = outside or ROOT / source["file"]
        if not path.exists():
            continue
        current = _source(path)
        was_committed = not source["uncommitted"] and not current["uncommitted"]
        if was_committed and not outside:
            continue
        if current["sha256"] != source.get("sha256", current["sha256"]):
            names.append(source["file"])
        elif current["imports"] != source.get("imports", current["imports"]):
            names.append(f"a module that {source['file']} imports")
    return names


def difference_if_run_again(record: Record, run: Run) -> str:
    """How a finished run would differ if it were run again now, in words: in its source
    files and in the adapter that it keeps; "" if in neither."""
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


PACKAGES = (
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
    """Writes what Hydra leaves in a run's folder: config.yaml, resolved, and
    overrides.yaml, its words."""
    folder = run_folder(run.config["output"], run_id)
    config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", config)
    overrides = [*run.overrides, f"seed={run.seed}"]
    text = yaml.safe_dump(overrides, allow_unicode=True)
    write_atomically(folder / "overrides.yaml", text)


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the packages."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def machine(device: "torch.device") -> Device:
    """The device and the system; never the machine's name."""
    import torch

    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor()
    described: Device = {
        "type": device.type,
        "name": name,
        "cpu": processor_model(),
        "system": platform.system(),
        "cuda": torch.version.cuda,
    }
    if not on_gpu:
        return described
    major, minor = torch.cuda.get_device_capability(device)
    described["driver"] = driver()
    described["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    described["capability"] = f"{major}.{minor}"
    return described


def made_with(code: Code, device: "torch.device") -> Provenance:
    """The code, versions and device of a run, as its record has them."""
    return {"code": code, "versions": {**versions()}, "device": machine(device)}


def conditions(
    code: Code, accelerator: "Accelerator", micro_batch: int | None
) -> Conditions:
    """What may change a run's numbers without being part of its identity, of one
    attempt."""
    import torch

    commit = str(code["commit"])[:12]
    if code["dirty"]:
        commit += " with uncommitted changes"
    return {
        "commit": commit,
        **versions(),
        "device": machine(accelerator.device)["name"],
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "micro_batch": micro_batch,
    }


def changed_conditions(earlier: Conditions, later: Conditions) -> str:
    """What differs between the conditions of two attempts, in words."""
    texts = []
    for key in {**earlier, **later}:
        if earlier.get(key) != later.get(key):
            texts.append(f"{key} {earlier.get(key)}, then {later.get(key)}")
    return "; ".join(texts)
