"""Tunes learning rates: a grid for each cell, judged on rows held out from training data, never on a dev or
test set.

python -m runs.tune model=minilm task=mrpc method=vera              the grid of conf/tune.yaml, seed 0
python -m runs.tune task=rte,mrpc method=vera,lora seed=0,1         four cells, one after another, two seeds a
                                                                    trial
python -m runs.tune experiment=table2_base method=vera                   the cells of a preset
python -m runs.tune method=lora grid='{method.rank: [4, 8]}'        more of a grid, or another list for a key
                                                                    of it
python -m runs.tune method=lora train.lr=1e-3                       what a word sets is not searched
python -m runs.tune task.holdout=0.3                                the share of the training rows that is
                                                                    held out (0.2)

The words are those of python -m runs. Each trial is a run a seed, with a record, which enters no table. The
same command goes on where it was, and tries failed trials again. output/tune/STUDY holds the journal and
trials.csv.
"""

import csv
import io
import itertools
import math
import os
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from yaml import YAMLError

import tasks
from runs.command import COMPOSING, Common, entry_point, read, setting
from runs.config import CONF, GROUPS, WHERE, Launch, Run, as_word, expand, with_starts
from runs.errors import UserError
from runs.identity import hash_of
from runs.record import Metric, Record, best_and_last, write_atomically
from runs.record.text import duration, plural
from runs.sweep.attempt import start_fork_server
from runs.sweep.jobs import check_ids, final_ids, finished_record
from runs.sweep.preflight import preflight
from runs.sweep.sweep import sweep
from runs.tracking import Tracking

#: Words that a trial needs and the best setting's command does not.
TRIAL = {"task.holdout": "0.2", "keep": "none", "task.decode": "none"}

#: The texts of a trial's values, in the order of the cell's axes.
Point = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """What one study searches: values as texts by key, and the runs of each point of the grid, one a seed, in
    grid order."""

    words: list[str]  # of the command for the best setting, without what is searched
    axes: dict[str, list[str]]
    trials: dict[Point, list[Run]]

    @property
    def first(self) -> Run:
        """A run of the cell, for what all have in common."""
        return next(iter(self.trials.values()))[0]

    @property
    def seeds(self) -> int:
        """How many each trial has."""
        return len(next(iter(self.trials.values())))

    @cached_property
    def name(self) -> str:
        """Row, model and task, with a hash of all that defines the results, the data's content included."""
        run, ids = self.first, list(self.ids.values())
        return f"{run.row}@{run.model}@{run.task}-{hash_of([self.axes, ids])[:8]}"

    @cached_property
    def ids(self) -> dict[Point, list[str]]:
        """The ids of each trial's runs, once their models and data are here."""
        ids = iter(final_ids([run for runs in self.trials.values() for run in runs]))
        return {point: [next(ids) for _ in runs] for point, runs in self.trials.items()}

    def records(self, *points: Point) -> list[Record]:
        """Those of the trials' runs, where they have finished."""
        output = self.first.config["output"]
        found = (finished_record(output, run_id) for point in points for run_id in self.ids[point])
        return [record for record in found if record]

    @property
    def folder(self) -> Path:
        """Where the journal and trials.csv lie."""
        return Path(self.first.config["output"]) / "tune" / self.name

    def words_of(self, point: Point) -> list[str]:
        """The overrides of a point of the grid."""
        return [f"{key}={value}" for key, value in zip(self.axes, point, strict=True)]


class Grid(GridSampler):
    """Optuna's, for ask and tell: after the last trial it would stop a loop that there is not."""

    def after_trial(self, *_: Any) -> None:
        pass


def cells(arguments: list[str], asked: str = "{}", options: Sequence[str] = ()) -> list[Cell]:
    """The cells that the overrides mean. asked: grid=. options: --config-dir, handed on. Raises UserError for
    whatever is wrong with them or with the grid."""
    grid = _grid(asked)
    seeds = [word for word in arguments if word.startswith("seed=")] or ["seed=0"]
    words = [word for word in arguments if word not in seeds]
    given = {word.partition("=")[0] for word in words}
    known = _read((CONF / "tune.yaml").read_text())
    own = [f"{key}={TRIAL[key]}" for key in ("task.holdout", "keep") if key not in given]
    found = []
    for run in expand([*options, *words, *own, "seed=0"]):
        task, kind = run.config["task"], run.config["method"]["kind"]
        if task["holdout"] is None:
            raise UserError(
                "task.holdout=null: trials are judged on held-out training rows, never on the dev or test set"
            )
        idle = (
            {"train.lr"}
            if kind == "head"
            else {"train.lr_head"}
            if task["modality"] == "text generation"
            else set()
        )
        axes = {
            key: values for key, values in (known.get(kind, {}) | grid).items() if key not in given | idle
        }
        if not axes or kind == "none":
            raise UserError(
                f"{run.row}: nothing to search. conf/tune.yaml has grids for {', '.join(known)}; grid= gives"
                " another"
            )
        decode = (
            [f"task.decode={TRIAL['task.decode']}"] if "decode" in task and "task.decode" not in given else []
        )
        lists = [f"{key}={','.join(values)}" for key, values in axes.items()]
        runs = expand([*options, *run.overrides, *decode, *lists, *seeds])
        points = list(itertools.product(*axes.values()))
        size = len(runs) // len(points)
        trials = {point: runs[i * size : (i + 1) * size] for i, point in enumerate(points)}
        kept = [word for word in run.overrides if word not in own and not word.startswith("task.holdout=")]
        found.append(Cell(kept, axes, trials))
    return found


def _grid(text: str) -> dict[str, list[str]]:
    """The lists of grid=, as texts of the command line."""
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
    """YAML with 1e-2 as a number (PyYAML alone reads a word), the lists in it as texts of the command
    line."""

    def plain(value: Any) -> Any:
        return list(dict.fromkeys(map(as_word, value))) if isinstance(value, list) else value

    read = OmegaConf.to_container(OmegaConf.create(text))
    if not isinstance(read, dict):
        return read
    return {
        key: {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else plain(value)
        for key, value in read.items()
    }


# --- a study


def open_study(cell: Cell, metric: Metric) -> optuna.Study:
    """The cell's study, begun or gone on with. Raises UserError for a journal that cannot be read."""
    path = cell.folder / "journal.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A full disk or a loss of power cuts the last line, and the next one would go on in it
    if path.is_file():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = StudyDirection.MAXIMIZE if metric.higher_is_better else StudyDirection.MINIMIZE
    try:
        storage, sampler = JournalStorage(JournalFileBackend(str(path))), Grid(cell.axes, seed=0)
        return optuna.create_study(
            storage=storage, sampler=sampler, study_name=cell.name, direction=direction, load_if_exists=True
        )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete it: the runs of finished trials are not done again"
        ) from None


def latest(cell: Cell, study: optuna.Study) -> dict[Point, FrozenTrial]:
    """The last trial of each point that has one. Of one that is only queued, Optuna knows the parameters as
    fixed_params."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        if len(params) == len(cell.axes):
            found[tuple(params[key] for key in cell.axes)] = trial
    return found


def search(cell: Cell, study: optuna.Study) -> list[str]:
    """Does the trials that are left, those first that were on when an earlier command was killed. Returns a
    line for each run that failed."""
    before = latest(cell, study)
    for point, last in before.items():
        if last.state == TrialState.FAIL:
            study.enqueue_trial(dict(zip(cell.axes, point, strict=True)))
    done = sum(last.state == TrialState.COMPLETE for last in before.values())
    total = len(cell.trials)
    print(
        f"{cell.name}: {plural(total, 'trial')} of {plural(cell.seeds, 'run')}, {done} done before",
        flush=True,
    )
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    failed: list[str] = []
    for number in range(done + 1, total + 1):
        trial = optuna.Trial(study, running.pop(0)._trial_id) if running else study.ask()
        point = tuple(trial.suggest_categorical(key, values) for key, values in cell.axes.items())
        seconds = seconds_left(cell)
        left = f"  left: {duration(seconds)}" if seconds else ""
        print(f"[trial {number}/{total}] {' '.join(cell.words_of(point))}{left}", flush=True)
        runs = cell.trials[point]
        outcome = sweep(with_starts(runs), part=True, launch=Launch(tracking=Tracking(mode="off")))
        trial.set_user_attr("runs", cell.ids[point])
        if outcome.failed:
            study.tell(trial, state=TrialState.FAIL)
            failed += [
                f"{' '.join(cell.words_of(point))}, {run.label}: {error} ({log})"
                for run, error, log in outcome.failed
            ]
            continue
        records = cell.records(point)
        values = [value_of(record) for record in records]
        trial.set_user_attr("values", values)
        trial.set_user_attr("rows", [records[0]["data"][f"{part}_rows"] for part in ("dev", "train")])
        trial.set_user_attr("diverged", sum(record["status"] == "diverged" for record in records))
        study.tell(trial, statistics.fmean(values))
    return failed


def seconds_left(cell: Cell) -> float | None:
    """What the runs without a record will take, by what those with one took, whenever that was; None before
    the first."""
    took = [
        record["cost"]["train_seconds"] + record["cost"]["evaluate_seconds"]
        for record in cell.records(*cell.trials)
    ]
    return statistics.fmean(took) * (len(cell.trials) * cell.seeds - len(took)) if took else None


def value_of(record: Record) -> float:
    """The metric on the held-out rows, of the epoch that the task's table reports; of a run that diverged
    before its first epoch ended, the worst."""
    value = best_and_last(record, "paper").get(record["result"]["reported"])
    return float(value) if value is not None else Metric.of_record(record).worst


# --- what is seen


def ranked(cell: Cell, study: optuna.Study, metric: Metric) -> list[tuple[Point, FrozenTrial]]:
    """Points and their trials, the best first; of equals the first in the grid; then those without a
    value."""
    trials = latest(cell, study)
    tried = [(point, trials[point]) for point in cell.trials if point in trials]
    done = [(point, trial) for point, trial in tried if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda pair: pair[1].value or 0.0, reverse=metric.higher_is_better)
    return done + [(point, trial) for point, trial in tried if trial.state != TrialState.COMPLETE]


def report(cell: Cell, study: optuna.Study, task: tasks.Task) -> str:
    """All trials, and the best one's words and recipe. Writes the same as trials.csv (values as
    fractions)."""
    metric = Metric.of_task(task)
    trials = ranked(cell, study, metric)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([metric.name, "spread", *cell.axes, "state", "runs"])
    rows = []
    for point, trial in trials:
        attrs, state = trial.user_attrs, trial.state.name.lower()
        value, spread = trial.value, spread_of(attrs.get("values", []))
        writer.writerow([value, spread, *point, state, " ".join(attrs.get("runs", []))])
        words = [
            f"{attrs['diverged']} diverged" if attrs.get("diverged") else "",
            "failed" if value is None else "",
        ]
        numbers = ["-" if number is None else metric.text(number) for number in (value, spread)]
        rows.append([*numbers, *point, " ".join([str(len(attrs.get("runs", []))), *filter(None, words)])])
    write_atomically(cell.folder / "trials.csv", file.getvalue())
    model, of = (cell.first.config[part]["label"] for part in ("model", "task"))
    title = f"{cell.first.row} on {of} ({model})"
    point, best = trials[0]
    if best.value is None:
        return "\n".join(
            [f"{title}: no trial has a value", "", *table([metric.name, "spread", *cell.axes, "runs"], rows)]
        )
    held, rest = best.user_attrs["rows"]
    which = f"{task.reported} epoch"
    judged = f"{held} held-out training rows ({rest} trained on), {which}, {plural(cell.seeds, 'seed')}"
    lines = [
        f"{title}: {metric.name} on {judged}",
        "",
        *table([metric.name, "spread", *cell.axes, "runs"], rows),
        "",
    ]
    equal = sum(trial.value == best.value for _, trial in trials)
    lines += (
        [f"{equal} settings have the best value: which of them comes first says nothing"] if equal > 1 else []
    )
    lines += [f"{words} is the {end} tried" for words, end in edges(cell, point)]
    lines += [
        f"best: python -m runs {shlex.join([*cell.words, *cell.words_of(point)])}",
        *recipe(cell, point, judged),
    ]
    return "\n".join([*lines, f"trials: {cell.folder / 'trials.csv'}"])


def edges(cell: Cell, point: Point) -> list[tuple[str, str]]:
    """The words of a point that lie at an end of their axis: the best may be beyond it."""
    found = []
    for word, (_, texts), text in zip(cell.words_of(point), cell.axes.items(), point, strict=True):
        try:
            values = sorted(map(float, texts))
        except ValueError:  # not numbers: no order
            continue
        if len(values) > 1 and float(text) in (values[0], values[-1]):
            found.append((word, "smallest" if float(text) == values[0] else "largest"))
    return found


def recipe(cell: Cell, point: Point, judged: str) -> list[str]:
    """The lines for a recipe file, of those keys that look there."""
    files = "".join(path.read_text() for path in [CONF / "config.yaml", *sorted(CONF.glob("method/*.yaml"))])
    task = cell.first.config["task"]["name"]
    axes = [
        (key.rpartition(".")[2], values, value)
        for (key, values), value in zip(cell.axes.items(), point, strict=True)
    ]
    axes = [axis for axis in axes if f"${{recipe:{axis[0]}," in files]
    if not axes:
        return []
    tried = {
        key: f"the best of {', '.join(values)}" if len(values) > 1 else "the only one tried"
        for key, values, _ in axes
    }
    chosen = [f"    {key}: on {task} {words}, on {judged}" for key, words in tried.items()]
    method = cell.words[0].partition("=")[2]
    own = method != "peft"  # whose file would be that of every class
    name = f"{method if own else cell.first.row}/{cell.first.model}"
    return [
        f"for conf/recipe/{name}.yaml{'' if own else f', which recipe={name} takes'}:",
        "  by_task:",
        *(f"    {key}: {{{task}: {value}}}" for key, _, value in axes),
        "  chosen:",
        *chosen,
    ]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns to the right, in ASCII."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, *rows)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return [f"| {' | '.join(line)} |" for line in lines]


def spread_of(values: list[float]) -> float | None:
    """Sample standard deviation over the seeds; None for a single one, or where one diverged without a
    perplexity."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


@dataclass(frozen=True)
class Settings(Common):
    """What a search can be given beside the cells."""

    grid: str = setting("{}", "a mapping of keys to lists that are searched, over those of conf/tune.yaml")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, overrides="the cells, as for python -m runs", passes=COMPOSING)
    if "LOCAL_RANK" in os.environ:
        raise UserError("a search is one process: python -m runs.tune, without torchrun")
    # W&B hears of no trial, so tracking=off asks for what is done anyway.
    words = [word for word in line.overrides if word != "tracking=off"]
    if other := next((word for word in words if re.split("[.=]", word)[0] in WHERE), None):
        raise UserError(
            f"{other} is for python -m runs: a search does its trials here, one after another, and W&B hears"
            " of none"
        )
    debug = [f"debug={as_word(line.settings.debug)}"] if "debug" in line.given else []
    found = cells([*words, *debug], line.settings.grid, line.options)
    runs = with_starts([run for cell in found for trial in cell.trials.values() for run in trial])
    if not runs[0].config["debug"]:
        start_fork_server()
    of_name = preflight(runs)
    check_ids(
        [run for cell in found for of_trial in cell.trials.values() for run in of_trial],
        [run_id for cell in found for of_trial in cell.ids.values() for run_id in of_trial],
    )
    failed, reports = [], []
    for cell in found:
        task = of_name[cell.first.task]
        study = open_study(cell, Metric.of_task(task))
        failed += search(cell, study)
        reports.append(report(cell, study, task))
    print("".join(f"\n{text}\n" for text in reports))
    for text in failed:
        print(f"failed, and tried again by the same command: {text}")
    return 1 if failed else 0


if __name__ == "__main__":
    entry_point(main)
