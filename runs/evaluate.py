"""Checks a finished run: loads its adapter and head into a fresh base model and
evaluates them again.

vera-bench evaluate RUN
    RUN is a run id, or its beginning, as in outputs/records
vera-bench evaluate experiment=table2_base
    every finished run of a preset, or of other overrides

Texts that the run has decoded are scored again, too. A score that the record lacks
(because there was no Java) is added to it.
"""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import tasks
from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING,
    Line,
    OfRecords,
    S,
    entry_point,
    find_record,
    open_ledger,
    read,
)
from runs.config import read_command
from runs.machine.hashes import check_kept
from runs.machine.locks import alone, run_lock
from runs.record.folder import RecordFolder
from runs.record.ledger import finished_record, run_folder, write_record
from runs.record.schema import FINISHED, Record
from runs.record.text import describe
from runs.run.definition import Run
from runs.run.identity import identify
from runs.training.files import tidy
from tasks.continuations import Written

if TYPE_CHECKING:
    from runs.training.context import Context

Report = Callable[[dict[str, Any]], None]
#: How a value is beside the recorded one.
SAME = {True: "the same", False: "NOT the same"}


def main(arguments: list[str]) -> int:
    line = read(arguments, OfRecords, names="RUN", module=__name__)
    output = line.settings.output
    record = find(line.names[0], output)
    name = f"{record['label']['row']} on {record['label']['task']}, seed {record['cell']['seed']}"
    keep, result = record["config"]["keep"], record["result"]
    found = score_again(record, output, name) if record.get("texts") else []
    if found and keep == "none" and record["parameters"]["adapter"]:
        print(
            f"{name}: the run kept no adapter, so that its {result['metric']} is not checked"
        )
        return 0 if all(found) else 1
    for best in (False, True) if keep == "both" else (False,):
        context = restore(record, output, best)
        recorded, again = kept_result(record, best), context.score()
        found.append(bool(np.isclose(again, recorded, atol=1e-9)))
        which, scale = " (the best epoch's)" if best else "", result["scale"]
        values = (
            f"{result['metric']} {scale * again:.2f}, recorded {scale * recorded:.2f}"
        )
        print(f"{name}{which}: {values}: {SAME[found[-1]]}")
    return 0 if all(found) else 1


def score_again(record: Record, output: str, name: str) -> list[bool]:
    """Scores a run's saved texts again; adds scores that its record lacks. Returns
    which are the same."""
    from runs.training import decode

    path = kept_file("decoded_last.jsonl", record, output)
    check_kept(record, path.with_name("decoded_best.jsonl"))
    task, entries = (
        cast(Written, tasks.load(record["config"]["task"])),
        record["texts"]["scores"],
    )
    try:
        texts = decode.read(task, path.parent)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({describe(error)})") from None
    decode.write(task, path.parent, texts)
    again = decode.scores(
        task, texts, {entry["which"]: entry["epoch"] for entry in entries}
    )
    same, extended = [len(again) == len(entries)], False
    for before, after in zip(entries, again, strict=False):
        scores = {
            key: value
            for key, value in after.items()
            if isinstance(value, float) and key != "epoch"
        }
        common = [key for key in scores if before.get(key) is not None]
        equal = all(np.isclose(scores[key], before[key], atol=1e-6) for key in common)
        same.append(bool(equal and before["hash"] == after["hash"]))
        added = {
            key: value
            for key, value in scores.items()
            if same[-1] and key not in common
        }
        words = ", ".join(f"{key} {scores[key]:.2f}" for key in common)
        note = f"; {', '.join(added)} added to the record" if added else ""
        print(
            f"{name}, {after['which']} epoch, {after['variant']}: {words}: {SAME[same[-1]]}{note}"
        )
        reasons = before.pop("unavailable", None) or {}
        reasons = {key: why for key, why in reasons.items() if key not in added}
        before |= added | ({"unavailable": reasons} if reasons else {})
        extended = extended or bool(added)
    if extended:
        amend(output, record["id"], lambda _: {"texts": record["texts"]})
    return same


def amend(output: str | Path, run_id: str, parts: Callable[[Record], Record]) -> bool:
    """Adds keys to a finished record of this machine, under the run's lock. parts: of
    the record as it is now, the new keys. Returns whether there is such a record."""
    with alone(run_lock(output, run_id), f"run {run_id}"):
        record = finished_record(output, run_id)
        if record:
            write_record(output, record | parts(record))
    return record is not None


# --- the finished runs that a command names


def read_line(arguments: list[str], settings: type[S]) -> Line[S]:
    """The command line of a command that takes runs. Raises UserError for no runs, and
    under torchrun."""
    if "LOCAL_RANK" in os.environ:
        raise UserError("this command is one process: start it without torchrun")
    runs = "the runs, as for vera-bench run, in place of ids"
    line = read(arguments, settings, "[RUN ...]", overrides=runs, options=COMPOSING)
    if not (line.names or line.overrides or line.options):
        raise UserError(
            "which runs? Name their ids, or what composes them, such as experiment=NAME (--help)"
        )
    return line


def find(name: str, output: str) -> Record:
    """The finished record of `find_record`. Raises UserError also for one that has
    failed or diverged."""
    records = RecordFolder(output)
    ids = records.ids_that_begin_with(name) if re.fullmatch("[0-9a-f]+", name) else []
    record = records.get(ids[0]) if len(ids) == 1 else None
    if record is None:  # a published run, several or none
        record = find_record(open_ledger(output), name, output)
    if record["status"] != "done":
        raise UserError(f"run {record['id']} is {record['status']}: {record['error']}")
    return record


def records_of(line: Line[Any]) -> list[Record]:
    """The finished records that a command line names: by run ids, or by whatever
    composes runs.

    Raises UserError where there is none."""
    output = line.settings.output
    records = [find(name, output) for name in line.names]
    if not line.names:
        runs = read_command([*line.overrides, f"output={output}"], line.config_dir).runs
        records_here = RecordFolder(output)
        for run, run_id in zip(runs, identify(runs), strict=True):
            record = records_here.get(run_id) or {"status": "missing"}
            records += [record] if record["status"] == "done" else []
            if record["status"] not in FINISHED:
                print(f"left out: {run.label} has not finished here", flush=True)
        if not records:
            words = " ".join([*line.options, *line.overrides])
            none = f"none of these {len(runs)} runs has finished in {output}/records"
            raise UserError(f"{none}. First: vera-bench {words}")
    return records


# --- a finished run, loaded


def restore(
    record: Record,
    output: str,
    best: bool = False,
    report: Report = lambda _: None,
    task: tasks.Task | None = None,
) -> "Context":
    """A finished run's task and model, with its kept adapter and head on a fresh base
    model.

    best: the best epoch's adapter, of a run that kept both. task: in place of the
    run's. Raises UserError where a file is missing, AdapterError where one is damaged
    or does not fit."""
    import vera
    from runs.training.context import Context

    names = {
        "adapter": f"adapter{'_best' if best else ''}.safetensors",
        "head": "head.safetensors",
    }
    counts = record["parameters"]
    files = {
        part: kept_file(name, record, output)
        for part, name in names.items()
        if counts[part]
    }
    context = Context(run_of(record), record["id"], report, start=False, task=task)
    if "adapter" in files:
        # Not vera.load, which adapts a copy again: on a GPU some of peft's methods draw
        # other bits
        vera.start_from(context.raw_model, files["adapter"])
    if "head" in files:
        vera.load_head(context.raw_model, files["head"], scaled=True)
    return context


def run_of(record: Record) -> Run:
    """The run that a record is of."""
    row, model, task, seed = (
        record["cell"][key] for key in ("row", "model", "task", "seed")
    )
    return Run(
        row,
        model,
        task,
        seed,
        record["recipe"]["name"],
        record["cell"]["paper"],
        record["config"],
    )


def kept_file(name: str, record: Record, output: str) -> Path:
    """The path of a file of a run. Raises UserError where it is missing, or of another
    attempt, with the command that repeats the run here and keeps its adapter."""
    path, here = (
        run_folder(output, record["id"]) / name,
        finished_record(output, record["id"]),
    )
    if here:
        tidy(output, record)  # a kill may have left the file with its attempt
    if path.is_file():
        check_kept(record, path)
        return path
    keep = record["config"]["keep"]
    words = [f"rerun={record['id']}"]
    words += (
        [f"keep={record['config']['task'].get('keep') or 'best'}"]
        if keep == "none"
        else []
    )
    words += [f"output={output}"] if output != "outputs" else []
    words += ["redo=true"] if here else []
    repeat = f"To have it here: vera-bench {shlex.join(words)}"
    raise UserError(
        f"{path} is not there (run {record['id']} had keep={keep}). {repeat}"
    )


def kept_result(record: Record, best: bool) -> float:
    """The whole dev set's metric at the epoch whose adapter was kept; best: at the best
    one, of two."""
    curve = record["curve"]
    if record["config"]["keep"] in ("last", "both") and not best:
        return float(curve["metric"][-1])
    return float(curve["metric"][curve["epoch"].index(record["result"]["best_epoch"])])


if __name__ == "__main__":
    entry_point(main)
