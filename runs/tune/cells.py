"""The cells of a search, and the points of their grids."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runs.command import as_word
from runs.config import CONF, GROUPS, read_command
from runs.errors import UserError
from runs.identity import final_ids, hash_of
from runs.record import Record, finished_record
from runs.run import Run

#: Overrides of a trial that the command for the best setting does not have.
TRIAL = {"task.holdout": "0.2", "keep": "none", "task.decode": "none"}


#: The values of a trial as texts, in the order of the cell's axes.
Point = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A row on a task, and its grid. overrides: of the command for the best setting, without the searched
    keys. axes: for each key its values, as texts. trials: the runs of each point, one for each seed, in grid
    order. config_dir: of the command."""

    overrides: list[str]
    axes: dict[str, list[str]]
    trials: dict[Point, list[Run]]
    config_dir: str | None = None

    @property
    def runs(self) -> list[Run]:
        """The runs of all trials."""
        return [run for runs in self.trials.values() for run in runs]

    @property
    def first(self) -> Run:
        """The first run, for what all runs have in common."""
        return self.runs[0]

    @property
    def seeds(self) -> int:
        """The number of runs of each trial."""
        return len(next(iter(self.trials.values())))

    @cached_property
    def name(self) -> str:
        """Row, model and task, with a hash of everything that defines the results, data included."""
        run, ids = self.first, list(self.ids.values())
        return f"{run.row}@{run.model}@{run.task}-{hash_of([self.axes, ids])[:8]}"

    @cached_property
    def ids(self) -> dict[Point, list[str]]:
        """The ids of each trial's runs, which exist once models and data are fetched."""
        ids = iter(final_ids(self.runs))
        return {point: [next(ids) for _ in runs] for point, runs in self.trials.items()}

    def records(self, *points: Point) -> list[Record]:
        """The records of these points' finished runs."""
        output = self.first.config["output"]
        records = (finished_record(output, run_id) for point in points for run_id in self.ids[point])
        return [record for record in records if record]

    @property
    def folder(self) -> Path:
        """The folder of trials.csv."""
        return Path(self.first.config["output"]) / "tune" / self.name

    def overrides_of(self, point: Point) -> list[str]:
        """The overrides of a point of the grid."""
        return [f"{key}={value}" for key, value in zip(self.axes, point, strict=True)]


def cells(overrides: list[str], grid: str = "{}", config_dir: str | None = None) -> list[Cell]:
    """The cells of a command. grid: the setting grid=. Raises UserError for an error
    in any of them."""
    own_grid = _grid(grid)
    seeds = [word for word in overrides if word.startswith("seed=")] or ["seed=0"]
    words = [word for word in overrides if word not in seeds]
    given = {word.partition("=")[0] for word in words}
    if left_out := sorted(own_grid.keys() & given):
        print(f"note: {', '.join(left_out)}: an override takes a key out of grid=")
    grids = _read((CONF / "tune.yaml").read_text())
    of_trials = [f"{key}={TRIAL[key]}" for key in ("task.holdout", "keep") if key not in given]
    of_command = []
    for run in read_command([*words, *of_trials, "seed=0"], config_dir).runs:
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
        points = list(itertools.product(*axes.values()))
        size = len(runs) // len(points)
        trials = {point: runs[i * size : (i + 1) * size] for i, point in enumerate(points)}
        kept = [word for word in run.overrides if word not in of_trials]
        kept = [word for word in kept if not word.startswith("task.holdout=")]
        of_command.append(Cell(kept, axes, trials, config_dir))
    return of_command


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
