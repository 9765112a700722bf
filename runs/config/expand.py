"""From the overrides of a command line to its runs: Hydra composes each cell, this file lists the cells."""

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from runs.command import COMPOSING, read
from runs.config import launch as launches
from runs.config.check import checked
from runs.config.files import Files, plain, without_hydra
from runs.config.launch import Launch
from runs.config.overrides import MOST_RUNS, RUN_ID, split, values
from runs.errors import UserError
from runs.run import Run

#: Keys for where and how runs are done: no part of a run, and one value for a whole command.
WHERE = ("launcher", "tracking", "redo", "table")


@dataclass(frozen=True)
class Command:
    """A command line, read: its runs in order, and where and how they are done."""

    runs: list[Run]
    launch: Launch


@dataclass(frozen=True)
class NoSettings:
    """The words of `expand` are all overrides."""


def expand(arguments: Sequence[str]) -> list[Run]:
    """The runs of a command line's overrides and --config-dir, in order. Raises UserError for any mistake."""
    line = read(arguments, NoSettings, overrides="the runs", options=COMPOSING)
    return read_command(line.overrides, line.config_dir).runs


def read_command(overrides: Sequence[str], config_dir: str | None = None) -> Command:
    """Composes the runs of overrides. A preset (experiment=) brings lists of its own; the command line's
    value for the same key wins. Raises UserError for any mistake."""
    files, runs, launch = Files(config_dir), list[Run](), Launch()
    with files.hydra():
        grid = read_grid(overrides, files)
        for cell in grid.cells:
            cfg = files.compose(cell)
            if not runs:  # the same for all runs of a command
                launch = launches.from_plain({key: plain(cfg[key]) for key in WHERE})
            runs += _runs_of(cfg, cell, grid, files)
    return Command(runs, launch)


@dataclass(frozen=True)
class Grid:
    """A command line's overrides of each cell, in order; its list of seeds ("" for the cells' own); and the
    name of its preset, or ""."""

    cells: list[tuple[str, ...]]
    seeds: list[str]
    preset: str


def only_runs(overrides: Sequence[str], config_dir: str | None) -> list[Run]:
    """The runs of overrides, for a command that starts none. Raises UserError also for an override that says
    where or how runs are done."""
    for override in overrides:
        if _key(override) in WHERE:
            raise UserError(f"{override} is for python -m runs: this command starts no run")
    return read_command(overrides, config_dir).runs


def spelt_out(line: str) -> tuple[str, ...]:
    """An override in Hydra's own words: method=peft:IA3Config (which can stand in a list of methods) is
    method=peft and method.config_class=IA3Config."""
    if match := re.fullmatch(r"method=peft\\*:(\w+)", line):
        return "method=peft", f"method.config_class={match[1]}"
    return (line,)


def read_grid(overrides: Sequence[str], files: Files) -> Grid:
    """Sorts the overrides; of the configuration only a preset is composed. Raises UserError for an override
    that cannot be read, and more than MOST_RUNS runs. Call it within Files.hydra."""
    fixed, lists = split(overrides)
    if fixed.get("experiment") == "experiment=null":
        del fixed["experiment"]
    preset = fixed.get("experiment", "").partition("=")[2]
    if preset:
        params = files.compose((f"experiment={preset}",)).hydra.sweeper.params or {}
        lists = {key: values(key, str(text)) for key, text in params.items() if key not in fixed} | lists
    if several := next((key for key in lists if key.partition(".")[0] in (*WHERE, "experiment")), None):
        raise UserError(f"{several}= takes one value, for all runs of the command")
    if (count := math.prod(map(len, lists.values()))) > MOST_RUNS:
        raise UserError(f"these words mean {count:,} runs, and one command takes at most {MOST_RUNS:,}")
    seeds = lists.pop("seed", [""])
    cells = ((*fixed.values(), *combination) for combination in itertools.product(*lists.values()))
    return Grid([tuple(one for line in cell for one in spelt_out(line)) for cell in cells], seeds, preset)


def _runs_of(cfg: DictConfig, overrides: tuple[str, ...], grid: Grid, files: Files) -> list[Run]:
    """A run of a cell for each seed."""
    choices = cfg.hydra.runtime.choices
    if grid.preset and not cfg.get("recipe"):
        wanted = choices.get("recipe") or f"{choices.method}/{choices.model}"
        mend = f"write conf/recipe/{wanted}.yaml, or take another one (recipe=ROW/MODEL)"
        raise UserError(f"preset {grid.preset} has no recipe for {wanted}: {mend}")
    # Resolving takes time. Where only data_seed follows the seed, runs differ by these two numbers alone, and
    # one configuration is copied.
    raw = without_hydra(cfg, resolve=False)
    alike = raw["data_seed"] == "${seed}" and len(re.findall(r"\$\{[^{}]*seed", str(raw))) == 1
    alike = alike and not raw["method"].get("redrawn")
    runs = list[Run]()
    for text in (seed.partition("=")[2] for seed in grid.seeds):
        if text:
            cfg.seed = yaml.safe_load(text)
        if runs and alike and type(cfg.seed) is int and cfg.seed in range(2**63):
            config = copy.deepcopy(runs[0].config) | {"seed": cfg.seed, "data_seed": cfg.seed}
            runs.append(dataclasses.replace(runs[0], seed=cfg.seed, config=config))
        else:
            runs.append(_make_run(cfg, overrides, grid.preset, files))
    return runs


def _make_run(cfg: DictConfig, overrides: tuple[str, ...], preset: str, files: Files) -> Run:
    """The run of a composed configuration, checked."""
    choices = cfg.hydra.runtime.choices
    recipe = str(choices.recipe) if cfg.get("recipe") else "defaults"
    config, changed = checked(cfg, overrides, files)
    method, row = config["method"], choices.method
    if method["kind"] == "peft":
        if sum("method.config_class" in line for line in overrides) > 1:
            raise UserError("method=peft:CLASS names the class: leave method.config_class= out")
        method["config"] = method["config"] or {}
        method["label"] = method["label"] or _peft_label(method)
    if row == "peft":  # each method of peft's is a row of its own
        row = f"peft_{_slug(method['label'])}"
    start = None
    if config["init_from"]:
        name, start = _start(config["init_from"], choices.model, overrides, files)
        if config["init_from"] != method.get("init_from"):
            row = f"{row}_from_{_slug(name)}"
        method["label"] += f" from {name}"
    cell = [f"{group}={choices[group]}" for group in ("method", "model", "task")]
    words = [*cell, *(line for line in overrides if _key(line) not in NOT_OF_A_RUN)]
    names = (row, choices.model, choices.task, config["seed"], recipe, preset or None)
    return Run(*names, config, start, changed, words)


def _key(line: str) -> str:
    """The key that an override sets; for a setting of a launcher or of tracking, the group."""
    key = line.lstrip("~+").partition("=")[0]
    return key.partition(".")[0] if key.startswith(WHERE) else key


def _peft_label(method: dict[str, Any]) -> str:
    """The label of a row of peft, such as "IA3" or "Lora use_dora=True"."""
    settings = " ".join(f"{key}={value}" for key, value in sorted(method["config"].items()))
    return f"{str(method['config_class']).removesuffix('Config')} {settings}".strip()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


def _start(text: str, model: str, overrides: tuple[str, ...], files: Files) -> tuple[str, Run | None]:
    """The start of a run: its name for the label and, for init_from=ROW@TASK, the run whose adapter it is.

    That run has this one's model, data folder and training overrides, its own recipe, and seed 0.
    """
    row, at, task = text.partition("@")
    if not at or "/" in text:
        is_id = re.fullmatch(RUN_ID, text)
        if not is_id and not text.endswith(".safetensors"):
            kinds = "a run id (12 hex digits), an adapter file or ROW@TASK such as lora@mnli"
            raise UserError(f"init_from={text}: should be {kinds}")
        return (f"run {text}" if is_id else Path(text).stem), None
    of_task = files.defaults((f"model={model}", f"task={task}")).task
    carried = [
        line
        for line in overrides
        if (key := _key(line)) not in NOT_CARRIED
        and not key.startswith("method.")
        and (not key.startswith("task.") or key.split(".")[1] in of_task)
    ]
    lines = (*carried, f"model={model}", f"method={row}", f"task={task}", "seed=0")
    run = _make_run(files.compose(lines), lines, "", files)
    if run.start:
        raise UserError(f"init_from={text}: {row} starts from another run itself")
    return task, run


#: Overrides that are not among a run's words: its cell and seed are named apart.
NOT_OF_A_RUN = ("method", "model", "task", "seed", *WHERE)
#: A run's overrides that do not hold for the run that it starts from.
NOT_CARRIED = (
    *("method", "task", "seed", "data_seed", "init_from", "recipe", "experiment", "keep", "model"),
    *("task.holdout", "task.label", "task.name", *WHERE),
)
