"""The cells that a search goes through, and the points of their grids."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runs.config import CONF, GROUPS, Run, as_word, expand
from runs.errors import UserError
from runs.identity import hash_of
from runs.record import Record
from runs.sweep.jobs import final_ids, finished_record

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
