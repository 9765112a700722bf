"""Checks a finished run: puts its adapter and head on a fresh base model and evaluates them again.

python -m runs.evaluate RUN                 a run id (or its beginning), as in outputs/records

Texts that the run has decoded are scored again, too; a score that was missing (for want of Java) goes into
the record.
"""

import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import tasks
from runs.command import OfRecords, entry_point, open_ledger, read
from runs.config import Run, as_word, choices, expand
from runs.errors import UserError
from runs.record import Record, record_path, run_folder, study_folders, write_record
from runs.record.text import describe
from tasks.base import Decoding

if TYPE_CHECKING:
    from runs.training.context import Context

#: Settings that say where files lie: published records have their last parts only.
PLACES = ("model.path", "task.data_dir", "task.train_file", "task.dev_file", "task.template")
#: Settings of one machine or command, and those that come with a choice of files.
NOT_COMPOSED = [
    *("output", "debug", "device", "micro_batch", "eval_batch", "checkpoint_minutes", "keep", "seed"),
    *("task.cache_dir", "task.mt_bench_dir", "task.family", "task.modality"),
    *("model.name", "method.kind", "method.keep", "method.recipe"),
]


class Settings(OfRecords):
    """None of its own."""


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="RUN")
    output = line.settings.output
    record = find(line.names[0], output)
    name = f"{record['label']['row']} on {record['label']['task']}, seed {record['cell']['seed']}"
    same = score_again(record, output, name) if record.get("texts") else True
    if record.get("texts") and record["config"]["keep"] == "none" and record["parameters"]["adapter"]:
        print(f"{name}: the run kept no adapter, so that its {record['result']['metric']} is not checked")
        return 0 if same else 1
    for best in (False, True) if record["config"]["keep"] == "both" else (False,):
        result, recorded = record["result"], _kept_result(record, best)
        again = restore(record, output, best).score()
        alike = bool(np.isclose(again, recorded, atol=1e-9))
        scale = result["scale"]
        verdict = "the same" if alike else "NOT the same"
        which = " (the best epoch's)" if best else ""
        print(
            f"{name}{which}: {result['metric']} {scale * again:.2f}, recorded {scale * recorded:.2f}:"
            f" {verdict}"
        )
        same = same and alike
    return 0 if same else 1


def score_again(record: Record, output: str, name: str) -> bool:
    """Scores a run's saved texts anew and compares; scores that the record lacks are written into it."""
    from runs.training import decode

    task, entries = cast(Decoding, tasks.load(record["config"]["task"])), record["texts"]["scores"]
    folder = run_folder(output, record["id"])
    try:
        found = decode.read(task, folder)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{folder}/decoded_last.jsonl: the run's texts cannot be read ({describe(error)})"
        ) from None
    decode.write(task, folder, found)
    again = decode.scores(task, found, {entry["which"]: entry["epoch"] for entry in entries})
    same, filled = len(again) == len(entries), False
    for before, after in zip(entries, again, strict=False):
        common = [
            key
            for key in after
            if isinstance(after[key], float) and before.get(key) is not None and key != "epoch"
        ]
        alike = before["hash"] == after["hash"] and all(
            np.isclose(after[key], before[key], atol=1e-6) for key in common
        )
        added = [key for key in after if alike and isinstance(after[key], float) and before.get(key) is None]
        words = ", ".join(f"{key} {after[key]:.2f}" for key in common)
        news = f"; {', '.join(added)} added to the record" if added else ""
        print(
            f"{name}, {after['which']} epoch, {after['variant']}: {words}:"
            f" {'the same' if alike else 'NOT the same'}{news}"
        )
        reasons = {
            key: why for key, why in (before.pop("unavailable", None) or {}).items() if key not in added
        }
        before |= {key: after[key] for key in added} | ({"unavailable": reasons} if reasons else {})
        same, filled = same and alike, filled or bool(added)
    if filled:
        write_record(output, record)
    return same


def restore(
    record: Record, output: str, best: bool = False, report: Callable[[dict[str, Any]], None] = lambda _: None
) -> "Context":
    """A finished run's task and model, with its kept adapter and head on a fresh base model.

    best: the best epoch's, of a run that kept both.

    Raises UserError where the run kept none, AdapterError where a file is damaged or does not fit.
    """
    import vera
    from runs.training.context import Context

    folder = run_folder(output, record["id"])
    needed = [name for name in ("adapter", "head") if record["parameters"][name]]
    adapter = f"adapter{'_best' if best else ''}.safetensors"
    for name in [{"adapter": adapter, "head": "head.safetensors"}[name] for name in needed]:
        if not (folder / name).is_file():
            why = (
                "the run kept one, where it was done"
                if record["config"]["keep"] != "none"
                else "the run kept none"
            )
            where = f"its record is {_path(record, output)}"
            raise UserError(
                f"{folder}/{name} is not there: {why} ({where}). To have it here:"
                f" {command_of(record, output)}"
            )
    context = Context(as_run(record), record["id"], report, start=False)
    if "adapter" in needed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what copying a transformers model touches
            vera.load(context.raw_model, folder / adapter)
    if "head" in needed:
        vera.load_head(context.raw_model, folder / "head.safetensors")
    return context


def _path(record: Record, output: str) -> Path:
    """Where a record lies: here, or in a published study."""
    own = record_path(output, record["id"])
    published = [folder / own.name for folder in study_folders() if (folder / own.name).is_file()]
    found = own if own.is_file() or not published else published[0]
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def command_of(record: Record, output: str) -> str:
    """The command that makes a record's run here, with an adapter that is kept. Where its data or model were
    local files of another machine, it has words to be filled in: task.data_dir=/where/glue."""
    try:
        words = words_of(record)
    except UserError as error:
        return f"no words make this run any more ({error})"
    if record["config"]["keep"] == "none":
        words.append(f"keep={record['config']['task'].get('keep') or 'best'}")
    words += [f"output={output}"] * (output != "outputs") + ["redo=true"] * record_path(
        output, record["id"]
    ).is_file()
    return f"python -m runs {shlex.join(words)}"


def words_of(record: Record) -> list[str]:
    """The words that compose a record's run: its row, model, task, seed and preset, and each setting that
    would be another by these. A local file or folder that is not here is called by its last part, below
    /where."""
    cell, config = record["cell"], record["config"]
    row, task = cell["row"].partition("_from_")[0], cell["task"]
    words = [f"experiment={cell['paper']}"] * (cell["paper"] in choices("experiment"))
    words += [
        f"model={cell['model']}",
        f"task={task if task in choices('task') else config['task']['family']}",
    ]
    words += [
        f"method={row if row in choices('method') else config['method']['kind']}",
        f"seed={cell['seed']}",
    ]
    label = "" if row in choices("method") else "method.label"  # which a row of peft's is named by
    recipe, wanted = record["recipe"]["name"], dict(_leaves(config))
    for key in PLACES:  # without which some models and tasks compose nothing
        if wanted.get(key):
            words.append(f"{key}={_place(wanted.pop(key))}")
    try:
        runs = expand(words)
    except UserError:  # a preset, or its rows, as they were once
        words = [word for word in words if not word.startswith("experiment=")]
        runs = expand(words)
    if recipe in choices("recipe") and {run.recipe for run in runs} != {recipe}:
        runs = expand([*words, f"recipe={recipe}"])
        words.append(f"recipe={recipe}")
    for key, value in wanted.items():
        if key in NOT_COMPOSED or key.startswith("recipe.") or (key.endswith(".label") and key != label):
            continue
        if key == label and config["init_from"]:
            value = value.rpartition(" from ")[0]
        if key == "init_from" and str(value).endswith(".safetensors"):
            value = _place(value)
        composed = [dict(_leaves(run.config)) for run in runs]
        if any(key in found and found[key] != value for found in composed):
            quoted = isinstance(value, str) and re.search(r"[^\w./:@+-]", value)
            words.append(f"{key}={json.dumps(value) if quoted else as_word(value)}")
            # Another setting may follow this one: the head's rate is the adapter's unless it is given
            runs = expand(words)
    return words


def _place(path: str) -> str:
    return path if Path(path).exists() else f"/where/{Path(path).name}"


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a configuration by their dotted keys. A mapping within a part (peft's config) is one
    value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def _kept_result(record: Record, best: bool) -> float:
    """The whole dev set's metric at the epoch whose adapter was kept; best: at the best one, of two."""
    curve, config, result = record["curve"], record["config"], record["result"]
    epoch = (
        -1 if config["keep"] in ("last", "both") and not best else curve["epoch"].index(result["best_epoch"])
    )
    return float(curve["metric"][epoch])


def as_run(record: Record) -> Run:
    """The run of a record."""
    cell, recipe = record["cell"], record["recipe"]["name"]
    return Run(
        cell["row"], cell["model"], cell["task"], cell["seed"], recipe, cell["paper"], record["config"]
    )


def find(name: str, output: str) -> Record:
    """The finished record whose id begins so. Raises UserError for none, several, or one that has failed."""
    found = [record for record in open_ledger(output) if record["id"].startswith(name)]
    if len(found) != 1:
        raise UserError(
            f"{len(found) or 'no'} records begin with {name!r} in {output}/records (files are named by the"
            " ids)"
        )
    if found[0]["status"] != "done":
        raise UserError(f"run {found[0]['id']} is {found[0]['status']}: {found[0]['error']}")
    return found[0]


if __name__ == "__main__":
    entry_point(main)
