"""A run's identity: the hash of what defines its result, what it starts from included.

Row, model and data by content, training settings, seeds, and the task family's protocol version. Not where
files lie, nor device, micro-batch, path of computation, logging, or which epoch's adapter is kept: the record
has the whole curve."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import tasks
from runs import models
from runs.config import Run
from runs.errors import UserError
from runs.file_hash import MISSING, digest, file_hash, stamp
from runs.record import (
    Record,
    cache_folder,
    defining,
    read_record,
    record_path,
    run_folder,
    write_atomically,
)
from tasks.fetch.hub import content

#: What has been looked at: the content of a model or of a data set, by its settings.
Contents = dict[str, str | None]


def identify(runs: Sequence[Run], problems: dict[int, str] | None = None) -> list[str | None]:
    """The id of each run: 12 hex digits; None where its model or data can be settled only by asking the
    network. Each model and each data set is looked at once: a table's runs share a folder of 100,000 images.

    Raises UserError or DataError where a local file that a configuration names is missing; or, where
    `problems` is given, goes on and keeps there what is wrong, by the run's index in the list.
    """
    contents, ids = Contents(), list[str | None]()
    for index, run in enumerate(runs):
        try:
            ids.append(_identify(run, contents))
        except (UserError, tasks.DataError) as error:
            if problems is None:
                raise
            problems[index] = str(error)
            ids.append(None)
    return ids


def run_id(run: Run) -> str | None:
    """The id of one run; see `identify`."""
    return identify([run])[0]


def _identify(run: Run, contents: Contents) -> str | None:
    config = run.config
    model = _once(contents, config["model"], model_content)
    data = data_of(run, contents)
    if model is None or data is None:
        return None
    start = start_id(run, contents) if config["init_from"] else None
    if config["init_from"] and start is None:
        return None
    what = defining(config) | {
        "row": run.row,
        "model": model,
        "data": data,
        "protocol": tasks.protocol(config["task"]),
        "seeds": [config["seed"], config["data_seed"]],
    }
    return hash_of(what | ({"start": start} if start else {}))[:12]


def data_of(run: Run, contents: Contents) -> str | None:
    """The content of a run's data, looked at unless it is in `contents`, whatever is drawn from them."""
    return _once(contents, run.config["task"], data_content)


def _once(contents: Contents, settings: dict[str, Any], look: Callable[[Any], str | None]) -> str | None:
    key = json.dumps({k: v for k, v in settings.items() if k != "draw_seed"}, sort_keys=True)
    if key not in contents:
        contents[key] = look(settings)
    return contents[key]


# --- what a run starts from (init_from)


def start_id(run: Run, contents: Contents | None = None) -> str | None:
    """What of its start belongs to a run's identity: the other run's id and which epoch it kept, or the
    file's hash. contents: what has been looked at already.

    None: not known yet. Raises UserError for a file that is missing.
    """
    word = run.config["init_from"]
    if word.endswith(".safetensors"):
        if not Path(word).is_file():
            raise UserError(f"init_from={word}: no such file")
        return hash_files({"adapter": Path(word)})
    found = _identify(run.start, {} if contents is None else contents) if run.start else str(word)
    if found is None:
        return None
    # The same run keeps other values by these keys, which are no part of its own identity. An older record
    # may be of select=unbiased, which kept the epoch chosen on one half of dev; any other keeps the best one
    # of the whole.
    path = record_path(run.config["output"], found)
    config = _record(path)["config"] if path.is_file() else run.start.config if run.start else {}
    kept = config.get("keep", "best"), config.get("select", "paper"), config.get("adapter_precision", "fp32")
    usual = kept[0] in ("best", "none") and kept[1] != "unbiased" and kept[2] == "fp32"
    return found if usual else f"{found} {' '.join(kept)}"


def start_file(run: Run, contents: Contents | None = None) -> Path:
    """The adapter file that a run starts from. Raises UserError, saying what it waits for, while it is not
    there. contents: what has been looked at already."""
    word = run.config["init_from"]
    if word.endswith(".safetensors"):
        return Path(word)
    found = _identify(run.start, {} if contents is None else contents) if run.start else word
    output = run.config["output"]
    path = run_folder(output, str(found)) / "adapter.safetensors"
    name = f"{run.start.label} (run {found or '?'})" if run.start else f"run {word}"
    record = record_path(output, str(found))
    if not record.is_file():
        raise UserError(f"waits for {name}, which has not run here")
    status = _record(record)["status"]
    if status != "done":
        raise UserError(f"waits for {name}, which is {status}")
    if not path.is_file():
        raise UserError(
            f"waits for the adapter of {name}, which kept none: delete {record} and run it again with"
            " keep=best"
        )
    return path


def _record(path: Path) -> Record:
    try:
        return read_record(path)
    except ValueError as error:
        raise UserError(f"{error}: delete it, and the run is done again") from None


# --- contents


def hash_of(value: Any) -> str:
    """SHA-256 of a plain value's JSON, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def model_content(model: Mapping[str, Any]) -> str | None:
    """The pinned revision, or the hash over the files of a local folder."""
    if not model["path"] and model.get("wheel"):
        return f"sha256:{model['sha256']}"
    if not model["path"] and not model["package"]:
        return content(model["hub"], model["revision"], "model")
    folder = models.locate(model)
    assert folder is not None
    return hash_files({path.name: path for path in models.files(folder)})


def data_content(settings: Mapping[str, Any]) -> str | None:
    """The pinned revision, or the hash over the local files."""
    source = tasks.source(settings)
    return source.pinned or (hash_files(source.files) if source.files else None)


def hash_files(files: Mapping[str, Path]) -> str:
    """One hash over files by their names and contents: the same wherever they lie."""
    if len(files) < 16:
        hashes = {name: file_hash(path) for name, path in files.items()}
        return f"sha256:{hash_of(hashes)}"
    # Thousands of images: their stamps stand for them, or each call would read as many small files of the
    # cache.
    kept = (
        cache_folder()
        / "sha256"
        / hash_of([[name, str(path.absolute()), *stamp(path)] for name, path in files.items()])
    )
    if kept.is_file():
        return kept.read_text()
    parts = {}
    for name, path in tqdm(files.items(), "reading the data, once", leave=False, disable=None):
        parts[name] = digest(path)
    whole = f"sha256:{hash_of(parts)}"
    if MISSING not in parts.values():
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, no more
            write_atomically(kept, whole)
    return whole
