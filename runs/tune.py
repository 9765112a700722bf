"""Tunes learning rates: a grid for each cell, judged on held-out training rows, never on a dev or test set.

python -m runs.tune model=minilm task=mrpc method=vera              the grid of conf/tune.yaml, seed 0
python -m runs.tune task=rte,mrpc method=vera,lora seed=0,1         four cells, two seeds a trial
python -m runs.tune experiment=table2_base method=vera              the cells of a preset
python -m runs.tune method=lora grid='{method.rank: [4, 8]}'        another key in the grid, or another list
python -m runs.tune method=lora train.lr=1e-3                       a key with a value is not searched
python -m runs.tune task.holdout=0.3                                the share of held-out training rows (0.2)

The overrides are those of python -m runs, launcher= among them. Each trial is one run for each seed; their
records enter no table. The same command continues a search, and repeats failed trials. W&B hears of trials
where tracking= is given. outputs/tune/CELL holds trials.csv.
"""

import itertools
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runs.command import COMPOSING, Common, as_word, entry_point, read, setting
from runs.config import CONF, GROUPS, Launch, read_command, recipe_keys
from runs.errors import UserError
from runs.identity import final_ids, hash_of
from runs.record import (
    Metric,
    Record,
    epoch_of_table,
    finished_record,
    one_class,
    sample_deviation,
    seed_value,
    write_atomically,
)
from runs.record.text import plural
from runs.run import Run, with_starts
from runs.sweep.sweep import sweep
from runs.tracking import Tracking

#: Overrides of a trial that the command for the best setting does not have.
TRIAL = {"task.holdout": "0.2", "keep": "none", "task.decode": "none"}


@dataclass(frozen=True)
class Settings(Common):
    """Settings of the command."""

    grid: str = setting("{}", "a mapping of keys to lists that are searched, over those of conf/tune.yaml")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the cells, as for python -m runs", options=COMPOSING)
    if "LOCAL_RANK" in os.environ:
        raise UserError("a search is one process: python -m runs.tune, without torchrun")
    debug = [f"debug={as_word(line.settings.debug)}"] if "debug" in line.given else []
    of_search, launch = cells([*line.overrides, *debug], line.settings.grid, line.config_dir)
    runs = with_starts([run for cell in of_search for run in cell.runs])
    again = [run for cell in of_search for run in cell.runs] if launch.redo else []
    done = sweep(runs, launch=launch, again=again)
    for cell in [] if done.interrupted else of_search:
        print(f"\n{report(cell)}")
    return done.exit_code


# --- what is tried


@dataclass(frozen=True)
class Cell:
    """A row on a task, and its grid. overrides: of the command for the best setting, without the searched
    keys. axes: for each key its values, as texts. runs: in grid order, those of a trial's seeds together.
    config_dir: of the command."""

    overrides: list[str]
    axes: dict[str, list[str]]
    runs: list[Run]
    config_dir: str | None = None

    @property
    def trials(self) -> list[dict[str, str]]:
        """The settings of each trial, by key."""
        return [dict(zip(self.axes, point, strict=True)) for point in itertools.product(*self.axes.values())]

    @cached_property
    def ids(self) -> list[list[str]]:
        """The ids of each trial's runs, which exist once models and data are fetched."""
        ids, size = final_ids(self.runs), len(self.runs) // len(self.trials)
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    @property
    def folder(self) -> Path:
        """The folder of trials.csv, by row, model and task, with a hash of everything that defines the
        results, data included."""
        run, of = self.runs[0], hash_of([self.axes, self.ids])[:8]
        return Path(run.config["output"]) / "tune" / f"{run.row}@{run.model}@{run.task}-{of}"


def cells(overrides: list[str], grid: str = "{}", config_dir: str | None = None) -> tuple[list[Cell], Launch]:
    """The cells of a command, and where and how it does its runs. grid: the setting grid=. Raises UserError
    for an error in any of them."""
    own_grid, grids = _grid(grid), _read((CONF / "tune.yaml").read_text())
    seeds = [word for word in overrides if word.startswith("seed=")] or ["seed=0"]
    words = [word for word in overrides if word not in seeds]
    given = {word.partition("=")[0] for word in words}
    if left_out := sorted(own_grid.keys() & given):
        print(f"note: {', '.join(left_out)}: an override takes a key out of grid=")
    of_trials = [f"{key}={TRIAL[key]}" for key in ("task.holdout", "keep") if key not in given]
    command, found = read_command([*words, *of_trials, "seed=0"], config_dir), list[Cell]()
    for run in command.runs:
        task, kind = run.config["task"], run.config["method"]["kind"]
        if task["holdout"] is None:
            rule = "trials are judged on held-out training rows, never on the dev or test set"
            raise UserError(f"task.holdout=null: {rule}")
        unused = {"train.lr"} if kind == "head" else set()
        if kind != "head" and task["modality"] == "text generation":
            unused = {"train.lr_head"}
        axes = _grid_of(run, grids) | own_grid
        axes = {key: values for key, values in axes.items() if key not in given | unused}
        if not axes or kind == "none":
            known = f"conf/tune.yaml has grids for {', '.join(grids)}; grid= gives another"
            raise UserError(f"{run.row}: nothing to search. {known}")
        decodes = "decode" in task and "task.decode" not in given
        decode = [f"task.decode={TRIAL['task.decode']}"] if decodes else []
        lists = [f"{key}={','.join(values)}" for key, values in axes.items()]
        runs = read_command([*run.overrides, *decode, *lists, *seeds], config_dir).runs
        left = [w for w in run.overrides if w not in of_trials and not w.startswith("task.holdout=")]
        found.append(Cell(left, axes, runs, config_dir))
    tracked = any(word.startswith("tracking") for word in words)
    return found, command.launch if tracked else command.launch.model_copy(
        update={"tracking": Tracking(mode="off")}
    )


def _grid_of(run: Run, grids: dict[str, Any]) -> dict[str, list[str]]:
    """The grid of conf/tune.yaml for a run: of a recipe that rows share, there by the row's name, its class
    of peft or its kind; else by its kind."""
    method, shared = run.config["method"], grids.get(run.recipe.partition("/")[0], {})
    groups = [group for group in shared.values() if "rows" in group]
    for name in (run.row, method.get("config_class"), method["kind"]):
        for group in groups:
            if name in group["rows"]:
                return {key: values for key, values in group.items() if key != "rows"}
    return dict(grids.get(method["kind"], {}))


def _grid(text: str) -> dict[str, list[str]]:
    """The lists of grid=, with values as texts of the command line."""
    wrong = f"grid={text}: should be a mapping of keys to lists, such as {{train.lr: [1e-2, 3e-2]}}"
    try:
        grid = _read(text)
    except (YAMLError, OmegaConfBaseException):
        raise UserError(wrong) from None
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(wrong)
    for key in grid:
        if key in (*GROUPS, "seed", *TRIAL):
            raise UserError(f"grid={text}: {key} is a word of its own, {key}=...")
    return grid


def _read(text: str) -> Any:
    """YAML in which 1e-2 is a number (for PyYAML it is a word), with lists as texts of the command line."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return list(dict.fromkeys(map(as_word, value))) if isinstance(value, list) else value

    return plain(OmegaConf.to_container(OmegaConf.create(text)))


# --- what came of it


def results(cell: Cell) -> tuple[pd.DataFrame, list[Record]]:
    """A row for each trial, the best first, and the records of all their runs.

    value: the mean over the seeds of the metric on the held-out rows, unscaled, at the epoch that the task's
    table reports (the worst value for a run that diverged in its first epoch); NaN where a run is missing or
    has no number. spread: the standard deviation over the seeds. diverged, one_class: how many runs diverged,
    or predict one class. runs: their ids. Equal trials are in grid order; after them are those with a run
    that diverged, and then those without a value."""
    rows, every, output = list[dict[str, Any]](), list[Record](), cell.runs[0].config["output"]
    for trial, ids in zip(cell.trials, cell.ids, strict=True):
        records = [record for run_id in ids if (record := finished_record(output, run_id))]
        values, every = [*map(seed_value, records)], every + records
        value = fmean(values) if len(values) == len(ids) else np.nan
        state = "failed" if len(values) < len(ids) else "no number" if np.isnan(value) else "complete"
        spread = np.nan if np.isnan(value) else sample_deviation(values)
        row: dict[str, Any] = {"value": value, "spread": spread, **trial}
        row |= {"state": state, "diverged": sum(one["status"] == "diverged" for one in records)}
        row |= {"one_class": sum(one_class(one) is not None for one in records), "runs": " ".join(ids)}
        rows.append(row)
    frame = pd.DataFrame(rows).astype({"spread": float})
    worse = -frame.value if every and Metric.of_record(every[0]).higher_is_better else frame.value
    return frame.iloc[np.lexsort((worse, frame.diverged > 0, frame.value.isna()))], every


def report(cell: Cell) -> str:
    """The trials as a table, written as trials.csv too (values as fractions), and under it the command and
    the recipe's lines of the best one."""
    (frame, records), run = results(cell), cell.runs[0]
    title = f"{run.row} on {run.config['task']['label']} ({run.config['model']['label']})"
    if not records:
        return f"{title}: no trial has finished"
    metric, first = Metric.of_record(records[0]), records[0]
    frame = frame.rename(columns={"value": metric.name})
    write_atomically(cell.folder / "trials.csv", frame.to_csv(index=False))
    shown, numbers = frame.drop(columns="runs"), dict.fromkeys((metric.name, "spread"), metric.text)
    table = shown.to_string(index=False, na_rep="-", formatters=numbers)
    best = frame.iloc[0]
    if pd.isna(best[metric.name]) or best.diverged:
        why = "in each trial a run diverged" if best.diverged else "no trial has a value"
        return f"{title}: {why}\n\n{table}"
    held, rest = (first["data"][f"{part}_rows"] for part in ("dev", "train"))
    epoch = epoch_of_table(run.config["train"], first["result"]["reported"])
    judged = f"{held} held-out training rows ({rest} trained on), {epoch} epoch, "
    lines = [f"{title}: {metric.name} on {judged}{plural(len(cell.ids[0]), 'seed')}", "", table, ""]
    equal = int(((frame[metric.name] == best[metric.name]) & (frame.diverged == 0)).sum())
    if equal > 1:
        lines.append(f"{equal} settings have the best value: which of them comes first says nothing")
    setting = {key: str(best[key]) for key in cell.axes}
    lines += [f"{key}={setting[key]} is the {end} tried" for key, end in edges(cell.axes, setting)]
    task = run.config["task"]["name"]
    by_task = ", ".join(f"{key}: {{{task}: {value}}}" for key, value in tuned(cell, setting).items())
    lines.append(f"best: {command_of(cell, setting)}")
    lines += [f"for its recipe in conf/recipe: by_task: {{{by_task}}}"] if by_task else []
    return "\n".join([*lines, f"trials: {cell.folder / 'trials.csv'}"])


def command_of(cell: Cell, setting: dict[str, str]) -> str:
    """The command that does a trial's run on the real dev set."""
    own = [f"--config-dir={cell.config_dir}"] if cell.config_dir else []
    words = [*own, *cell.overrides, *(f"{key}={value}" for key, value in setting.items())]
    return f"python -m runs {shlex.join(words)}"


def edges(axes: dict[str, list[str]], setting: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The keys whose value is the smallest or the largest of its axis, since the best may be beyond it."""
    for key, texts in axes.items():
        values = pd.to_numeric(pd.Series(texts), errors="coerce")
        if len(values) > 1 and values.notna().all():  # else they have no order
            ends = {values.min(): "smallest", values.max(): "largest"}
            if float(setting[key]) in ends:
                yield key, ends[float(setting[key])]


def tuned(cell: Cell, setting: dict[str, str]) -> dict[str, str]:
    """What a recipe of the row may have, of the settings that were searched and those that were given with
    the search: the last part of the key, and the value."""
    known = recipe_keys(cell.overrides[0].partition("=")[2], cell.config_dir)
    given = dict(word.partition("=")[::2] for word in cell.overrides)
    found = {key.rpartition("."): value for key, value in (setting | given).items() if "${" not in value}
    return {key: of for (group, _, key), of in found.items() if group in ("train", "method") and key in known}


if __name__ == "__main__":
    entry_point(main)
