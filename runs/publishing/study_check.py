"""Checks a study: a folder of records that somebody wants to add to runs/records.

    NOTES.md         how it was run, by hand
    records.jsonl    a record a line, sorted by id
    measures.jsonl   measures of these runs, if there are any
    sources/         methods and files of configuration from outside the clone

The folder may be a stranger's. Its files are read within limits, and nothing in it is
imported or run."""

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

import tasks
from runs.command.errors import UserError
from runs.record import cell, ledger, schema
from runs.record.agreement import difference_of_results
from runs.record.cell import cell_id
from runs.record.derived import contradictions
from runs.record.keys import PATH, is_own_setting, nearest_key
from runs.record.override import Override
from runs.record.redaction import without_paths
from runs.record.schema import Measure, Record
from runs.record.text import count_problem, error_line, plural, printable
from runs.run import provenance
from runs.run.definition import overrides_of
from runs.run.methods import SKELETON_LABELS, adapt_quietly, method_of_settings
from runs.run.provenance import CODE_FOLDERS, git_output

#: The name of a study, which is its folder's.
NAME = re.compile(r"[a-z0-9_]{1,80}")
#: What publish writes into a new study's NOTES.md.
NOTES_TEMPLATE = """How it was run: the machine, and what a reader must know.

How learning rates were chosen: on which rows, over which grid, with how many seeds.
"""
FILES = re.compile(r"NOTES\.md|(records|measures)\.jsonl|sources(/\w[\w.+ -]*)+")
MAX_FILES = 2000
MAX_LINES = 20_000
#: The most bytes of the notes and of each source; of records and measures.
TEXT_BYTES = 2**20
LINES_BYTES = 2**26
#: How many of a file's damaged lines are named.
NAMED_LINES = 3
#: How many commits of a file are searched for the text that a record names.
SEARCHED_COMMITS = 200


@dataclass(frozen=True)
class StudyFolder:
    """What a folder holds. sources: texts by their names in sources/. problems: of
    files that could not be read."""

    folder: Path
    notes: str = ""
    sources: dict[str, bytes] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# --- reading


def read_study_folder(folder: Path) -> StudyFolder:
    """What a folder holds. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. A study is runs/records/NAME")
    names = sorted(itertools.islice(_names_below(folder), MAX_FILES + 1))
    problems = list[str]()
    if len(names) > MAX_FILES:
        problems.append(f"more than {MAX_FILES:,} files")
    texts = dict[str, bytes]()
    for name in names[:MAX_FILES]:
        is_text = name == "NOTES.md" or name.startswith("sources/")
        try:
            if not FILES.fullmatch(name):
                raise ValueError("no file of a study")
            if (folder / name).is_symlink():
                raise ValueError("a link")
            limit = TEXT_BYTES if is_text else LINES_BYTES
            texts[name] = ledger.read_regular(folder / name, limit)
            if is_text:
                texts[name].decode()
        except ValueError as error:
            problems.append(f"{name}: {error}")
    records, damaged = _read_lines(texts, "records.jsonl", ledger.read_record)
    _, damaged_measures = _read_lines(texts, "measures.jsonl", ledger.read_measure)
    return StudyFolder(
        folder,
        notes=texts.get("NOTES.md", b"").decode(errors="replace"),
        sources={
            name.removeprefix("sources/"): text
            for name, text in texts.items()
            if name.startswith("sources/")
        },
        records=records,
        problems=[*problems, *damaged, *damaged_measures],
    )


def _names_below(folder: Path) -> Iterator[str]:
    """The files below a folder, and the links to folders, which nobody follows."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name).relative_to(folder).as_posix()


#: A record or a measure.
Stored = TypeVar("Stored", Record, Measure)


def _read_lines(
    texts: Mapping[str, bytes], name: str, read: Callable[[str, bytes], Stored]
) -> tuple[list[Stored], list[str]]:
    """The records or measures of a study, and what is wrong with the lines of their
    file."""
    lines = texts.get(name, b"").splitlines()
    entries: list[Stored] = []
    problems: list[str] = []
    if len(lines) > MAX_LINES:
        return [], [f"{name}: more than {MAX_LINES:,} lines"]
    for number, line in enumerate(lines, 1):
        try:
            # an empty line would stand for a file that is to be read
            entries.append(read(f"{name} line {number}", line or b" "))
        except ValueError as error:
            problems.append(str(error))
    if len(problems) > NAMED_LINES:
        further = len(problems) - NAMED_LINES
        problems = [*problems[:NAMED_LINES], f"{name}: {further:,} more such lines"]
    ids = [entry["id"] for entry in entries]
    if ids != sorted(set(ids)):
        problems.append(f"{name}: not each id once, in sorted order. publish writes it")
    return entries, problems


# --- checking: the whole


def problems_of_study(study: StudyFolder) -> list[str]:
    """What is missing, cannot be repeated or contradicts itself, a line each; none
    where nothing does. Outside of a clone the code is not compared with a commit."""
    ids_by_fault = defaultdict(list)
    for record in study.records:
        for fault in record_faults(record, study.sources):
            ids_by_fault[fault].append(record["id"])
    finished = []
    for record in study.records:
        if record["status"] in schema.FINISHED:
            finished.append(record)
    lines = [*study.problems, *_missing(study)]
    for fault, ids in ids_by_fault.items():
        lines.append(f"{fault}: {_runs(ids)}")
    lines += _contradictions(finished)
    lines += _other_results(study)
    return [error_line(line) for line in lines]


def has_history() -> bool:
    """Whether this is a clone, whose commits are known."""
    return git_output("rev-parse", "HEAD") is not None


def _runs(ids: Sequence[str]) -> str:
    names = ", ".join(ids[:3])
    if len(ids) > 3:
        names += ", ..."
    return f"{plural(len(ids), 'run')} ({names})"


def _missing(study: StudyFolder) -> Iterator[str]:
    """What a folder lacks: a name, notes, records."""
    name = study.folder.resolve().name
    if not NAME.fullmatch(name):
        yield f"the folder's name, {name!r}, is not of a-z, 0-9 and _"
    if not study.notes.strip() or study.notes == NOTES_TEMPLATE:
        yield "NOTES.md is missing or still the template: say how it was run"
    elif printable(study.notes) != study.notes:
        yield "NOTES.md: holds a control character"
    if not study.records:
        yield "records.jsonl has no record"


def _contradictions(records: Sequence[Record]) -> Iterator[str]:
    """What records contradict in each other."""
    ids_by_seed = defaultdict(list)
    contents = defaultdict(set)
    for record in records:
        seed = record["cell"]["seed"]
        ids_by_seed[cell_id(record), seed].append(record["id"])
        contents["task", record["cell"]["task"]].add(record["data"]["content"])
        contents["model", record["cell"]["model"]].add(record["model"])
    for (_, seed), ids in ids_by_seed.items():
        if len(ids) > 1:
            yield f"seed {seed} twice: {_runs(ids)}"
    ids_by_curve = defaultdict(list)
    for record in records:
        if any(record["curve"].get("train_loss") or []):  # not of an untrained model
            losses = json.dumps(record["curve"]["train_loss"])
            ids_by_curve[cell_id(record), losses].append(record["id"])
    for ids in ids_by_curve.values():
        if len(ids) > 1:
            yield f"the same training losses under several seeds: {_runs(ids)}"
    for (part, name), unlike in contents.items():
        if len(unlike) > 1:
            number = len(unlike)
            yield f"{part} {name}: of {number} contents, which are not to be compared"


def _other_results(study: StudyFolder) -> Iterator[str]:
    """The runs that another published study has with another result."""
    records = {record["id"]: record for record in study.records}
    for folder in ledger.study_folders():
        if folder.resolve() == study.folder.resolve():
            continue
        for record in ledger.read_study(folder):
            checked = records.get(record["id"])
            if checked is None:
                continue
            if difference_of_results(record, checked) is not None:
                yield f"run {record['id']} has another result in {folder.name}"


# --- checking: a record


def record_faults(record: Record, sources: Mapping[str, bytes]) -> Iterator[str]:
    """What is wrong with a record, in sentences that other records may share."""
    # a study may have trials of learning rates on held-out rows
    is_cut_short = record["config"]["train"].get("max_steps") is not None
    if record["status"] not in schema.FINISHED or is_cut_short:
        yield "not a finished result"
        return
    if not overrides_of(record):
        yield "without overrides, and so not to be repeated"
    if not _is_without_paths(record):
        yield "it names local paths, which publish takes out"
    if has_history():
        yield from _code_faults(record, sources)
    task = record["config"]["task"]
    if task.get("family") in tasks.FAMILIES:
        followed, current = cell.protocol_of(record), tasks.protocol(task)
        if followed != current:
            yield f"protocol {followed} of {task['name']}, which is at {current} here"
    yield from _metric_faults(record)
    yield from _derived_faults(record)
    trained = record["parameters"]["adapter"]
    formula = record["parameters"]["formula"]
    if formula != trained:
        yield count_problem(formula, trained)
    count = _parameter_count(record["config"])
    if count not in (None, trained):
        row = record["label"]["row"]
        yield f"{trained:,} trained parameters, where {row} has {count:,}"


def _is_without_paths(record: Record) -> bool:
    cleaned: Mapping[str, object] = without_paths(record)
    return all(cleaned[key] == value for key, value in record.items())


def _metric_faults(record: Record) -> Iterator[str]:
    """A metric, or an epoch that tables report, that is not the task's."""
    task, result = record["config"]["task"], record["result"]
    family = task.get("family")
    if family not in tasks.FAMILIES:
        return
    metrics = {"perplexity"}  # of tasks with a continuation
    if "reward" in record["config"] or task.get("dev_score") == "exact_match":
        metrics = {"exact_match"}
    if family == "glue":
        spec = tasks.family(task).SPECS.get(task["name"])
        metrics = {spec.metric} if spec else {result["metric"]}
    elif family == "images":
        metrics = {"accuracy"}
    elif family == "text":  # chosen, or by the labels
        metric = task.get("metric")
        metrics = {metric} if metric else {"accuracy", "pearson"}
    if result["metric"] not in metrics:
        yield f"{result['metric']} is not the metric of {task['name']}"
    reported = "best" if family in ("glue", "text") else "last"
    if result["reported"] != reported:
        yield f"tables report the {reported} epoch of {task['name']}"


def _derived_faults(record: Record) -> Iterator[str]:
    """What does not follow from the record's own configuration, curve and hashes."""
    try:
        yield from contradictions(record)
        yield from _override_faults(record)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # a stranger's configuration may lack what every run's has
        yield f"its keys cannot be derived ({type(error).__name__}: {error})"


def _override_faults(record: Record) -> Iterator[str]:
    """Overrides that say something else than the configuration."""
    for override in map(Override, record.get("overrides") or []):
        declared = nearest_key(override.key)
        if declared is None or declared.role == PATH or "${" in override.value:
            continue
        value: Any = record["config"]
        for name in override.key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not _says(override.unquoted_value, value):
            yield f"the override {override} is not in its configuration"


def _says(text: str, value: Any) -> bool:
    """Whether the text of an override may have given a value; of lists, mappings and
    null that is not asked."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return True
    if isinstance(value, int | float):
        try:
            return math.isclose(float(text), value)
        except ValueError:
            return False
    return text == value


def _parameter_count(config: Mapping[str, Any]) -> int | None:
    """How many parameters a method of this project trains in a model of conf/model;
    None where conf/ does not tell: for other models and methods, for peft's, whose
    settings may name files, and where counting takes weights or much memory."""
    model = config["model"]
    settings = {
        key: value for key, value in config["method"].items() if is_own_setting(key)
    }
    kind = settings["kind"]
    conf_models = {path.stem: path for path in (ledger.CONF / "model").glob("*.yaml")}
    path = conf_models.get(model["name"])
    is_own = bool(model.get("settings")) or "." in kind or kind == "peft"
    # whether the output layer is the embeddings, stands in the checkpoint alone
    is_tied = kind == "full" and model["modality"] == "text generation"
    is_large = re.search(r"\d{6,}|e\+", json.dumps(settings))
    if not path or is_own or is_tied or is_large:
        return None
    return _counted(path, json.dumps(settings, sort_keys=True))


@cache
def _counted(path: Path, settings: str) -> int | None:
    from runs.models import skeleton

    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        method = method_of_settings(json.loads(settings))
        network = adapt_quietly(
            skeleton(model, SKELETON_LABELS[model["modality"]]), method
        )
        return int(method.count(network))
    except Exception:
        # of a model without an architecture, and of a stranger's settings
        return None


# --- checking: the code of a record


def _code_faults(record: Record, sources: Mapping[str, bytes]) -> Iterator[str]:
    """Why the code that made a record cannot be checked out."""
    code = record["code"]
    base = code.get("upstream", code["commit"])
    if not in_history(base):
        yield _unknown_commit(base)
        return
    altered = code.get("altered")
    if altered or (altered is None and code["dirty"]):
        names = ", ".join(map(str, altered or ["?"]))
        yield f"made with changed files of the project itself ({names})"
        return
    for source in code.get("sources", {}).values():
        name, expected = f"{source.get('file')}", f"{source.get('sha256')}"
        if name in sources:
            known_hashes = iter([_short_hash(sources[name])])
        else:
            known_hashes = itertools.chain([_hash_in(base, name)], _past_hashes(name))
        if not expected or expected not in known_hashes:
            yield f"{name}, as it was run, is in no commit and not in sources/"


def _unknown_commit(commit: str | None) -> str:
    if not commit:
        return "no commit is named"
    return (
        f"commit {commit[:12]} is not in this project's history. In a fork: git remote"
        " add upstream URL, git fetch upstream, and run again"
    )


@cache
def in_history(commit: str | None) -> bool:
    """Whether this clone's history has a commit."""
    if not re.fullmatch(r"[0-9a-f]{40}", commit or ""):
        return False
    return git_output("merge-base", "--is-ancestor", f"{commit}", "HEAD") is not None


def _past_hashes(name: str) -> Iterator[str]:
    """The hashes that a file or package has had in this clone's history, the newest
    first. A run may have been started just before its code was committed."""
    words = ("log", "--format=%H", f"--max-count={SEARCHED_COMMITS}", "--", name)
    for commit in (git_output("--literal-pathspecs", *words) or "").split():
        yield _hash_in(commit, name)


@cache
def _hash_in(commit: str, name: str) -> str:
    """The hash of a file, or of the files of a package, in a commit, as a record has
    it; empty where it is not there."""
    blobs = _blobs(commit)
    pattern = re.compile(rf"{re.escape(name)}(/[^/]+\.py)?")
    paths = sorted(filter(pattern.fullmatch, blobs))
    if not paths:
        return ""
    return _short_hash(b"".join(_content(blobs[path]) for path in paths))


@cache
def _blobs(commit: str) -> dict[str, str]:
    """Git's name of each file of CODE_FOLDERS in a commit of this clone, records apart."""
    blobs = dict[str, str]()
    for line in (git_output("ls-tree", "-rz", commit, *CODE_FOLDERS) or "").split("\0"):
        about, _, path = line.partition("\t")
        if path and not path.startswith("runs/records/"):
            blobs[path] = about.split()[-1]
    return blobs


@cache
def _content(blob: str) -> bytes:
    command = ["git", "-C", str(provenance.ROOT), "cat-file", "blob", blob]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
