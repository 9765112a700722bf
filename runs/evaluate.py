"""Checks a finished run: puts its adapter and head on a fresh base model and evaluates them again.

python -m runs.evaluate RUN                 a run id (or its beginning), as in outputs/records

Texts that the run has decoded are scored again, too. A score that the record lacks (where there was no Java)
is added to it, and so is the forgetting of a language model (task.forgetting_text).
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import tasks
from runs.alone import alone, run_lock
from runs.command import OfRecords, as_word, entry_point, open_ledger, read
from runs.config import choices, expand
from runs.errors import UserError
from runs.file_hash import check_kept
from runs.record import (
    TASK_PATHS,
    Record,
    finished_record,
    record_path,
    run_folder,
    study_folders,
    write_record,
)
from runs.record.text import describe
from runs.run import Run
from runs.training.files import tidy
from tasks.base import Decoding
from tasks.forgetting import is_path

if TYPE_CHECKING:
    from runs.training.context import Context

#: Settings of one machine or command, and those that a file of conf/ brings along.
NOT_COMPOSED = [
    *("output", "debug", "device", "micro_batch", "eval_batch", "checkpoint_minutes", "keep", "seed"),
    *("task.cache_dir", "task.mt_bench_dir", "task.family", "task.modality"),
    *("model.name", "method.kind", "method.keep", "method.recipe"),
]
#: Settings that name local files. Published records have the last parts of these paths only.
PATHS = ["model.path", *(key for key in (f"task.{key}" for key in TASK_PATHS) if key not in NOT_COMPOSED)]


class Settings(OfRecords):
    """None of its own."""


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN")
    output = line.settings.output
    record = find(line.names[0], output)
    name = f"{record['label']['row']} on {record['label']['task']}, seed {record['cell']['seed']}"
    keep, result = record["config"]["keep"], record["result"]
    if record.get("texts"):
        texts = run_folder(output, record["id"]) / "decoded_last.jsonl"
        _check_file(texts, "the run decoded texts, where it was done", "file of texts", record, output)
        check_kept(record, texts.with_name("decoded_best.jsonl"))
    same = score_again(record, output, name) if record.get("texts") else True
    if record.get("texts") and keep == "none" and record["parameters"]["adapter"]:
        print(f"{name}: the run kept no adapter, so that its {result['metric']} is not checked")
        return 0 if same else 1
    before = list[float | None]()  # of the base model, for each of the kept adapters
    for best in (False, True) if keep == "both" else (False,):
        context = restore(record, output, best, fresh=lambda base: before.append(_base_loss(base)))
        recorded, again = kept_result(record, best), context.score()
        equal = bool(np.isclose(again, recorded, atol=1e-9))
        which = " (the best epoch's)" if best else ""
        print(
            f"{name}{which}: {result['metric']} {result['scale'] * again:.2f}, recorded"
            f" {result['scale'] * recorded:.2f}: {'the same' if equal else 'NOT the same'}"
        )
        same = same and equal
        if not best:
            same = _forgetting_again(record, context, before[0], output) and same
    return 0 if same else 1


def _base_loss(context: "Context") -> float | None:
    from runs.training.forgetting import base_loss

    return base_loss(context)


def _forgetting_again(record: Record, context: "Context", before: float | None, output: str) -> bool:
    """Measures the forgetting of a run again, where its kept adapter is the last epoch's. Returns whether it
    is as recorded; a record that lacks it gets it."""
    from runs.training.forgetting import forgetting

    curve, keep = record["curve"]["epoch"], record["config"]["keep"]
    last = keep in ("last", "both", "none") or record["result"]["best_epoch"] == curve[-1]
    again = forgetting(context, before) if last else {}
    if not again:
        return True
    recorded = record["result"].get("forgetting")
    if recorded is None:
        if record_path(output, record["id"]).is_file():  # and not a published one
            amend(output, record["id"], lambda now: {"result": now["result"] | {"forgetting": again}})
            print("forgetting added to the record")
        return True
    if recorded["sha256"] != again["sha256"]:
        print(f"forgetting: recorded on another text ({recorded['text']}), not compared")
        return True
    pairs = [(recorded[key], again[key]) for key in ("before", "after")]
    # Rounded values (adapter_precision) and another device give nearly the same
    equal = all(a == b or (a and b and np.isclose(a, b, rtol=1e-3)) for a, b in pairs)
    print(f"forgetting as recorded: {'the same' if equal else 'NOT the same'}")
    return bool(equal)


def score_again(record: Record, output: str, name: str) -> bool:
    """Scores a run's saved texts again. Returns whether all is as recorded; writes the scores that the record
    lacks into it."""
    from runs.training import decode

    task, entries = cast(Decoding, tasks.load(record["config"]["task"])), record["texts"]["scores"]
    folder = run_folder(output, record["id"])
    try:
        texts = decode.read(task, folder)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{folder}/decoded_last.jsonl: the run's texts cannot be read ({describe(error)})"
        ) from None
    decode.write(task, folder, texts)
    again = decode.scores(task, texts, {entry["which"]: entry["epoch"] for entry in entries})
    same, extended = len(again) == len(entries), False
    for before, after in zip(entries, again, strict=False):
        scores = {key: value for key, value in after.items() if isinstance(value, float) and key != "epoch"}
        common = [key for key in scores if before.get(key) is not None]
        equal = before["hash"] == after["hash"] and all(
            np.isclose(scores[key], before[key], atol=1e-6) for key in common
        )
        added = {key: value for key, value in scores.items() if equal and key not in common}
        print(
            f"{name}, {after['which']} epoch, {after['variant']}:"
            f" {', '.join(f'{key} {scores[key]:.2f}' for key in common)}:"
            f" {'the same' if equal else 'NOT the same'}"
            + (f"; {', '.join(added)} added to the record" if added else "")
        )
        unavailable = before.pop("unavailable", None) or {}
        reasons = {key: why for key, why in unavailable.items() if key not in added}
        before |= added | ({"unavailable": reasons} if reasons else {})
        same, extended = same and equal, extended or bool(added)
    if extended:
        amend(output, record["id"], lambda _: {"texts": record["texts"]})
    return same


def amend(output: str | Path, run_id: str, parts: Callable[[Record], Record]) -> None:
    """Adds keys to a finished record, under the run's lock. parts: of the record as it is now, the new
    keys."""
    with alone(run_lock(output, run_id), f"run {run_id}"):
        if record := finished_record(output, run_id):
            write_record(output, record | parts(record))


def restore(
    record: Record,
    output: str,
    best: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    fresh: Callable[["Context"], None] = lambda _: None,
) -> "Context":
    """A finished run's task and model, with its kept adapter and head on a fresh base model.

    best: the best epoch's adapter, of a run that kept both. fresh: called before these are loaded. Raises
    UserError where a file is missing, AdapterError where one is damaged or does not fit."""
    import vera
    from runs.training.context import Context

    files = kept_files(record, output, best)
    context = Context(as_run(record), record["id"], report, start=False)
    fresh(context)
    if "adapter" in files:
        # Not vera.load, which adapts a copy again: on a GPU some of peft's methods draw other bits
        vera.start_from(context.raw_model, files["adapter"])
    if "head" in files:
        vera.load_head(context.raw_model, files["head"])
    return context


def kept_files(record: Record, output: str, best: bool = False) -> dict[str, Path]:
    """The files that a run has of its adapter and its head. Raises UserError where one is missing."""
    folder = run_folder(output, record["id"])
    names = {"adapter": f"adapter{'_best' if best else ''}.safetensors", "head": "head.safetensors"}
    files = {part: folder / name for part, name in names.items() if record["parameters"][part]}
    for path in files.values():
        kept = "none" if record["config"]["keep"] == "none" else "one, where it was done"
        _check_file(path, f"the run kept {kept}", "adapter", record, output)
    return files


def _check_file(path: Path, why: str, what: str, record: Record, output: str) -> None:
    """Raises UserError where a file of a run is missing, or of another attempt. why: of a run that was done
    here."""
    if finished_record(output, record["id"]):
        tidy(output, record)  # a kill may have left the file with its attempt
    if path.is_file():
        return check_kept(record, path)
    if not (record["config"]["keep"] == "none" or record_path(output, record["id"]).is_file()):
        why = f"the run is a published one, whose {what} is not in this repository"
    raise UserError(
        f"{path} is not there: {why} (its record is {_path(record, output)}). To have it here:"
        f" {command_of(record, output)}"
    )


def _path(record: Record, output: str) -> Path:
    """Where a record lies: here, or in a published study."""
    own = record_path(output, record["id"])
    published = (folder / own.name for folder in study_folders())
    path = next((path for path in (own, *published) if path.is_file()), own)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def command_of(record: Record, output: str) -> str:
    """The command that repeats a record's run here and keeps its adapter. Where its data or model were local
    files of another machine, their paths are to be filled in: task.data_dir=/where/glue."""
    try:
        overrides = overrides_of(record)
    except UserError as error:
        return f"no words make this run any more ({error})"
    if record["config"]["keep"] == "none":
        overrides.append(f"keep={record['config']['task'].get('keep') or 'best'}")
    if output != "outputs":
        overrides.append(f"output={output}")
    if record_path(output, record["id"]).is_file():
        overrides.append("redo=true")
    return f"python -m runs {shlex.join(overrides)}"


def overrides_of(record: Record) -> list[str]:
    """The overrides that compose a record's run: its row, model, task, seed and preset, and each setting that
    these give another value. A local file or folder that is not on this machine is /where/ITS_NAME."""
    cell, config = record["cell"], record["config"]
    row, task = cell["row"].partition("_from_")[0], cell["task"]
    has_file = row in choices("method")
    overrides = [f"experiment={cell['paper']}"] * (cell["paper"] in choices("experiment"))
    overrides += [
        f"model={cell['model']}",
        f"task={task if task in choices('task') else config['task']['family']}",
        f"method={row if has_file else config['method']['kind']}",
        f"seed={cell['seed']}",
    ]
    label = "" if has_file else "method.label"  # the name of a row of peft's
    recipe, wanted = record["recipe"]["name"], dict(_leaves(config))
    for key in PATHS:  # some models and tasks compose nothing without them
        if wanted.get(key) and is_path(wanted[key]):
            overrides.append(f"{key}={_local_path(wanted.pop(key))}")
    try:
        runs = expand(overrides)
    except UserError:  # the preset has changed since, or its rows
        overrides = [word for word in overrides if not word.startswith("experiment=")]
        runs = expand(overrides)
    if recipe in choices("recipe") and {run.recipe for run in runs} != {recipe}:
        overrides.append(f"recipe={recipe}")
        runs = expand(overrides)
    for key, value in wanted.items():
        if key in NOT_COMPOSED or key.startswith("recipe.") or (key.endswith(".label") and key != label):
            continue
        if key == label and config["init_from"]:
            value = value.rpartition(" from ")[0]
        if key == "init_from" and str(value).endswith(".safetensors"):
            value = _local_path(value)
        composed = [dict(_leaves(run.config)) for run in runs]
        if any(key in settings and settings[key] != value for settings in composed):
            quoted = isinstance(value, str) and re.search(r"[^\w./:@+-]", value)
            overrides.append(f"{key}={json.dumps(value) if quoted else as_word(value)}")
            # Composed again, since others may follow it: the head's rate is the adapter's by default
            runs = expand(overrides)
    return overrides


def _local_path(path: str) -> str:
    return path if Path(path).exists() else f"/where/{Path(path).name}"


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a configuration by their dotted keys. A mapping within a part (peft's config) counts as
    one value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def kept_result(record: Record, best: bool) -> float:
    """The whole dev set's metric at the epoch whose adapter was kept; best: at the best one, of two."""
    curve = record["curve"]
    if record["config"]["keep"] in ("last", "both") and not best:
        return float(curve["metric"][-1])
    return float(curve["metric"][curve["epoch"].index(record["result"]["best_epoch"])])


def as_run(record: Record) -> Run:
    """The run of a record."""
    cell, recipe = record["cell"], record["recipe"]["name"]
    return Run(
        cell["row"], cell["model"], cell["task"], cell["seed"], recipe, cell["paper"], record["config"]
    )


def find(name: str, output: str) -> Record:
    """The finished record whose id begins with `name`: of this machine or, where it has none, a published
    one. Raises UserError for none, for several, and for one that has failed."""
    ledger = open_ledger(output)
    like = [record for record in ledger if record["id"].startswith(name)]
    records = [record for record in like if ledger.origin[record["id"]] == "ours"] or like
    if len(records) != 1:
        raise UserError(
            f"{len(records) or 'no'} records begin with {name!r} in {output}/records (files are named by the"
            " ids)"
        )
    (record,) = records
    if record["status"] != "done":
        raise UserError(f"run {record['id']} is {record['status']}: {record['error']}")
    return record


if __name__ == "__main__":
    entry_point(main)
