"""A run's identity: a hash of everything that defines its result.

That is the row, the contents of model and data, the settings, the seeds, the version of
the task family's protocol, and the adapter that the run starts from. Not part of it
are the place of files, the device, the micro-batch, the path of computation, and which
epoch's adapter is kept, since the record has the whole curve."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

import tasks
from runs import models
from runs.command.errors import UserError
from runs.machine.hashes import (
    MISSING,
    cached_value,
    check_unchanged,
    file_hash,
    files_sha256,
)
from runs.record.cell import hash_of, id_of
from runs.record.configuration import Configuration, ModelConfig
from runs.record.ledger import finished_record, record_path, run_folder
from runs.run.definition import Run
from runs.run.reward_functions import function_files
from tasks.fetch import pinned_content
from tasks.files import stamp

#: With fewer files than this the cache has a hash of each; otherwise one hash of all.
FEW_FILES = 16
#: What a hash begins with that must not be cached, because a file could not be read. No
#: text that begins so matches the pattern of hashes in the cache.
NOT_CACHED = "not cached "
#: The contents of the models and data sets that were read, by the JSON of their
#: settings. None: only the network knows the content.
Contents = dict[str, str | None]
#: The part of a configuration that names a model or a data set.
Settings = TypeVar("Settings", bound=Mapping[str, object])


def identify(
    runs: Sequence[Run], problems: dict[int, str] | None = None
) -> list[str | None]:
    """The id of each run: 12 hex digits; None where only the network knows the content
    of its model or data. Each model and each data set is read once: a table's runs may
    share a folder of 100,000 images.

    Raises UserError or DataError for a local file that a configuration names and that
    is missing. If `problems` is given, the message goes there instead, under the run's
    index, and its id is None."""
    contents = Contents()
    ids = list[str | None]()
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
    """The id of a run; see `identify`. contents: what was read for other runs. It gets
    what is read for this one."""
    config = run.config
    model = _content_of_model(run, contents)
    data = _read_once(contents, config["task"], data_content)
    if model is None or data is None:
        return None
    start = None
    if config["init_from"]:
        start = start_id(run, contents)
        if start is None:
            return None
    return id_of(
        config,
        row=run.row,
        model=model,
        data=data,
        protocol=tasks.protocol(config["task"]),
        start=start,
        functions=functions_content(config),
    )


def _content_of_model(run: Run, contents: Contents) -> str | None:
    """The content of a run's model (`model_content`), read once. If this raises an error
    that advises to name another model, the advice also names the run's present recipe,
    which otherwise would change with the model."""
    try:
        return _read_once(contents, run.config["model"], model_content)
    except models.OtherArchitectureError as error:
        _, _, model_of_recipe = run.recipe.partition("/")
        # Otherwise there is no recipe, or the command names one already
        if model_of_recipe != run.model:
            raise
        remedy = f"{error.remedy} recipe={model_of_recipe}"
        raise models.OtherArchitectureError(error.problem, remedy) from None


def _read_once(
    contents: Contents, settings: Settings, read: Callable[[Settings], str | None]
) -> str | None:
    """The content of the model or data set with these settings: from `contents` or, the
    first time, from `read`, whose answer is added to `contents`. Data sets that differ in
    draw_seed alone share one content, because draw_seed chooses among the rows that are
    read."""
    shared = {name: value for name, value in settings.items() if name != "draw_seed"}
    key = json.dumps(shared, sort_keys=True)
    if key not in contents:
        contents[key] = read(settings)
    return contents[key]


# --- what a run starts from (init_from)


def start_id(run: Run, contents: Contents | None = None) -> str | None:
    """What stands in a run's identity for the adapter that it starts from: the hash of a
    file, or the id of another run. To the id are added that run's keep, select and
    adapter_precision, unless it keeps the best epoch unrounded. None if the id is not
    known.

    contents: what was read before (see `Contents`). Raises UserError for a missing file."""
    source = run.config["init_from"] or ""
    if source.endswith(".safetensors"):
        if not Path(source).is_file():
            raise UserError(f"init_from={source}: no such file")
        return hash_files({"adapter": Path(source)})
    run_id = _id_of_start(run, contents)
    if run_id is None:
        return None
    config = run.start.config if run.start else None
    record = finished_record(run.config["output"], run_id)
    if record:
        config = record["config"]
    if config is None:
        return run_id
    # These keys are no part of the other run's id, but change which values it keeps. An
    # older record may have select=unbiased, which kept the epoch chosen on one half of
    # dev; others keep the best epoch. keep=none has no adapter to start from.
    keep = config.get("keep", "best")
    select = config.get("select", "paper")
    precision = config.get("adapter_precision", "fp32")
    if keep in ("best", "none") and select != "unbiased" and precision == "fp32":
        return run_id
    return f"{run_id} {keep} {select} {precision}"


def _id_of_start(run: Run, contents: Contents | None) -> str | None:
    """The id of the run that a run starts from: as init_from gives it or, for
    init_from=ROW@TASK, computed. contents: what was read before (see `Contents`)."""
    if run.start is None:
        return str(run.config["init_from"])
    return _identify(run.start, {} if contents is None else contents)


def start_file(run: Run, contents: Contents | None = None) -> Path:
    """The adapter file that a run starts from: of init_from=FILE, or of another run. If
    that is not there yet, raises UserError, which says what the run waits for. contents:
    what was read before (see `Contents`)."""
    source = run.config["init_from"] or ""
    if source.endswith(".safetensors"):
        return Path(source)
    run_id = _id_of_start(run, contents)
    output = run.config["output"]
    path = run_folder(output, str(run_id)) / "adapter.safetensors"
    name = f"run {source}"
    if run.start:
        name = f"{run.start.label} (run {run_id or '?'})"
    record = finished_record(output, run_id)
    if not record:
        raise UserError(f"waits for {name}, which has not run here to its end")
    if record["status"] != "done":
        raise UserError(f"waits for {name}, which is {record['status']}")
    if not path.is_file():
        file = record_path(output, record["id"])
        raise UserError(
            f"waits for the adapter of {name}, which kept none: delete {file} and run "
            "it again with keep=best"
        )
    check_unchanged(record, path)
    return path


# --- contents


def model_content(model: ModelConfig) -> str | None:
    """What identifies a model's files: the pinned revision, or the hash over the files of
    a wheel or local folder. None if only the hub knows the revision."""
    if not model["path"] and model.get("wheel"):
        return f"sha256:{models.content_hash(model)}"
    if not model["path"] and not model["package"]:
        return pinned_content(models.hub_name(model), model["revision"], "model")
    folder = models.locate(model)
    assert folder is not None
    return hash_files({path.name: path for path in models.model_files(folder)})


def data_content(settings: Mapping[str, Any]) -> str | None:
    """What identifies a task's rows: the pinned revision, or the hash over the local
    files. None if only the hub knows the revision. settings: the task's."""
    source = tasks.source(settings)
    return source.pinned or (hash_files(source.files) if source.files else None)


def functions_content(config: Configuration) -> str | None:
    """The hash over the files of the user's own reward functions; None without any.
    Raises UserError for a function whose file is missing."""
    reward = config.get("reward")
    files = function_files(reward["function"]) if reward else {}
    return hash_files(files) if files else None


def hash_files(files: Mapping[str, Path]) -> str:
    """One hash over the names and contents of files, wherever they lie. files: by name. A
    file that cannot be read counts as MISSING."""
    if len(files) < FEW_FILES:
        hashes = {name: file_hash(path) for name, path in files.items()}
        return f"sha256:{hash_of(hashes)}"
    # For thousands of images the cache has one entry, under the sizes and times of all,
    # since one small file for each would be slow to read.
    stamps = [
        [name, str(path.absolute()), *stamp(path)] for name, path in files.items()
    ]
    content_hash: str = cached_value("sha256", stamps, lambda: _hash_of_many(files))
    return f"sha256:{content_hash.removeprefix(NOT_CACHED)}"


def _hash_of_many(files: Mapping[str, Path]) -> str:
    """Reads all files, and returns their one hash, after NOT_CACHED if one of them could
    not be read: later it may be readable, at the same size and time of change."""
    hashes = dict[str, str]()
    bar = tqdm(files.items(), "reading the data, once", leave=False, disable=None)
    for name, path in bar:
        hashes[name] = files_sha256(path)
    if MISSING in hashes.values():
        return NOT_CACHED + hash_of(hashes)
    return hash_of(hashes)


# --- the runs of a command


def final_ids(runs: Sequence[Run]) -> list[str]:
    """The ids of runs, once their models and data have been fetched. Raises UserError for
    a run whose data or model still has no known revision."""
    ids = identify(runs)
    if None in ids:
        run = runs[ids.index(None)]
        raise UserError(
            f"{run.label}: the revision of its data is not known. Name one: "
            "task.revision= or model.revision="
        )
    return [*filter(None, ids)]


def check_ids(runs: Sequence[Run], ids: Sequence[str | None]) -> None:
    """Raises UserError if two runs have the same id. ids: of the runs, in their order;
    None where one is not known."""
    counts = Counter(filter(None, ids))
    for run, run_id in zip(runs, ids, strict=True):
        if counts[run_id or ""] > 1:
            raise UserError(f"{run.label} appears twice in this sweep")
