"""Checks a finished run: loads its adapter and head into a fresh base model and
evaluates them again.

vera-bench evaluate RUN
    RUN is a run id, or its beginning, as in outputs/records

Texts that the run has decoded are scored again, too. A score that the record lacks
(because there was no Java) is added to it.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

import tasks
from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommandLine,
    RecordSettings,
    S,
    entry_point,
    read_command_line,
)
from runs.command.records import find_record, open_ledger
from runs.config import read_command
from runs.machine.hashes import check_unchanged
from runs.machine.locks import holding, run_lock
from runs.record.cell import complete_scores
from runs.record.folder import RecordFolder
from runs.record.ledger import finished_record, run_folder, write_record
from runs.record.schema import FINISHED, AddedKeys, DecodedScores, Record
from runs.record.text import describe
from runs.run.definition import Run
from runs.run.identity import identify
from runs.training.files import tidy
from tasks.continuations import Written

if TYPE_CHECKING:
    from runs.training.context import Context

#: Is called with each event of a run's progress.
Report = Callable[[dict[str, Any]], None]
#: Whether a score that is computed again is the recorded one, in words.
COMPARISON_WORDS = {True: "the same", False: "NOT the same"}


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments, RecordSettings, positional="RUN", module=__name__
    )
    output = line.settings.output
    record = find_finished(line.positional[0], output)
    label = record["label"]
    name = f"{label['row']} on {label['task']}, seed {record['cell']['seed']}"
    verdicts = []
    if record.get("texts"):
        verdicts += score_texts_again(record, output, name)
    kept_no_adapter = record["config"]["keep"] == "none"
    # a run without texts goes on to the error that says how to keep its adapter
    if verdicts and kept_no_adapter and record["parameters"]["adapter"]:
        metric = record["result"]["metric"]
        print(f"{name}: the run kept no adapter, so that its {metric} is not checked")
    else:
        verdicts += evaluate_again(record, output, name)
    return 0 if all(verdicts) else 1


def evaluate_again(record: Record, output: str, name: str) -> list[bool]:
    """Evaluates each adapter that a run has kept, and prints its score. Returns for each
    whether the score is the recorded one. name: of the run, for what is printed."""
    metric = record["result"]["metric"]
    scale = record["result"]["scale"]
    # for each kept adapter, what `best` of `restore` says
    best_flags = [False]
    if record["config"]["keep"] == "both":
        best_flags = [False, True]
    verdicts = []
    for best in best_flags:
        score = restore(record, output, best).score()
        recorded = kept_score(record, best)
        is_same = bool(np.isclose(score, recorded, atol=1e-9))
        verdicts.append(is_same)
        epoch = " (the best epoch's)" if best else ""
        scores = f"{metric} {scale * score:.2f}, recorded {scale * recorded:.2f}"
        print(f"{name}{epoch}: {scores}: {COMPARISON_WORDS[is_same]}")
    return verdicts


class TextScores(NamedTuple):
    """The scores of an epoch's texts, computed again, by their names.

    Attributes:
        is_same: whether the texts and the scores are the recorded ones.
        recorded: the scores that the record has, too.
        added: the scores that it lacks; none where `is_same` is false.
    """

    is_same: bool
    recorded: dict[str, float]
    added: dict[str, float]


def score_texts_again(record: Record, output: str, name: str) -> list[bool]:
    """Scores a run's saved texts again, and adds scores that its record lacks. Returns
    verdicts: whether there are as many entries of scores (an epoch and a variant) as
    recorded, and then for each whether its scores are the recorded ones. name: of the
    run, for what is printed."""
    from runs.training import decode

    path = kept_file("decoded_last.jsonl", record, output)
    # as kept_file has checked the last epoch's
    check_unchanged(record, path.with_name("decoded_best.jsonl"))
    task = cast(Written, tasks.load(record["config"]["task"]))
    recorded_texts = record.get("texts")
    assert recorded_texts is not None
    entries = recorded_texts["scores"]
    try:
        texts = decode.read_texts(task, path.parent)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({describe(error)})") from None
    # These files of the texts may be missing or damaged: `vera-bench mistakes`, which
    # reads one, then says to come here
    decode.write_text_files(task, path.parent, texts)
    epochs = {entry["which"]: entry["epoch"] for entry in entries}
    new_entries = decode.score_entries(task, texts, epochs)
    verdicts = [len(new_entries) == len(entries)]
    has_additions = False
    # not strict: the first verdict says whether their lengths differ
    for entry, new_entry in zip(entries, new_entries, strict=False):
        scores = _compare_text_scores(entry, new_entry)
        verdicts.append(scores.is_same)
        # `entry` is a part of recorded_texts, which is written below
        _add_scores(entry, scores.added)
        has_additions = has_additions or bool(scores.added)
        numbers = [f"{key} {score:.2f}" for key, score in scores.recorded.items()]
        text = f"{name}, {new_entry['which']} epoch, {new_entry['variant']}"
        text += f": {', '.join(numbers)}: {COMPARISON_WORDS[scores.is_same]}"
        if scores.added:
            text += f"; {', '.join(scores.added)} added to the record"
        print(text)
    if has_additions:
        amend(output, record["id"], lambda _: {"texts": recorded_texts})
    return verdicts


def _compare_text_scores(entry: DecodedScores, new_entry: DecodedScores) -> TextScores:
    """Compares an epoch's scores in a record with those that were computed now. The
    texts are the same if their hashes are, and equal scores may differ by 1e-6."""
    recorded_scores = cast(Mapping[str, float | None], entry)
    recorded = dict[str, float]()
    missing = dict[str, float]()
    is_same = bool(entry["hash"] == new_entry["hash"])
    for key, score in new_entry.items():
        # an entry also holds texts, such as its hash, and the number of its epoch
        if key == "epoch" or not isinstance(score, float):
            continue
        recorded_score = recorded_scores.get(key)
        if recorded_score is None:
            missing[key] = score
            continue
        recorded[key] = score
        is_same = is_same and bool(np.isclose(score, recorded_score, atol=1e-6))
    return TextScores(is_same, recorded, missing if is_same else {})


def _add_scores(entry: DecodedScores, added: Mapping[str, float]) -> None:
    """Adds scores to an epoch's entry in a record, and removes the reasons for which
    they were missing. Changes `entry`."""
    reasons = entry.pop("unavailable", None) or {}
    cast(dict[str, object], entry).update(added)
    reasons = {key: reason for key, reason in reasons.items() if key not in added}
    if reasons:
        entry["unavailable"] = reasons


def amend(
    output: str | Path, run_id: str, new_keys: Callable[[Record], AddedKeys]
) -> bool:
    """Adds keys to a finished record of this machine, or replaces them, under the run's
    lock. new_keys: makes them from the record as it then is. Returns whether there is
    such a record."""
    with holding(run_lock(output, run_id), f"run {run_id}"):
        record = finished_record(output, run_id)
        if record:
            write_record(output, cast(Record, {**record, **new_keys(record)}))
    return record is not None


# --- the finished runs that a command names


def read_line(arguments: list[str], settings: type[S]) -> CommandLine[S]:
    """The command line of a command that takes runs. Raises UserError for no runs, and
    under torchrun."""
    if "LOCAL_RANK" in os.environ:
        raise UserError("this command is one process: start it without torchrun")
    line = read_command_line(
        arguments,
        settings,
        positional="[RUN ...]",
        overrides_help="the runs, as for vera-bench run, in place of ids",
        options=COMPOSING_OPTIONS,
    )
    if not (line.positional or line.overrides or line.options):
        raise UserError(
            "which runs? Name their ids, or what composes them, such as experiment=NAME"
            " (--help)"
        )
    return line


def find_finished(name: str, output: str) -> Record:
    """The finished record whose id begins with `name`, of this machine or published.
    Raises UserError for none, for several, and for one that has failed or diverged."""
    # the file of one record is read faster than all records
    records = RecordFolder(output)
    ids = list[str]()
    if re.fullmatch("[0-9a-f]+", name):
        ids = records.ids_that_begin_with(name)
    record = records.get(ids[0]) if len(ids) == 1 else None
    if record is None:  # a published run, several or none
        record = find_record(open_ledger(output), name, output)
    if record["status"] != "done":
        raise UserError(f"run {record['id']} is {record['status']}: {record['error']}")
    return record


def finished_records(line: CommandLine[RecordSettings]) -> list[Record]:
    """The records of done runs that a command line names, by run ids or by overrides
    that compose runs. Of the composed runs, those that diverged are left out, and so are
    those that have not finished, which are printed. Raises UserError where none is left,
    and for a run id as `find_finished` does."""
    output = line.settings.output
    if line.positional:
        return [find_finished(name, output) for name in line.positional]
    runs = read_command([*line.overrides, f"output={output}"], line.config_dir).runs
    folder = RecordFolder(output)
    records = []
    for run, run_id in zip(runs, identify(runs), strict=True):
        record = folder.get(run_id)
        if record is None or record["status"] not in FINISHED:
            print(f"left out: {run.label} has not finished here", flush=True)
        elif record["status"] == "done":
            records.append(record)
    if not records:
        arguments = [*line.overrides]
        if line.config_dir is not None:
            arguments.insert(0, f"--config-dir={line.config_dir}")
        raise UserError(
            f"none of these {len(runs)} runs has finished in {output}/records. First: "
            f"vera-bench {shlex.join(arguments)}"
        )
    return records


# --- a finished run, loaded


def restore(
    record: Record,
    output: str,
    best: bool = False,
    report: Report = lambda _: None,
    task: tasks.Task | None = None,
) -> "Context":
    """Loads a finished run: its task, and a fresh base model with the adapter and the
    head that the run has kept.

    Args:
        best: Whether a run that kept two adapters (keep=both) gets that of the best
            epoch, and not of the last.
        report: Is called with each event of the progress.
        task: One to use in place of the run's.

    Raises:
        UserError: Where a file is missing.
        AdapterError: Where one is damaged or does not fit.
    """
    import vera
    from runs.training.context import Context

    files = {}
    if record["parameters"]["adapter"]:
        name = "adapter_best" if best else "adapter"
        files["adapter"] = kept_file(f"{name}.safetensors", record, output)
    if record["parameters"]["head"]:
        files["head"] = kept_file("head.safetensors", record, output)
    run = run_from_record(record)
    # start=False: the kept adapter has what the run's own start brought into it
    context = Context(run, record["id"], report, start=False, task=task)
    if "adapter" in files:
        # not by vera.load, which adapts a copy once more: on a GPU some of peft's
        # methods then draw other bits
        vera.start_from(context.raw_model, files["adapter"])
    if "head" in files:
        # scaled=True: the task turns outputs on scaled labels back, as in training
        vera.load_head(context.raw_model, files["head"], scaled=True)
    return context


def run_from_record(record: Record) -> Run:
    """The run whose record this is, as its configuration is recorded."""
    cell = record["cell"]
    return Run(
        row=cell["row"],
        model=cell["model"],
        task=cell["task"],
        seed=cell["seed"],
        recipe=str(record["recipe"]["name"]),
        experiment=cell["paper"],
        config=record["config"],
    )


def kept_file(name: str, record: Record, output: str) -> Path:
    """The path of a file that a run has kept. Raises UserError where it is missing, with
    the command that repeats the run here and keeps its adapter; and where the file is not
    the one of the record, but of another attempt at the run."""
    run_id = record["id"]
    keep = record["config"]["keep"]
    path = run_folder(output, run_id) / name
    is_here = finished_record(output, run_id) is not None
    if is_here:
        tidy(output, record)  # a kill may have left the file with its attempt
    if path.is_file():
        check_unchanged(record, path)
        return path
    arguments = [f"rerun={run_id}"]
    if keep == "none":
        arguments.append(f"keep={record['config']['task'].get('keep') or 'best'}")
    if output != "outputs":
        arguments.append(f"output={output}")
    if is_here:
        arguments.append("redo=true")
    raise UserError(
        f"{path} is not there (run {run_id} had keep={keep}). To have it here: "
        f"vera-bench {shlex.join(arguments)}"
    )


def kept_score(record: Record, best: bool) -> float:
    """The metric on the whole dev set at the epoch whose adapter was kept. best: for a
    run that kept two adapters, whether to take the best epoch and not the last."""
    curve = record["curve"]
    scores = complete_scores(curve["metric"])
    keeps_last = record["config"]["keep"] in ("last", "both")
    if keeps_last and not best:
        return scores[-1]
    best_epoch = cast(float, record["result"]["best_epoch"])
    return scores[curve["epoch"].index(best_epoch)]


if __name__ == "__main__":
    entry_point(main)
