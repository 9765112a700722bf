"""From the overrides of a command line to the runs that they mean: Hydra composes, this file multiplies."""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.config import launch as launches
from runs.config.check import check_followed, check_types, check_values, check_whole, plain
from runs.config.files import GROUPS, PEFT_SITES, Files, groups_of
from runs.config.flags import read_flags
from runs.config.launch import Launch
from runs.config.names import first_line
from runs.config.overrides import MOST_RUNS, RUN_ID, split, values
from runs.config.run import Run, run_from
from runs.config.schema import Config
from runs.errors import UserError
from runs.record import cache_folder, write_atomically

OWN = [field.name for field in dataclasses.fields(Config)]
#: What says where and how runs are done, and not which: no part of a run, and one value for a whole command.
WHERE = ("launcher", "tracking", "lease_seconds", "redo", "table")
#: What runs come of, beside the files of conf/.
CODE = (Path(__file__).parent, Path(__file__).parents[1] / "record")


@dataclass(frozen=True)
class Command:
    """What a command line means: its runs in order, and where and how they are done."""

    runs: list[Run]
    launch: Launch


def expand(arguments: Sequence[str]) -> list[Run]:
    """Every run that a command line means, in order. Raises UserError for whatever is wrong with it."""
    return read_command(arguments).runs


def read_command(arguments: Sequence[str]) -> Command:
    """What a command line means: overrides, and --config-dir. Raises UserError for whatever is wrong with it.

    A preset (experiment=) brings lists of its own; the command line's value for the same key wins. Composing
    takes a tenth of a second a cell, so a sweep's answer is kept under a hash of the files and of the
    overrides."""
    flags = read_flags(arguments)
    files, overrides = Files(flags.config_dir), flags.overrides
    texts = {path: path.read_bytes() for path in files.all()}
    code = [PEFT_SITES, *sorted(path for room in CODE for path in room.glob("*.py"))]
    # An environment variable may change between two calls: nothing that reads one is kept.
    lasts = not any(b"oc.env" in text for text in [*texts.values(), *map(str.encode, overrides)])
    read = [(str(path), text) for path, text in (texts | {path: path.read_bytes() for path in code}).items()]
    digest = hashlib.sha256(repr((overrides, files.folders, read)).encode())
    kept = cache_folder() / "plans" / f"{digest.hexdigest()[:24]}.json"
    if lasts and kept.is_file():
        with contextlib.suppress(ValueError, TypeError, KeyError, OSError):  # a damaged one is composed anew
            command = json.loads(kept.read_bytes())
            return Command([*map(run_from, command["runs"])], launches.from_plain(command["launch"]))
    command = _read(overrides, files)
    if lasts and len(command.runs) > 1:
        with contextlib.suppress(OSError):  # a home that cannot be written costs time, no more
            write_atomically(kept, json.dumps(dataclasses.asdict(command)))
    return command


@dataclass(frozen=True)
class Grid:
    """The overrides of a command line, sorted: those with one value and those with a list by their keys, the
    seeds (one None: the configuration's own), and the preset, or ""."""

    fixed: dict[str, str]
    lists: dict[str, list[str]]
    seeds: list[str | None]
    preset: str

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """The overrides of each cell, in order, but for the seed."""
        for combination in itertools.product(*self.lists.values()):
            lines = (*self.fixed.values(), *combination)
            yield tuple(line for one in lines for line in spelt_out(one))

    def __len__(self) -> int:
        return math.prod(map(len, self.lists.values())) * len(self.seeds)


def only_runs(arguments: Sequence[str]) -> list[Run]:
    """As `expand`, for a command that starts none of the runs. Raises UserError for an override that says
    where or how they are done, too."""
    for argument in arguments:
        if _key(argument) in WHERE:
            raise UserError(f"{argument} is for python -m runs: this command starts no run")
    return expand(arguments)


def spelt_out(line: str) -> tuple[str, ...]:
    """An override as the ones that it means: method=peft:IA3Config, which may stand beside other methods in a
    list, is method=peft and its class."""
    if match := re.fullmatch(r"method=peft\\*:(\w+)", line):
        return "method=peft", f"method.config_class={match[1]}"
    return (line,)


def grid(overrides: list[str], files: Files) -> Grid:
    """What the overrides ask for, before anything is composed but a preset. Raises UserError for what cannot
    be read, a file that is not there, and more than MOST_RUNS runs. Hydra must be on (Files.hydra)."""
    fixed, lists = split(overrides)
    if fixed.get("experiment") == "experiment=null":
        del fixed["experiment"]
    preset = fixed.get("experiment", "").partition("=")[2]
    if "experiment" in lists:
        raise UserError("experiment= takes one preset at a time")
    lists = (_lists_of(preset, files, fixed) if preset else {}) | lists
    if several := next((key for key in lists if key.partition(".")[0] in (*WHERE, "experiment")), None):
        raise UserError(f"{several}= takes one value, for all runs of the command")
    for line in [*fixed.values(), *itertools.chain.from_iterable(lists.values())]:
        for each in spelt_out(line):
            key, _, value = each.partition("=")
            if key in GROUPS:
                files.check_choice(key, value.strip("'\""))
    seeds: list[str | None] = [*lists.pop("seed", [])] or [fixed.pop("seed", None)]
    asked = Grid(fixed, lists, seeds, preset)
    if len(asked) > MOST_RUNS:
        raise UserError(
            f"these words mean {len(asked):,} runs, and one command takes at most {MOST_RUNS:,}: give shorter"
            " lists"
        )
    return asked


def _read(overrides: list[str], files: Files) -> Command:
    with files.hydra():
        asked = grid(overrides, files)
        runs, first = list[Run](), None
        for combination in asked.combinations():
            whole, cfg = files.compose_with_recipe(combination)
            first = first or cfg
            runs += _runs_of(cfg, combination, whole, asked, files)
        assert first is not None
        return Command(runs, _launch_of(first))


def _lists_of(preset: str, files: Files, fixed: dict[str, str]) -> dict[str, list[str]]:
    """The lists of a preset, but for keys that the command line gives one value."""
    files.check_choice("experiment", preset)
    params = files.compose((f"experiment={preset}",)).hydra.sweeper.params or {}
    return {key: values(key, str(text)) for key, text in params.items() if key not in fixed}


def _launch_of(cfg: DictConfig) -> Launch:
    """Where and how the runs of a command are done. Raises UserError for what cannot be."""
    return launches.from_plain({key: plain(cfg[key]) for key in WHERE})


def _runs_of(
    cfg: DictConfig,
    overrides: tuple[str, ...],
    whole: tuple[str, ...],
    asked: Grid,
    files: Files,
) -> list[Run]:
    """A run for each seed. whole: the overrides with the recipe that was borrowed, if any."""
    picked, preset = cfg.hydra.runtime.choices, asked.preset
    if preset and not cfg.get("recipe"):
        wanted = f"{picked['method']}/{picked['model']}"
        raise UserError(
            f"preset {preset} has no recipe for {wanted}. Write conf/recipe/{wanted}.yaml, "
            "or choose one of its models or methods (METHODS=, MODEL=)"
        )
    # Composing and resolving take time. Where nothing but data_seed follows the seed, runs differ by these
    # two numbers alone.
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    alike = raw["data_seed"] == "${seed}" and len(re.findall(r"\$\{[^{}]*seed", str(raw))) == 1
    runs = list[Run]()
    for seed in asked.seeds:
        if seed is not None:
            cfg.seed = seed_of(seed)
        if runs and alike:
            config = copy.deepcopy(runs[0].config) | {"seed": cfg.seed, "data_seed": cfg.seed}
            runs.append(dataclasses.replace(runs[0], seed=cfg.seed, config=config))
        else:
            runs.append(_make_run(cfg, overrides, whole, preset, files))
    return runs


def seed_of(line: str) -> int:
    """The seed of an override. Raises UserError for what is no whole number."""
    text = line.partition("=")[2]
    if not text.isdecimal():
        raise UserError(f"seed={text}: should be a whole number")
    return int(text)


def _make_run(
    cfg: DictConfig, overrides: tuple[str, ...], whole: tuple[str, ...], preset: str, files: Files
) -> Run:
    """The run of a composed configuration, checked."""
    picked = cfg.hydra.runtime.choices
    recipe = str(picked.get("recipe")) if cfg.get("recipe") else "defaults"
    try:
        config: dict[str, Any] = {key: plain(cfg[key]) for key in cfg if key in OWN}
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {first_line(error)}") from None
    check_whole(config)
    changed = check_types(config, overrides, files, groups_of(whole))
    check_values(config, files)
    check_followed(config, cfg)
    method, row = config["method"], picked["method"]
    if method["kind"] == "peft":
        if sum("method.config_class" in line for line in overrides) > 1:
            raise UserError("method=peft:CLASS names the class: leave method.config_class= out")
        method["config"] = method["config"] or {}
        if not isinstance(method["config"], dict):
            raise UserError(f"method.config={method['config']}: should be a mapping, such as {{r: 8}}")
        method["label"] = method["label"] or _peft_label(method)
    if row == "peft":  # each method of peft's is a row of its own
        row = f"peft_{_slug(method['label'])}"
    start = None
    if config["init_from"]:
        name, start = _start(config, picked, overrides, files)
        if config["init_from"] != method.get("init_from"):
            row = f"{row}_from_{_slug(name)}"
        method["label"] += f" from {name}"
    chosen = [f"{group}={picked[group]}" for group in ("method", "model", "task")]
    return Run(
        row,
        picked["model"],
        picked["task"],
        cfg.seed,
        recipe,
        preset or None,
        config,
        start,
        changed,
        [*chosen, *(line for line in overrides if _key(line) not in ("method", "model", "task", *WHERE))],
    )


def _key(line: str) -> str:
    """What an override sets; of a launcher and of tracking, the group."""
    key = line.lstrip("~+").partition("=")[0]
    return key.partition(".")[0] if key.startswith(WHERE) else key


def _peft_label(method: dict[str, Any]) -> str:
    """Such as "IA3", or "Lora use_dora=True"."""
    settings = " ".join(f"{key}={value}" for key, value in sorted(method["config"].items()))
    return f"{str(method['config_class']).removesuffix('Config')} {settings}".strip()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


def _start(
    config: dict[str, Any], picked: Any, overrides: tuple[str, ...], files: Files
) -> tuple[str, Run | None]:
    """What a run starts from: its name for the label, and the run itself for ROW@TASK.

    That run has this one's model, data folder and training overrides, its own recipe, and seed 0.
    """
    text = config["init_from"] = str(config["init_from"])
    row, at, task = text.partition("@")
    if not at or "/" in text:
        is_id = re.fullmatch(RUN_ID, text)
        if not is_id and not text.endswith(".safetensors"):
            raise UserError(
                f"init_from={text}: should be a run id (12 hex digits), an adapter file or ROW@TASK such as"
                " lora@mnli"
            )
        return (f"run {text}" if is_id else Path(text).stem), None
    files.check_choice("method", row)
    files.check_choice("task", task)
    has = files.defaults((f"model={picked['model']}", f"task={task}")).task
    carried = [
        line
        for line in overrides
        if (key := _key(line)) not in NOT_CARRIED
        and not key.startswith("method.")
        and (not key.startswith("task.") or key.split(".")[1] in has)
    ]
    words = (*carried, f"model={picked['model']}", f"method={row}", f"task={task}", "seed=0")
    whole, cfg = files.compose_with_recipe(words)
    first = _make_run(cfg, words, whole, "", files)
    if first.start:
        raise UserError(f"init_from={text}: {row} starts from another run itself")
    return task, first


#: Of a run's overrides, what the run that it starts from has of its own.
NOT_CARRIED = (
    *("method", "task", "seed", "data_seed", "init_from", "recipe", "experiment", "keep", "model"),
    *("task.holdout", "task.label", "task.name", *WHERE),
)
