"""A submission: a zip with somebody's records, and what others need to judge and repeat
them.

    about.json       its author, the commit of this project, Git's hash of each file of vera, tasks, runs and
                     conf (null: an installed package's, not checked), and the SHA-256 of each source
    records.jsonl    as in runs/records
    NOTES.md         how it was run, by hand
    sources/         own methods and tasks, and the files of --config-dir

What a stranger's zip holds is read in memory, within limits. Nothing of it is unpacked,
imported or run."""

import hashlib
import io
import json
import os
import re
import stat
import subprocess
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml

import tasks
from runs import provenance
from runs.config import GROUPS
from runs.errors import UserError
from runs.methods import LABELS, adapted, make_method
from runs.provenance import MAKING, git
from runs.record import (
    Metric,
    Record,
    cell,
    cell_id,
    is_trial,
    ledger,
    plural,
    printable,
    refusal,
    schema,
)
from runs.record.keys import is_own_setting
from runs.run import overrides_of
from tasks.files import module_file

TEXTS = {str: str}
ABOUT = {
    "schema": int,
    "author": str,
    "commit": str | None,
    "files": (TEXTS, None),
    "sources": TEXTS,
}
#: The limits of a zip: its bytes, its members, their bytes together, and those of a
#: source.
ZIP, MEMBERS, BYTES, SOURCE = 2**24, 2000, 2**28, 2**20
#: The name of an author, which may become a folder's.
NAME = re.compile(r"[a-z0-9_]{1,40}")
TEMPLATE = """How it was run: the machine, and what a reader must know.

How learning rates were chosen: on which rows, over which grid, with how many seeds.
"""


@dataclass(frozen=True)
class Submission:
    """What a zip holds. sources: texts by their path below sources/. damaged: lines
    that are no records."""

    about: dict[str, Any]
    notes: str
    sources: dict[str, bytes]
    records: list[Record]
    damaged: list[str]


# --- writing


def write(
    path: Path, author: str, records: Sequence[Record], config_dir: str | None
) -> None:
    """Writes a zip, with the notes beside it (NAME.md), at first the template.
    UserError for no texts."""
    words, root = (
        ("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"),
        provenance.ROOT,
    )
    listed = [
        name
        for name in (git(*words, *MAKING) or "").split("\0")
        if name and (root / name).is_file()
    ]
    files = {
        name: root / name for name in listed if not name.startswith("runs/records/")
    }
    commit = (
        ledger.built_from()["commit"] if ledger.INSTALLED else provenance.upstream()
    )
    sources = {name: file for name, file in files.items() if name not in tree(commit)}
    for kind in {record["config"]["method"]["kind"] for record in records}:
        if (
            (module := module_file(kind))
            and module.is_file()
            and not module.is_relative_to(root)
        ):
            sources |= {
                file.name: file for file in (module, *provenance.imports_of(module))
            }
    at = Path(config_dir or os.devnull)
    own = (file for group in GROUPS for file in at.glob(f"{group}/**/*.yaml"))
    sources |= {f"config/{file.relative_to(at).as_posix()}": file for file in own}
    notes = path.with_suffix(".md")
    if not notes.exists():
        notes.write_text(TEMPLATE, encoding="utf-8")
    try:
        members = {
            f"sources/{name}": ledger.read_regular(file, SOURCE)
            for name, file in sources.items()
        }
        members["NOTES.md"] = ledger.read_regular(notes, SOURCE)
        for content in members.values():
            content.decode()
    except ValueError as error:
        raise UserError(f"a source or the notes are no text: {error}") from None
    blobs = (
        None
        if ledger.INSTALLED
        else {name: _blob(file.read_bytes()) for name, file in files.items()}
    )
    about: dict[str, Any] = {
        "schema": 1,
        "author": author,
        "commit": commit,
        "files": blobs,
    }
    about["sources"] = {name: _sha(members[f"sources/{name}"]) for name in sources}
    members["about.json"] = json.dumps(about).encode()
    members["records.jsonl"] = "".join(map(ledger.record_text, records)).encode()
    with ledger.temporary(path) as partial:
        with zipfile.ZipFile(partial, "w") as file:
            for name, content in sorted(members.items()):
                # of no date
                file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        os.replace(partial, path)


def _blob(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(
        b"blob %d\0" % len(content) + content, usedforsecurity=False
    ).hexdigest()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- reading


def read(path: Path) -> Submission:
    """What a zip holds. Raises UserError, in one line, for a file that is none, or is
    not safe to read."""
    try:
        with zipfile.ZipFile(io.BytesIO(ledger.read_regular(path, ZIP))) as file:
            members = {one.filename: file.read(one) for one in _safe(file)}
        about = orjson.loads(members["about.json"])
        schema.validate(schema.type_of(ABOUT), about)
        notes, lines = (
            members["NOTES.md"].decode(),
            members["records.jsonl"].splitlines(),
        )
        if [about, notes] != printable([about, notes]):
            raise ValueError("a control character in about.json or NOTES.md")
        if about["schema"] != 1 or not NAME.fullmatch(about["author"]):
            raise ValueError(
                f"about.json: schema {about['schema']}, author {about['author'][:40]!r}"
            )
    # RuntimeError: it is encrypted, or so deeply nested
    except (
        ValueError,
        KeyError,
        RuntimeError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path}: not a zip of runs.publish out= ({refusal(str(error))})"
        ) from None
    sources = {
        name[8:]: content
        for name, content in members.items()
        if name.startswith("sources/")
    }
    records, damaged = list[Record](), list[str]()
    for number, line in enumerate(lines, 1):
        try:
            records.append(
                ledger.read_record(f"records.jsonl line {number}", line=line or b" ")
            )
        except ValueError as error:
            damaged.append(str(error))
    return Submission(about, notes, sources, records, damaged)


def _safe(file: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of a zip, before any is read. Raises ValueError where they are too
    many or too large, for a name that leads elsewhere, a link, and a compression that
    may take much memory."""
    found = file.infolist()
    if len(found) > MEMBERS or sum(one.file_size for one in found) > BYTES:
        raise ValueError(f"more than {MEMBERS:,} members or {BYTES:,} bytes")
    if len({one.filename for one in found}) < len(found):
        raise ValueError("two members of one name")
    for one in found:
        known = r"about\.json|records\.jsonl|NOTES\.md|sources(/\w[\w.+ -]*)+"
        if not re.fullmatch(known, one.filename) or one.orig_filename != one.filename:
            raise ValueError(f"{one.filename[:80]!r}: no member of such a zip")
        if stat.S_IFMT(one.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ValueError(f"{one.filename}: a link")
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{one.filename}: compressed otherwise than by deflate")
    return found


# --- checking: the whole


def problems(of: Submission) -> list[str]:
    """What is missing, cannot be repeated or contradicts itself, a line each; none
    where nothing does. Outside of a clone, and of what an installed package made, the
    code is not compared with a commit."""
    by_fault = defaultdict(list)
    for record in of.records:
        for fault in _faults(record, of):
            by_fault[fault].append(record["id"])
    found = [
        *of.damaged,
        *_missing(of),
        *(f"{fault}: {_runs(ids)}" for fault, ids in by_fault.items()),
    ]
    finished = [one for one in of.records if one["status"] in schema.FINISHED]
    return [*map(refusal, [*found, *_together(finished)])]


def has_history() -> bool:
    """Whether this is a clone, whose commits are known."""
    return git("rev-parse", "HEAD") is not None


def _runs(ids: Sequence[str]) -> str:
    return f"{plural(len(ids), 'run')} ({', '.join(ids[:3])}{', ...' * (len(ids) > 3)})"


def _missing(of: Submission) -> Iterator[str]:
    """What a zip lacks (notes, records, sources, added files), and which files are not
    as in its commit."""
    commit, files, listed = (of.about[key] for key in ("commit", "files", "sources"))
    if not of.notes.strip() or of.notes == TEMPLATE:
        yield "NOTES.md is still the template: say how it was run"
    if not of.records:
        yield "records.jsonl has no record"
    for name in sorted(listed.keys() | of.sources.keys()):
        if name not in of.sources or _sha(of.sources[name]) != listed.get(name):
            yield f"sources/{name}: {'changed' if name in of.sources else 'missing'}"
    if files is None or not has_history():
        return
    if not in_history(commit):
        yield f"{_lacks(commit)}. Of a fork: git remote add upstream URL, git fetch upstream, out= again"
        return
    others = [name for name, blob in tree(commit).items() if files.get(name) != blob]
    yield from (
        f"{name}: of the project itself, and not as in commit {commit[:12]}"
        for name in others[:9]
    )
    for name in sorted(files.keys() - tree(commit).keys()):
        if name not in of.sources or _blob(of.sources[name]) != files[name]:
            yield f"{name}: an added file, which the zip does not have"


def _lacks(commit: str | None) -> str:
    return (
        f"commit {commit[:12]} is not in this project's history"
        if commit
        else "no commit is named"
    )


@cache
def in_history(commit: str | None) -> bool:
    """Whether this clone's history has a commit."""
    whole = re.fullmatch(r"[0-9a-f]{40}", commit or "")
    return (
        bool(whole)
        and git("merge-base", "--is-ancestor", f"{commit}", "HEAD") is not None
    )


@cache
def tree(commit: str | None) -> dict[str, str]:
    """Git's hash of each file of MAKING in a commit of this clone, but for records."""
    lines = (git("ls-tree", "-rz", f"{commit}", *MAKING) or "").split("\0")
    found = {
        name: about[-40:] for about, _, name in (line.partition("\t") for line in lines)
    }
    return {
        name: blob
        for name, blob in found.items()
        if name and not name.startswith("runs/records/")
    }


@cache
def _content(blob: str) -> bytes:
    command = ["git", "-C", str(provenance.ROOT), "cat-file", "blob", blob]
    return subprocess.run(command, capture_output=True, check=True).stdout


# --- checking: the records


def _faults(record: Record, of: Submission) -> Iterator[str]:
    """What is wrong with a record, in words that others may share."""
    if record["status"] not in schema.FINISHED or is_trial(record["config"]):
        yield "not a finished result"
        return
    if not overrides_of(record):
        yield "without overrides, and so not to be repeated"
    if has_history():
        yield from _of_code(record, of)
    task, followed = record["config"]["task"], cell.protocol(record)
    if task.get("family") in tasks.FAMILIES and followed != (
        now := tasks.protocol(task)
    ):
        yield f"protocol {followed} of {task['name']}, which is at {now} here"
    curve, result, made = (
        record["curve"],
        record["result"],
        record["parameters"]["adapter"],
    )
    values, by_paper = curve["metric"], [(result.get("protocols") or {}).get("paper")]
    by_paper += [result] * (result.get("select", "paper") == "paper")
    if record["status"] == "done" and None not in values:
        place = Metric.of_record(record).best(values)
        held = [values[place], curve["epoch"][place], values[-1]]
        if any(
            part and [part.get(k) for k in ("best", "best_epoch", "last")] != held
            for part in by_paper
        ):
            yield f"its curve does not hold its best or last {result['metric']}"
    formula = record["parameters"]["formula"]
    if formula != made:
        yield f"the method's count() says {formula:,} of {made:,} parameters"
    if (count := _count(record["config"])) not in (None, made):
        yield f"{made:,} trained parameters, where {record['label']['row']} has {count:,}"


def _of_code(record: Record, of: Submission) -> Iterator[str]:
    code = record["code"]
    base, files = code.get("upstream", code["commit"]), code.get("altered")
    if not in_history(base):
        yield _lacks(base)
    elif files or (files is None and code["dirty"]):
        yield f"made with changed files of the project itself ({', '.join(map(str, files or ['?']))})"
    else:
        blobs = tree(base)
        for source in code.get("sources", {}).values():
            at = f"{source.get('file')}"
            whole = re.compile(rf"{re.escape(at)}(/[^/]+\.py)?")
            names = sorted(filter(whole.fullmatch, {*blobs, *of.sources}))
            texts = (
                of.sources[name] if name in of.sources else _content(blobs[name])
                for name in names
            )
            if _sha(b"".join(texts))[:16] != source.get("sha256"):
                yield f"{at}, as it was run, is neither in the zip nor in commit {base[:12]}"


def _together(records: Iterable[Record]) -> Iterator[str]:
    """What records contradict in each other."""
    seeds, contents = defaultdict(list), defaultdict(set)
    for one in records:
        seeds[cell_id(one), one["cell"]["seed"]].append(one["id"])
        contents["task", one["cell"]["task"]].add(one["data"]["content"])
        contents["model", one["cell"]["model"]].add(one["model"])
    yield from (
        f"seed {seed} twice: {_runs(ids)}"
        for (_, seed), ids in seeds.items()
        if len(ids) > 1
    )
    for (part, name), unlike in contents.items():
        if len(unlike) > 1:
            yield f"{part} {name}: of {len(unlike)} contents, which are not to be compared"


def _count(config: dict[str, Any]) -> int | None:
    """How many parameters a method of this project trains in a model of conf/model;
    None of others, of peft's methods, whose settings may name files, and where the
    count takes weights or much memory."""
    settings = {
        key: value for key, value in config["method"].items() if is_own_setting(key)
    }
    known = {path.stem: path for path in (ledger.CONF / "model").glob("*.yaml")}
    path, numbers = (
        known.get(config["model"]["name"]),
        re.findall(r"\d{6,}|e\+", json.dumps(settings)),
    )
    own = (
        config["model"].get("settings")
        or "." in settings["kind"]
        or settings["kind"] == "peft"
    )
    return (
        None
        if own or numbers or not path
        else _counted(path, json.dumps(settings, sort_keys=True))
    )


@cache
def _counted(path: Path, settings: str) -> int | None:
    from runs.models import skeleton

    model = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        method = make_method(json.loads(settings))
        return int(
            method.count(adapted(skeleton(model, LABELS[model["modality"]]), method))
        )
    except Exception:
        # of a model without an architecture, and of a stranger's settings
        return None
