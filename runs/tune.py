"""Tunes learning rates: a grid for each cell, scored on held-out training rows, never
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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommonSettings,
    entry_point,
    read_command_line,
)
from runs.config import Files, Launch, read_command
from runs.config.grid import split_override
from runs.record.cell import ReportedMetric, epoch_of_table, hash_of, score_of_record
from runs.record.collapse import describe_one_class
from runs.record.files import write_atomically
from runs.record.ledger import finished_record, in_conf
from runs.record.override import as_override_value
from runs.record.schema import Record
from runs.record.spreadsheet import csv_text
from runs.record.text import plural
from runs.run.definition import Run, with_starts
from runs.run.identity import final_ids
from runs.sweep.sweep import sweep

#: What a trial overrides where the user does not. The command that `report` prints for
#: the best setting leaves these out.
TRIAL_OVERRIDES = ("task.holdout=0.2", "keep=none")
#: The values of each searched key, such as train.lr.
Grid = Mapping[str, list[object]]
#: conf/tune.yaml. Below a kind of method is its grid; below the name of a shared recipe
#: (peers) are groups of rows, each with its rows and its grid.
Grids = Mapping[str, Any]


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments,
        CommonSettings,
        overrides_help="the cells, as for vera-bench run",
        options=COMPOSING_OPTIONS,
        module=__name__,
    )
    if "LOCAL_RANK" in os.environ:
        raise UserError("a search is one process: vera-bench tune, without torchrun")
    overrides = list(line.overrides)
    if "debug" in line.given:
        overrides.append(f"debug={as_override_value(line.settings.debug)}")
    searches, launch = searches_of_command(overrides, line.config_dir)
    trials = [run for search in searches for run in search.runs]
    runs_to_repeat = trials if launch.redo else []
    outcome = sweep(with_starts(trials), launch, runs_to_repeat)
    if not outcome.signal:
        for search in searches:
            print(f"\n{report(search)}")
    return outcome.exit_code


# --- the trials of a command


@dataclass(frozen=True)
class GridSearch:
    """The search of one row on one task.

    Attributes:
        overrides: of the command for the best setting, without the searched keys.
        axes: the values of each searched key, as texts.
        runs: in grid order, the seeds of a trial together.
        config_dir: the folder of --config-dir.
    """

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
        """trials.csv, in a folder named by row, model, task and a hash of everything
        that defines the results, also the data."""
        run = self.runs[0]
        content_hash = hash_of([self.axes, self.ids])[:8]
        folder = f"{run.row}@{run.model}@{run.task}-{content_hash}"
        return Path(run.config["output"], "tune", folder, "trials.csv")


def searches_of_command(
    overrides: list[str], config_dir: str | None = None
) -> tuple[list[GridSearch], Launch]:
    """The searches of a command, and how it does its runs. Raises UserError for any
    mistake."""
    other_overrides, lists = _split_lists(overrides, Files(config_dir))
    given_keys = {override.partition("=")[0] for override in other_overrides}
    seeds = list[str]()
    cell_overrides = list[str]()
    for override in other_overrides:
        if override.startswith("seed="):
            seeds.append(override)
        else:
            cell_overrides.append(override)
    if not seeds:
        seeds.append("seed=0")
    trial_overrides = list[str]()
    for override in TRIAL_OVERRIDES:
        if override.partition("=")[0] not in given_keys:
            trial_overrides.append(override)
    # W&B gets trials only if the user asks for it
    tracking_overrides = ["tracking=off"]
    if any(key.startswith("tracking") for key in given_keys):
        tracking_overrides = []
    # one run for each cell, by which its grid is chosen; its trials are composed below
    command = read_command(
        [*cell_overrides, *trial_overrides, *tracking_overrides, "seed=0"], config_dir
    )
    for note in command.notes:
        print(note, file=sys.stderr)
    grids = in_conf("tune.yaml")
    searches = []
    for run in command.runs:
        axes = _axes(run, grids, lists, given_keys)
        searched = [f"{key}={','.join(values)}" for key, values in axes.items()]
        no_decoding = list[str]()
        # no trial is judged by decoded texts, which take long
        if "decode" in run.config["task"] and "task.decode" not in given_keys:
            no_decoding = ["task.decode=none"]
        trials = read_command(
            [*run.overrides, *no_decoding, *searched, *seeds], config_dir
        ).runs
        overrides_of_best = _without_overrides_of_trials(run, trial_overrides)
        searches.append(GridSearch(overrides_of_best, axes, trials, config_dir))
    return searches, command.launch


def _without_overrides_of_trials(run: Run, trial_overrides: list[str]) -> list[str]:
    """A run's overrides without those that were added for trials. task.holdout= goes
    also where the user gave it, since the best setting is to train on all rows."""
    overrides = list[str]()
    for override in run.overrides:
        is_of_trial = override in trial_overrides
        if not is_of_trial and not override.startswith("task.holdout="):
            overrides.append(override)
    return overrides


def _split_lists(
    overrides: list[str], files: Files
) -> tuple[list[str], dict[str, list[object]]]:
    """Separates what is searched, the lists of values for keys in train. and method.,
    from the other overrides. Returns the others, and the lists by key."""
    other_overrides = []
    lists: dict[str, list[object]] = {}
    for override in overrides:
        key, choices = split_override(override, files)
        if len(choices) > 1 and key.startswith(("train.", "method.")):
            lists[key] = [choice.partition("=")[2] for choice in choices]
        else:
            other_overrides.append(override)
    return other_overrides, lists


def _axes(
    run: Run, grids: Grids, lists: Grid, given_keys: Collection[str]
) -> dict[str, list[str]]:
    """The keys that a run's search tries, with their values as texts. Raises UserError
    where there is none, and for trials that would be judged on a dev or test set.

    Args:
        grids: conf/tune.yaml.
        lists: The lists of the command line, which win over a grid's.
        given_keys: The keys that the command line sets otherwise: none is searched.
    """
    task = run.config["task"]
    kind = run.config["method"]["kind"]
    if task["holdout"] is None:
        raise UserError(
            "task.holdout=null: trials are judged on held-out training rows, never on "
            "the dev or test set"
        )
    fixed_keys = {*given_keys}
    if kind == "head":  # trains the head alone, at train.lr_head
        fixed_keys.add("train.lr")
    if task["modality"] == "text generation":  # without a head
        fixed_keys.add("train.lr_head")
    axes = {}
    for key, values in {**grid_of(run, grids), **lists}.items():
        if key not in fixed_keys:
            axes[key] = [str(value) for value in values]
    if not axes or kind == "none":
        raise UserError(
            f"{run.row}: nothing to search. conf/tune.yaml has grids for "
            f"{', '.join(grids)}; a list is another: train.lr=1e-3,1e-2"
        )
    return axes


def grid_of(run: Run, grids: Grids) -> Grid:
    """The grid of conf/tune.yaml for a run. If the file has groups for the run's shared
    recipe (peers), it is that of the group that lists the run's row, its class of peft
    or the kind of its method, in this order; otherwise the grid of the kind."""
    method = run.config["method"]
    # for a recipe such as vera/minilm this is the grid of a kind: lists, no groups
    entry = grids.get(run.recipe.partition("/")[0], {})
    groups = [group for group in entry.values() if "rows" in group]
    for name in (run.row, method.get("config_class"), method["kind"]):
        for group in groups:
            if name in group["rows"]:
                return {key: values for key, values in group.items() if key != "rows"}
    return dict(grids.get(method["kind"], {}))


# --- the results of the trials


def trial_results(search: GridSearch) -> tuple[pd.DataFrame, list[Record]]:
    """A frame with a row for each trial, and the records of all runs that finished.

    The best trial is first, and equal trials are in grid order. Trials with a run that
    diverged come after all others, and trials without a value last. Besides the
    searched keys the frame has these columns:

    value: the mean over the seeds of the metric on the held-out rows, unscaled, at
    the epoch that the task's table reports (the worst value for a run that diverged in
    its first epoch); NaN where a run is missing or has no number. spread: the standard
    deviation over the seeds. done, diverged, one_class: how many runs have finished,
    diverged, or predict one class. runs: their ids."""
    output = search.runs[0].config["output"]
    axes = search.axes
    settings = pd.DataFrame(itertools.product(*axes.values()), columns=[*axes])
    seeds = len(search.ids) // len(settings)
    rows = []
    records = []
    # the ids come in grid order, those of a trial's seeds together
    for position, run_id in enumerate(search.ids):
        record = finished_record(output, run_id)
        row: dict[str, object] = {
            "trial": position // seeds,
            "value": np.nan,
            "done": False,
            "diverged": False,
            "one_class": False,
            "runs": run_id,
        }
        if record:
            records.append(record)
            row["value"] = score_of_record(record)
            row["done"] = True
            row["diverged"] = record["status"] == "diverged"
            row["one_class"] = describe_one_class(record) is not None
        rows.append(row)
    trials = pd.DataFrame(rows).groupby("trial")
    numbers = trials.agg(value=("value", fmean), spread=("value", _spread))
    counts = trials[["done", "diverged", "one_class"]].sum()
    runs = trials["runs"].agg(" ".join)
    frame = pd.concat([numbers.astype(float), settings, counts, runs], axis="columns")
    values_to_sort = frame.value
    if records and ReportedMetric.of_record(records[0]).higher_is_better:
        values_to_sort = -frame.value
    # lexsort sorts by its last key first
    order = np.lexsort((values_to_sort, frame.diverged > 0, frame.value.isna()))
    return frame.iloc[order], records


def _spread(values: "pd.Series[float]") -> float:
    """The standard deviation over seeds; NaN where a value is missing or infinite."""
    return float(values.where(np.isfinite).std(skipna=False))


def report(search: GridSearch) -> str:
    """The trials as a table, the command for the best one, and the lines that its
    recipe needs. Also writes trials.csv, whose scores are fractions."""
    frame, records = trial_results(search)
    config = search.runs[0].config
    row = search.runs[0].row
    title = f"{row} on {config['task']['label']} ({config['model']['label']})"
    if not records:
        return f"{title}: no trial has finished"
    metric = ReportedMetric.of_record(records[0])
    best = frame.iloc[0]
    printed = frame.rename(columns={"value": metric.name})
    rows = printed.itertuples(index=False, name=None)
    write_atomically(search.file, csv_text([list(printed.columns), *rows]))
    table = printed.drop(columns="runs").to_string(
        index=False,
        na_rep="-",
        formatters=dict.fromkeys((metric.name, "spread"), metric.text),
    )
    if best.diverged:
        # trials without a value come last, also those in which no run diverged
        diverged_trials = "each trial"
        if not (frame.diverged > 0).all():
            diverged_trials = "each trial with a value"
        return f"{title}: in {diverged_trials} a run diverged\n\n{table}"
    if pd.isna(best.value):
        return f"{title}: no trial has a value\n\n{table}"
    data = records[0]["data"]
    epoch = epoch_of_table(config["train"], records[0]["result"]["reported"])
    seeds = plural(len(search.runs) // len(frame), "seed")
    lines = [
        f"{title}: {metric.name} on {data['dev_rows']} held-out training rows "
        f"({data['train_rows']} trained on), {epoch} epoch, {seeds}",
        "",
        table,
        "",
        *_lines_of_best(search, frame),
        f"trials: {search.file}",
    ]
    return "\n".join(lines)


def _lines_of_best(search: GridSearch, frame: pd.DataFrame) -> list[str]:
    """What a report says about the best trial: whether others are as good, keys whose
    best value is at the end of its axis, the command and the lines of a recipe."""
    lines = []
    best = frame.iloc[0]
    is_best = (frame.value == best.value) & (frame.diverged == 0)
    if is_best.sum() > 1:
        lines.append(
            f"{is_best.sum()} settings have the best value: which of them comes first "
            "says nothing"
        )
    best_setting = {key: str(best[key]) for key in search.axes}
    for key, end in edges(search.axes, best_setting):
        lines.append(f"{key}={best_setting[key]} is the {end} tried")
    lines.append(f"best: {command_of_trial(search, best_setting)}")
    task = search.runs[0].config["task"]["name"]
    entries = []
    for key, value in best_setting.items():
        entries.append(f"{key.partition('.')[2]}: {{{task}: {value}}}")
    lines.append(f"for its recipe in conf/recipe: by_task: {{{', '.join(entries)}}}")
    return lines


def command_of_trial(search: GridSearch, setting: Mapping[str, str]) -> str:
    """The command that trains with a trial's setting on all training rows, and
    evaluates on the real dev set."""
    arguments = []
    if search.config_dir:
        arguments.append(f"--config-dir={search.config_dir}")
    arguments += search.overrides
    arguments += [f"{key}={value}" for key, value in setting.items()]
    return f"vera-bench {shlex.join(arguments)}"


def edges(
    axes: Mapping[str, list[str]], setting: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Each key whose value is at an end of its axis, and which end that is ("smallest"
    or "largest"): a better value may lie beyond it."""
    for key, texts in axes.items():
        values = pd.to_numeric(pd.Series(texts), errors="coerce")
        if len(values) < 2 or values.isna().any():  # they have no order
            continue
        ends = {values.min(): "smallest", values.max(): "largest"}
        if float(setting[key]) in ends:
            yield key, ends[float(setting[key])]


if __name__ == "__main__":
    entry_point(main)
