"""Tunes learning rates: a grid for each cell, judged on held-out training rows, never
on a dev or test set.

vera-bench tune model=minilm task=mrpc method=vera
    the grid of conf/tune.yaml, with seed 0
vera-bench tune task=rte,mrpc method=vera,lora seed=0,1
    four cells, with two seeds for each trial
vera-bench tune experiment=table2_base method=vera
    the cells of a preset
vera-bench tune method=lora method.rank=4,8 train.lr=1e-3,1e-2
    searches each list of values for a key of train. and method.
vera-bench tune method=lora train.lr=1e-3
    a key with one value is fixed
vera-bench tune task.holdout=0.3
    the share of training rows that are held out (0.2 by default)

The overrides are those of `vera-bench run`, launcher= among them. A trial is one run
for each seed; these records enter no table. The same command continues a search, and
repeats failed trials. Trials are sent to W&B where you give tracking=.
outputs/tune/CELL holds trials.csv.
"""

import itertools
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from runs.command.errors import UserError
from runs.command.parser import COMPOSING, Common, as_word, entry_point, read
from runs.config import Files, Launch, read_command
from runs.config.grid import list_values
from runs.record.cell import Metric, epoch_of_table, hash_of, one_class, seed_value
from runs.record.ledger import finished_record, in_conf, write_atomically
from runs.record.schema import Record
from runs.record.spreadsheet import csv_text
from runs.record.text import plural
from runs.run.definition import Run, with_starts
from runs.run.identity import final_ids
from runs.sweep.sweep import sweep

#: Overrides of a trial that the command for the best setting does not have, where none
#: is given.
TRIAL = ("task.holdout=0.2", "keep=none")


def main(arguments: list[str]) -> int:
    words = "the cells, as for vera-bench run"
    line = read(arguments, Common, overrides=words, options=COMPOSING, module=__name__)
    if "LOCAL_RANK" in os.environ:
        raise UserError("a search is one process: vera-bench tune, without torchrun")
    debug = [f"debug={as_word(line.settings.debug)}"] if "debug" in line.given else []
    of_search, launch = cells([*line.overrides, *debug], line.config_dir)
    trials = [run for cell in of_search for run in cell.runs]
    done = sweep(
        with_starts(trials), launch=launch, again=trials if launch.redo else []
    )
    for cell in [] if done.signal else of_search:
        print(f"\n{report(cell)}")
    return done.exit_code


# --- what is tried


@dataclass(frozen=True)
class Cell:
    """A row on a task, and its grid. overrides: of the best setting's command, without
    the searched keys. axes: for each key its values, as texts. runs: in grid order, a
    trial's seeds together."""

    overrides: list[str]
    axes: dict[str, list[str]]
    runs: list[Run]
    config_dir: str | None = None

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the runs, which exist once models and data are fetched."""
        return final_ids(self.runs)

    @property
    def file(self) -> Path:
        """trials.csv, in a folder by row, model, task and a hash of all that defines
        results, data too."""
        run, of = self.runs[0], hash_of([self.axes, self.ids])[:8]
        return Path(
            run.config["output"],
            "tune",
            f"{run.row}@{run.model}@{run.task}-{of}",
            "trials.csv",
        )


def cells(
    overrides: list[str], config_dir: str | None = None
) -> tuple[list[Cell], Launch]:
    """The cells of a command, and where and how it does its runs. Raises UserError for
    any mistake."""
    grids, words = in_conf("tune.yaml"), list[str]()
    lists = dict[str, list[str]]()
    files = Files(config_dir)
    for word in overrides:
        key, lines = list_values(word, files)
        if len(lines) > 1 and key.startswith(("train.", "method.")):
            lists[key] = [line.partition("=")[2] for line in lines]
        else:
            words.append(word)
    given = {word.partition("=")[0] for word in words}
    seeds = [word for word in words if word.startswith("seed=")] or ["seed=0"]
    trial = [word for word in TRIAL if word.partition("=")[0] not in given]
    tracking = (
        [] if any(key.startswith("tracking") for key in given) else ["tracking=off"]
    )
    plain = [word for word in words if word not in seeds]
    command, found = (
        read_command([*plain, *trial, *tracking, "seed=0"], config_dir),
        list[Cell](),
    )
    for reason in command.left_out:
        print(f"left out: {reason}", file=sys.stderr)
    for run in command.runs:
        task, kind = run.config["task"], run.config["method"]["kind"]
        if task["holdout"] is None:
            rule = "trials are judged on held-out training rows, never on the dev or test set"
            raise UserError(f"task.holdout=null: {rule}")
        only_head, no_head = kind == "head", task["modality"] == "text generation"
        fixed, grid = (
            {*given, "train.lr" * only_head, "train.lr_head" * no_head},
            grid_of(run, grids) | lists,
        )
        axes = {
            key: [*map(str, values)] for key, values in grid.items() if key not in fixed
        }
        if not axes or kind == "none":
            known = f"conf/tune.yaml has grids for {', '.join(grids)}; a list is another: train.lr=1e-3,1e-2"
            raise UserError(f"{run.row}: nothing to search. {known}")
        decode = (
            ["task.decode=none"]
            if "decode" in task and "task.decode" not in given
            else []
        )
        points = [f"{key}={','.join(values)}" for key, values in axes.items()]
        runs = read_command([*run.overrides, *decode, *points, *seeds], config_dir).runs
        left = [
            w
            for w in run.overrides
            if w not in trial and not w.startswith("task.holdout=")
        ]
        found.append(Cell(left, axes, runs, config_dir))
    return found, command.launch


def grid_of(run: Run, grids: dict[str, Any]) -> dict[str, list[Any]]:
    """conf/tune.yaml's grid for a run: in a shared recipe by row, class of peft or
    kind; else by kind."""
    method, shared = run.config["method"], grids.get(run.recipe.partition("/")[0], {})
    groups = [group for group in shared.values() if "rows" in group]
    for name in (run.row, method.get("config_class"), method["kind"]):
        for group in groups:
            if name in group["rows"]:
                return {key: values for key, values in group.items() if key != "rows"}
    return dict(grids.get(method["kind"], {}))


# --- what came of it


def results(cell: Cell) -> tuple[pd.DataFrame, list[Record]]:
    """A row for each trial, the best first, and the records of all their runs.

    value: the mean over the seeds of the metric on the held-out rows, unscaled, at the
    epoch that the task's table reports (the worst value for a run that diverged in its
    first epoch); NaN where a run is missing or has no number. spread: the standard
    deviation over the seeds. done, diverged, one_class: how many runs have finished,
    diverged, or predict one class. runs: their ids. Equal trials are in grid order;
    after them are those with a run that diverged, and then those without a value."""
    output = cell.runs[0].config["output"]
    points = pd.DataFrame(itertools.product(*cell.axes.values()), columns=[*cell.axes])
    found = [finished_record(output, run_id) for run_id in cell.ids]
    runs = pd.DataFrame(
        {
            "trial": np.repeat(points.index, len(cell.ids) // len(points)),
            "value": [seed_value(record) if record else np.nan for record in found],
            "done": [record is not None for record in found],
            "diverged": [
                record is not None and record["status"] == "diverged"
                for record in found
            ],
            "one_class": [
                record is not None and one_class(record) is not None for record in found
            ],
            "runs": cell.ids,
        }
    )
    spread: Any = ("value", lambda of: of.where(np.isfinite).std(skipna=False))
    values = {"value": ("value", fmean), "spread": spread}
    counts = {name: (name, "sum") for name in ("done", "diverged", "one_class")}
    of_trials = runs.groupby("trial").agg(**values, **counts, runs=("runs", " ".join))
    numbers = of_trials[[*values]].astype(float)
    frame = pd.concat(
        [numbers, points, of_trials.drop(columns=[*values])], axis="columns"
    )
    records = [record for record in found if record]
    worse = (
        -frame.value
        if records and Metric.of_record(records[0]).higher_is_better
        else frame.value
    )
    return frame.iloc[
        np.lexsort((worse, frame.diverged > 0, frame.value.isna()))
    ], records


def report(cell: Cell) -> str:
    """The trials as a table (and trials.csv, in fractions); the best one's command and
    lines of a recipe."""
    (frame, records), run = results(cell), cell.runs[0]
    title = (
        f"{run.row} on {run.config['task']['label']} ({run.config['model']['label']})"
    )
    if not records:
        return f"{title}: no trial has finished"
    metric, first, best = Metric.of_record(records[0]), records[0], frame.iloc[0]
    frame = frame.rename(columns={"value": metric.name})
    rows = frame.itertuples(index=False, name=None)
    write_atomically(cell.file, csv_text([list(frame.columns), *rows]))
    numbers = dict.fromkeys((metric.name, "spread"), metric.text)
    table = frame.drop(columns="runs").to_string(
        index=False, na_rep="-", formatters=numbers
    )
    if pd.isna(best.value) or best.diverged:
        why = (
            "in each trial a run diverged" if best.diverged else "no trial has a value"
        )
        return f"{title}: {why}\n\n{table}"
    held, rest = (first["data"][f"{part}_rows"] for part in ("dev", "train"))
    epoch = epoch_of_table(run.config["train"], first["result"]["reported"])
    judged = f"{held} held-out training rows ({rest} trained on), {epoch} epoch, "
    seeds = plural(len(cell.runs) // len(frame), "seed")
    lines = [f"{title}: {metric.name} on {judged}{seeds}", "", table, ""]
    equal = int(((frame[metric.name] == best.value) & (frame.diverged == 0)).sum())
    if equal > 1:
        lines.append(
            f"{equal} settings have the best value: which of them comes first says nothing"
        )
    setting = {key: str(best[key]) for key in cell.axes}
    lines += [
        f"{key}={setting[key]} is the {end} tried"
        for key, end in edges(cell.axes, setting)
    ]
    task = run.config["task"]["name"]
    by_task = ", ".join(
        f"{key.partition('.')[2]}: {{{task}: {value}}}"
        for key, value in setting.items()
    )
    lines.append(f"best: {command_of(cell, setting)}")
    lines.append(f"for its recipe in conf/recipe: by_task: {{{by_task}}}")
    return "\n".join([*lines, f"trials: {cell.file}"])


def command_of(cell: Cell, setting: dict[str, str]) -> str:
    """The command that does a trial's run on the real dev set."""
    own = [f"--config-dir={cell.config_dir}"] if cell.config_dir else []
    words = [
        *own,
        *cell.overrides,
        *(f"{key}={value}" for key, value in setting.items()),
    ]
    return f"vera-bench {shlex.join(words)}"


def edges(
    axes: dict[str, list[str]], setting: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """The keys whose value is the smallest or the largest of its axis, since the best
    may be beyond it."""
    for key, texts in axes.items():
        values = pd.to_numeric(pd.Series(texts), errors="coerce")
        if len(values) > 1 and values.notna().all():  # else they have no order
            ends = {values.min(): "smallest", values.max(): "largest"}
            if float(setting[key]) in ends:
                yield key, ends[float(setting[key])]


if __name__ == "__main__":
    entry_point(main)
