"""Checks a finished run: puts its adapter and head on a fresh base model and evaluates them again.

python -m runs.evaluate RUN                 a run id (or its beginning), as in outputs/records

Texts that the run has decoded are scored again, too. A score that the record lacks (where there was no Java)
is added to it, and so is the forgetting of a language model (task.forgetting_text).
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import tasks
from runs.alone import alone, run_lock
from runs.command import OfRecords, entry_point, find_record, open_ledger, read
from runs.errors import UserError
from runs.file_hash import check_kept
from runs.record import Record, finished_record, record_path, run_folder, study_folders, write_record
from runs.record.text import describe
from runs.run import Run
from runs.training.files import tidy
from tasks.base import Decoding

if TYPE_CHECKING:
    from runs.training.context import Context


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
    """The command that repeats a record's run here and keeps its adapter."""
    words = [f"rerun={record['id']}"]
    if record["config"]["keep"] == "none":
        words.append(f"keep={record['config']['task'].get('keep') or 'best'}")
    if output != "outputs":
        words.append(f"output={output}")
    if record_path(output, record["id"]).is_file():
        words.append("redo=true")
    return f"python -m runs {shlex.join(words)}"


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
    """The finished record of `find_record`. Raises UserError also for one that has failed or diverged."""
    record = find_record(open_ledger(output), name, output)
    if record["status"] != "done":
        raise UserError(f"run {record['id']} is {record['status']}: {record['error']}")
    return record


if __name__ == "__main__":
    entry_point(main)
