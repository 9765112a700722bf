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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

#: The pattern of a study's name, which is its folder's.
STUDY_NAME = re.compile(r"[a-z0-9_]{1,80}")
#: What publish writes into a new study's NOTES.md.
NOTES_TEMPLATE = """How it was run: the machine, and what a reader must know.

How learning rates were chosen: on which rows, over which grid, with how many seeds.
"""
#: The pattern of the files that a study may have, by their paths in its folder.
FILE_NAMES = re.compile(r"NOTES\.md|(records|measures)\.jsonl|sources(/\w[\w.+ -]*)+")
MAX_FILES = 2000
MAX_LINES = 20_000
#: The most bytes of NOTES.md and of each source.
MAX_TEXT_BYTES = 2**20
#: The most bytes of records.jsonl and of measures.jsonl.
MAX_LINES_BYTES = 2**26
#: How many of a file's damaged lines are listed.
LISTED_LINES = 3
#: How many commits of a file are searched for the content whose hash a record has.
SEARCHED_COMMITS = 200


@dataclass(frozen=True)
class StudyFolder:
    """What a study's folder contains. sources: texts by their names in sources/.
    problems: of files that could not be read, a line each."""

    folder: Path
    notes: str = ""
    sources: dict[str, bytes] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# --- reading


def read_study_folder(folder: Path) -> StudyFolder:
    """Reads a study's folder. A file that cannot be read, or is too large, becomes a
    problem of the study. Raises UserError where there is no such folder."""
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
            if not FILE_NAMES.fullmatch(name):
                raise ValueError("no file of a study")
            if (folder / name).is_symlink():
                raise ValueError("a link")
            limit = MAX_TEXT_BYTES if is_text else MAX_LINES_BYTES
            texts[name] = ledger.read_regular(folder / name, limit)
            if is_text:
                texts[name].decode()
        except ValueError as error:
            problems.append(f"{name}: {error}")
    records, damaged = _read_lines(texts, "records.jsonl", ledger.read_record)
    # measures are checked line by line, and needed for nothing else
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
    """The paths of all files in a folder and its subfolders, and of links to folders,
    which are not followed."""
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            yield Path(parent, name).relative_to(folder).as_posix()


#: A record or a measure.
Stored = TypeVar("Stored", Record, Measure)


def _read_lines(
    texts: Mapping[str, bytes], name: str, read: Callable[[str, bytes], Stored]
) -> tuple[list[Stored], list[str]]:
    """The records or measures in a file of a study, and what is wrong with its lines.

    texts: the contents of the study's files, by name. name: of the file. read: makes a
    record or a measure of a line; its first argument names the line in an error."""
    lines = texts.get(name, b"").splitlines()
    entries: list[Stored] = []
    problems: list[str] = []
    if len(lines) > MAX_LINES:
        return [], [f"{name}: more than {MAX_LINES:,} lines"]
    for number, line in enumerate(lines, 1):
        try:
            # `read` takes an empty text for none, and would open a file of that name
            entries.append(read(f"{name} line {number}", line or b" "))
        except ValueError as error:
            problems.append(str(error))
    if len(problems) > LISTED_LINES:
        further = len(problems) - LISTED_LINES
        problems = [*problems[:LISTED_LINES], f"{name}: {further:,} more such lines"]
    ids = [entry["id"] for entry in entries]
    if ids != sorted(set(ids)):
        problems.append(f"{name}: not each id once, in sorted order. publish writes it")
    return entries, problems


# --- checking: the whole


def problems_of_study(study: StudyFolder) -> list[str]:
    """What is missing in a study, cannot be repeated or contradicts itself, a line each.
    Outside of a clone the code is not compared with commits."""
    ids_by_fault = defaultdict(list)
    for record in study.records:
        for fault in record_faults(record, study.sources):
            ids_by_fault[fault].append(record["id"])
    finished = []
    for record in study.records:
        if record["status"] in schema.FINISHED:
            finished.append(record)
    lines = [*study.problems, *_missing_parts(study)]
    for fault, ids in ids_by_fault.items():
        lines.append(f"{fault}: {_runs_text(ids)}")
    lines += _contradictions(finished)
    lines += _results_in_other_studies(study)
    return [error_line(line) for line in lines]


def has_history() -> bool:
    """Whether this project runs from a clone with its commits."""
    return git_output("rev-parse", "HEAD") is not None


def _runs_text(ids: Sequence[str]) -> str:
    """How many runs these are, with the ids of the first three."""
    names = ", ".join(ids[:3])
    if len(ids) > 3:
        names += ", ..."
    return f"{plural(len(ids), 'run')} ({names})"


def _missing_parts(study: StudyFolder) -> Iterator[str]:
    """What a study lacks: a right name, notes, records."""
    name = study.folder.resolve().name
    if not STUDY_NAME.fullmatch(name):
        yield f"the folder's name, {name!r}, is not of a-z, 0-9 and _"
    if not study.notes.strip() or study.notes == NOTES_TEMPLATE:
        yield "NOTES.md is missing or still the template: say how it was run"
    elif printable(study.notes) != study.notes:
        yield "NOTES.md: holds a control character"
    if not study.records:
        yield "records.jsonl has no record"


def _contradictions(records: Sequence[Record]) -> Iterator[str]:
    """Where the records of a study contradict each other: one seed twice, the same
    losses under several seeds, or one name for several models or data sets."""
    ids_by_seed = defaultdict(list)
    # the hashes of the data sets and models that have one name
    hashes_by_name = defaultdict(set)
    for record in records:
        seed = record["cell"]["seed"]
        ids_by_seed[cell_id(record), seed].append(record["id"])
        task, model = record["cell"]["task"], record["cell"]["model"]
        hashes_by_name["task", task].add(record["data"]["content"])
        hashes_by_name["model", model].add(record["model"])
    for (_, seed), ids in ids_by_seed.items():
        if len(ids) > 1:
            yield f"seed {seed} twice: {_runs_text(ids)}"
    ids_by_curve = defaultdict(list)
    for record in records:
        # an untrained model has no losses
        if any(record["curve"].get("train_loss") or []):
            losses = json.dumps(record["curve"]["train_loss"])
            ids_by_curve[cell_id(record), losses].append(record["id"])
    for ids in ids_by_curve.values():
        if len(ids) > 1:
            yield f"the same training losses under several seeds: {_runs_text(ids)}"
    for (part, name), hashes in hashes_by_name.items():
        if len(hashes) > 1:
            count = len(hashes)
            yield f"{part} {name}: of {count} contents, which are not to be compared"


def _results_in_other_studies(study: StudyFolder) -> Iterator[str]:
    """The runs of a study that another published study has with another result."""
    own_records = {record["id"]: record for record in study.records}
    for folder in ledger.study_folders():
        if folder.resolve() == study.folder.resolve():
            continue
        for record in ledger.read_study(folder):
            own_record = own_records.get(record["id"])
            if own_record is None:
                continue
            if difference_of_results(record, own_record) is not None:
                yield f"run {record['id']} has another result in {folder.name}"


# --- checking: a record


def record_faults(record: Record, sources: Mapping[str, bytes]) -> Iterator[str]:
    """What is wrong with a record. The sentences do not name it, so that records with
    the same fault share a line.

    sources: the texts in the study's folder sources/, by name."""
    # trials of learning rates belong to a study, runs of a few steps do not
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
        recorded = cell.protocol_of(record)
        current = tasks.protocol(task)
        if recorded != current:
            yield f"protocol {recorded} of {task['name']}, which is at {current} here"
    yield from _metric_faults(record)
    yield from _derived_faults(record)
    # the recorded count of trained parameters, against the method's formula as the run
    # evaluated it and, where that is possible here, as this machine does
    trained = record["parameters"]["adapter"]
    formula = record["parameters"]["formula"]
    if formula != trained:
        yield count_problem(formula, trained)
    formula_here = _parameter_count(record["config"])
    if formula_here not in (None, trained):
        row = record["label"]["row"]
        yield f"{trained:,} trained parameters, where {row} has {formula_here:,}"


def _is_without_paths(record: Record) -> bool:
    """Whether a record is as publish leaves it."""
    cleaned: Mapping[str, object] = without_paths(record)
    # the cleaned one may have further keys, which are empty
    return all(cleaned[key] == value for key, value in record.items())


def _possible_metrics(record: Record) -> set[str]:
    """The metrics that a run of this record's task may have. Its family is one of
    tasks.FAMILIES."""
    task = record["config"]["task"]
    if task["family"] == "glue":
        spec = tasks.family(task).SPECS.get(task["name"])
        return {spec.metric} if spec else {record["result"]["metric"]}
    if task["family"] == "images":
        return {"accuracy"}
    if task["family"] == "text":  # the user chooses it, or the labels decide
        metric = task.get("metric")
        return {metric} if metric else {"accuracy", "pearson"}
    # tasks with continuations
    if "reward" in record["config"] or task.get("dev_score") == "exact_match":
        return {"exact_match"}
    return {"perplexity"}


def _metric_faults(record: Record) -> Iterator[str]:
    """Where a record has another metric than its task, or tables would report another
    epoch."""
    task = record["config"]["task"]
    result = record["result"]
    family = task.get("family")
    if family not in tasks.FAMILIES:
        return
    if result["metric"] not in _possible_metrics(record):
        yield f"{result['metric']} is not the metric of {task['name']}"
    reported = "best" if family in ("glue", "text") else "last"
    if result["reported"] != reported:
        yield f"tables report the {reported} epoch of {task['name']}"


def _derived_faults(record: Record) -> Iterator[str]:
    """Where a record's keys do not follow from its own configuration, curve and
    hashes."""
    try:
        yield from contradictions(record)
        yield from _override_faults(record)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # a stranger's configuration may lack what every run's has
        yield f"its keys cannot be derived ({type(error).__name__}: {error})"


def _override_faults(record: Record) -> Iterator[str]:
    """Which overrides of a record are not in its configuration, a sentence each. Those of
    paths and of unknown keys, and those that refer to a setting (${...}), are left out."""
    for override in map(Override, record.get("overrides") or []):
        declared = nearest_key(override.key)
        if declared is None or declared.role == PATH or "${" in override.value:
            continue
        value: Any = record["config"]  # then the value of the override's key in it
        for name in override.key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not _may_mean(override.unquoted_value, value):
            yield f"the override {override} is not in its configuration"


def _may_mean(text: str, value: Any) -> bool:
    """Whether an override with this text may have set this value. Lists, mappings,
    booleans and null are not checked."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return True
    if isinstance(value, int | float):
        try:
            return math.isclose(float(text), value)
        except ValueError:
            return False
    return text == value


def _parameter_count(config: Mapping[str, Any]) -> int | None:
    """How many parameters a method of this project trains in a model of conf/model.
    None for other models and methods, for peft's methods, whose settings may name
    files, and where counting takes weights or much memory."""
    model = config["model"]
    settings = {
        key: value for key, value in config["method"].items() if is_own_setting(key)
    }
    kind = settings["kind"]
    conf_models = {path.stem: path for path in (ledger.CONF / "model").glob("*.yaml")}
    path = conf_models.get(model["name"])
    # a user's own method has the name of its module in its kind
    has_unknown_parts = bool(model.get("settings")) or "." in kind or kind == "peft"
    # only the checkpoint says whether the output layer is tied to the embeddings
    may_be_tied = kind == "full" and model["modality"] == "text generation"
    # six digits or an exponent, with which a method may take much memory
    has_large_number = re.search(r"\d{6,}|e\+", json.dumps(settings))
    if not path or has_unknown_parts or may_be_tied or has_large_number:
        return None
    return _count_in_model(path, json.dumps(settings, sort_keys=True))


@cache
def _count_in_model(path: Path, settings: str) -> int | None:
    """How many parameters a method with these settings (JSON) trains in the model of a
    file in conf/model, which is built without weights; None where it cannot be built."""
    from runs.models import skeleton

    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        method = method_of_settings(json.loads(settings))
        network = adapt_quietly(
            skeleton(model, SKELETON_LABELS[model["modality"]]), method
        )
        return int(method.count(network))
    except Exception:
        # the model has no architecture, or a stranger's settings are wrong
        return None


# --- checking: the code of a record


def _code_faults(record: Record, sources: Mapping[str, bytes]) -> Iterator[str]:
    """Why the code that made a record cannot be checked out, or a source of it is not
    known. sources: as in `record_faults`."""
    code = record["code"]
    # where a user's own commits are on top, the newest one that the project has
    base = code.get("upstream", code["commit"])
    if not in_history(base):
        yield _unknown_commit(base)
        return
    # older records only say whether files had been changed, not which
    altered = code.get("altered")
    if altered or (altered is None and code["dirty"]):
        names = ", ".join(map(str, altered or ["?"]))
        yield f"made with changed files of the project itself ({names})"
        return
    for source in code.get("sources", {}).values():
        name = str(source.get("file"))
        expected = str(source.get("sha256"))
        # _past_hashes goes through commits only where the hash in `base` differs
        known_hashes: Iterable[str]
        if name in sources:
            known_hashes = [_short_hash(sources[name])]
        else:
            known_hashes = itertools.chain([_hash_in(base, name)], _past_hashes(name))
        if not expected or expected not in known_hashes:
            yield f"{name}, as it was run, is in no commit and not in sources/"


def _unknown_commit(commit: str | None) -> str:
    """Why a commit that is not in this clone's history cannot be checked out."""
    if not commit:
        return "no commit is named"
    return (
        f"commit {commit[:12]} is not in this project's history. In a fork: git remote"
        " add upstream URL, git fetch upstream, and train again with redo=true"
    )


@cache
def in_history(commit: str | None) -> bool:
    """Whether this clone's history has a commit."""
    if not re.fullmatch(r"[0-9a-f]{40}", commit or ""):
        return False
    return git_output("merge-base", "--is-ancestor", f"{commit}", "HEAD") is not None


def _past_hashes(name: str) -> Iterator[str]:
    """The hashes that a file or package has had in this clone's history, the newest
    first: a run may have been started just before its code was committed."""
    log = ("log", "--format=%H", f"--max-count={SEARCHED_COMMITS}", "--", name)
    for commit in (git_output("--literal-pathspecs", *log) or "").split():
        yield _hash_in(commit, name)


@cache
def _hash_in(commit: str, name: str) -> str:
    """The hash that a record has of a file, or of all files of a package, in a commit;
    "" where the commit lacks it."""
    blobs = _blobs(commit)
    pattern = re.compile(rf"{re.escape(name)}(/[^/]+\.py)?")
    paths = sorted(filter(pattern.fullmatch, blobs))
    if not paths:
        return ""
    return _short_hash(b"".join(_blob_content(blobs[path]) for path in paths))


@cache
def _blobs(commit: str) -> dict[str, str]:
    """Git's hash of each file of CODE_FOLDERS in a commit of this clone, except records, by
    its path."""
    blobs = dict[str, str]()
    for line in (git_output("ls-tree", "-rz", commit, *CODE_FOLDERS) or "").split("\0"):
        # mode, type and hash, then the path
        attributes, _, path = line.partition("\t")
        if path and not path.startswith("runs/records/"):
            blobs[path] = attributes.split()[-1]
    return blobs


@cache
def _blob_content(blob: str) -> bytes:
    """The content of the file with this hash of git's."""
    command = ["git", "-C", str(provenance.ROOT), "cat-file", "blob", blob]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _short_hash(content: bytes) -> str:
    """The hash of a source as records have it."""
    return hashlib.sha256(content).hexdigest()[:16]
