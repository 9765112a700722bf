"""From the overrides of a command line to its runs: Hydra composes each cell, this file
lists the cells."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from runs.command import COMPOSING, at_home, mistake, read
from runs.config.files import (
    GROUPS,
    OPEN,
    Files,
    dotted,
    groups_of,
    open_part,
    plain,
)
from runs.config.schema import Config, Launch
from runs.errors import UserError
from runs.record import first_line
from runs.record.keys import KEYS, RESULT, nearest_key
from runs.record.override import Override
from runs.run import Run

RUN_ID = "[0-9a-f]{12}"
#: What is not taken, by how it begins, and what to write instead.
REFUSED = {
    r"[+~]*hydra\b": "docs/hydra.md has what stands in its place, such as launcher=slurm and output=FOLDER",
    rf"~(?!(recipe|experiment)(=|$)|({'|'.join(OPEN)})\.)": "every run has that key: KEY=VALUE, or KEY=null",
    r"\+*train=\{": "name each setting by itself, such as train.epochs=3",
    r"[+~]*recipe\.": "a recipe is a file: set train.KEY, method.KEY or task.KEY",
    r".*_target_|\+*(method\.kind|task\.reader)=.*\.": "a file names what is called (--config-dir)",
}
#: Values of a list.
MOST = 100_000
#: Keys for where and how runs are done: no part of a run, and one value for a whole
#: command.
WHERE = tuple(Launch.model_fields)


@dataclass(frozen=True)
class Command:
    """A command line, read: its runs in order, and where and how they are done."""

    runs: list[Run]
    launch: Launch


def expand(arguments: Sequence[str]) -> list[Run]:
    """The runs of a command line's overrides and --config-dir, in order. Raises
    UserError for any mistake."""
    none: Any = make_dataclass("None", ())  # all words are overrides
    line = read(
        arguments, none, overrides="the runs", options=COMPOSING, module=__name__
    )
    return read_command(line.overrides, line.config_dir).runs


def read_command(overrides: Sequence[str], config_dir: str | None = None) -> Command:
    """Composes the runs of overrides. A preset (experiment=) brings lists of its own;
    the command line's value for the same key wins. Raises UserError for any mistake."""
    files, runs, launch, preset = Files(config_dir), list[Run](), Launch(), ""
    try:
        with files.hydra():
            cells, seeds, preset = read_grid(overrides, files)
            for cell in cells:
                cfg = files.compose(cell)
                if not runs:  # the same for all runs of a command
                    launch = Launch.model_validate(
                        {key: plain(cfg[key]) for key in WHERE}
                    )
                for seed in seeds:
                    if seed:
                        cfg.seed = yaml.safe_load(seed.partition("=")[2])
                    runs.append(_make_run(cfg, cell, preset, files))
    except ValidationError as error:
        raise UserError(
            mistake(error) + _of_preset(error, preset, overrides, files)
        ) from None
    except OmegaConfBaseException as error:
        raise UserError(
            f"the configuration does not resolve: {first_line(error)}"
        ) from None
    return Command(runs, launch)


def _of_preset(
    error: ValidationError, preset: str, overrides: Sequence[str], files: Files
) -> str:
    """That the preset gives a mistake's value; "" where the command line or another
    file does."""
    key = ".".join(map(str, error.errors()[0]["loc"]))
    if not preset or key in {Override(text).key for text in overrides}:
        return ""
    found = (
        yaml.safe_load(files.path("experiment", preset).read_text(encoding="utf-8"))
        or {}
    )
    return f" (of experiment={preset})" * any(
        f".{own}".endswith(f".{key}") for own, _ in dotted(found)
    )


def read_grid(
    overrides: Sequence[str], files: Files
) -> tuple[list[tuple[str, ...]], list[str], str]:
    """A command line's overrides of each cell, in order; its list of seeds ("" for the
    cells' own); and the name of its preset, or "". Of the configuration only a preset
    is composed. Call it within Files.hydra. Raises UserError for an override that
    cannot be read, or is given twice."""
    fixed, lists = dict[str, str](), dict[str, list[str]]()
    for argument in overrides:
        if instead := next(
            (text for begin, text in REFUSED.items() if re.match(begin, argument)), ""
        ):
            raise UserError(f"{argument}: not taken here. Instead: {instead}")
        key, lines = listed(argument)
        if key in lists or (key in fixed and (key in GROUPS or len(lines) > 1)):
            raise UserError(f"{key} is given twice: {argument} comes after another one")
        if len(lines) > 1:
            lists[key] = lines
        else:
            fixed[key] = lines[0]
    preset = fixed.get("experiment", "").partition("=")[2]
    if preset:
        params = (
            OmegaConf.select(
                files.compose((f"experiment={preset}",)), "hydra.sweeper.params"
            )
            or {}
        )
        lists = {
            key: listed(f"{key}={text}")[1]
            for key, text in params.items()
            if key not in fixed
        } | lists
    if several := next(
        (key for key in lists if key.partition(".")[0] in (*WHERE, "experiment")), None
    ):
        raise UserError(f"{several}= takes one value, for all runs of the command")
    seeds = lists.pop("seed", [""])
    cells = (
        (*fixed.values(), *combination)
        for combination in itertools.product(*lists.values())
    )
    # method=peft:CLASS can stand in a list of methods; Hydra's own words are two
    two = re.compile(r"(?<=^method=peft)\\*:(?=\w+$)")
    words = [
        [two.sub("\0method.config_class=", line).split("\0") for line in cell]
        for cell in cells
    ]
    return (
        [tuple(word for line in cell for word in line) for cell in words],
        seeds,
        preset,
    )


def listed(argument: str) -> tuple[str, list[str]]:
    """The key of an override, and an override for each of its values: of one value,
    itself.

    Call it within Files.hydra. Raises UserError for an override that Hydra's grammar
    cannot parse, for a key that no override may set, and for a list without values."""
    key, equals, text = argument.partition("=")
    if not open_part(key):  # every other key is there: ++ sets it
        key = key.removeprefix("++")
    # As Hydra's examples write it, of applications whose defaults do not list the group
    key = "experiment" if key == "+experiment" else key
    line = f"{key}{equals}{at_home(text)}"
    if match := re.fullmatch(rf"(\+*init_from=)({RUN_ID}(?:,{RUN_ID})*)", line):
        # 123e45678901 is no number
        line = match[1] + ",".join(f"'{one}'" for one in match[2].split(","))
    # which lists the options of a group for glob()
    loader: Any = GlobalHydra.instance().config_loader()
    try:
        (override,) = OverridesParser.create(loader).parse_overrides([line])
        if not override.key_or_group or not (override.is_delete() or equals):
            raise ValueError
    except (HydraException, RecursionError, ValueError):
        quotes = "a value with =, quotes or letters beyond ASCII takes quotes of its own: 'KEY=\"...\"'"
        raise UserError(
            f"{argument[:100]!r} is not KEY=VALUE. A list is KEY=a,b; {quotes}"
        ) from None
    if not override.is_sweep_override():
        return override.key_or_group, [line]
    try:
        if any(isinstance(one, Sweep) for one in getattr(override.value(), "list", ())):
            raise ValueError(
                "choice() or range() beside or within a list: write one list, KEY=a,b"
            )
        values = [*itertools.islice(override.sweep_string_iterator(), MOST + 1)]
        if len(values) > MOST:  # range(0,inf) has no end
            raise ValueError(f"more than {MOST:,} values")
        lines = [f"{override.get_key_element()}={one}" for one in values]
    except (HydraException, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{argument}: cannot be listed ({first_line(error)})") from None
    if not lines:
        raise UserError(f"{argument}: nothing of that name")
    return override.key_or_group, lines


def _make_run(
    cfg: DictConfig, overrides: tuple[str, ...], preset: str, files: Files
) -> Run:
    """The run of a composed configuration, checked."""
    choices = cfg.hydra.runtime.choices
    if preset and not cfg.get("recipe"):
        wanted = choices.get("recipe") or f"{choices.method}/{choices.model}"
        mend = (
            f"write conf/recipe/{wanted}.yaml, or take another one (recipe=ROW/MODEL)"
        )
        raise UserError(f"preset {preset} has no recipe for {wanted}: {mend}")
    config, changed = _configuration(cfg, overrides, files)
    method, row = config["method"], choices.method
    if method["kind"] == "peft":
        if sum("method.config_class" in line for line in overrides) > 1:
            raise UserError(
                "method=peft:CLASS names the class: leave method.config_class= out"
            )
        method["config"] = method["config"] or {}
        settings = [f"{key}={value}" for key, value in sorted(method["config"].items())]
        # Lora use_dora=True
        label = [str(method["config_class"]).removesuffix("Config"), *settings]
        method["label"] = method["label"] or " ".join(label)
    if row == "peft":  # each method of peft's is a row of its own
        row = f"peft_{_slug(method['label'])}"
    start = None
    if config["init_from"]:
        name, start = _start(config["init_from"], choices.model, overrides, files)
        if config["init_from"] != method.get("init_from"):
            row = f"{row}_from_{_slug(name)}"
        method["label"] += f" from {name}"
    cell = [f"{group}={choices[group]}" for group in ("method", "model", "task")]
    words = [*cell, *(text for text in overrides if _is_kept(Override(text)))]
    recipe = str(choices.recipe) if cfg.get("recipe") else "defaults"
    names = (row, choices.model, choices.task, config["seed"], recipe, preset or None)
    return Run(*names, config, start, changed, words)


def _is_kept(override: Override) -> bool:
    """Whether a run keeps an override among its own: its cell and seed are named apart,
    and what belongs to the command is no part of it."""
    is_cell = override.key in ("method", "model", "task", "seed")
    return not is_cell and override.group not in WHERE


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


# --- the checks of a configuration


def _configuration(
    cfg: DictConfig, overrides: tuple[str, ...], files: Files
) -> tuple[dict[str, Any], list[Override]]:
    """A run's configuration as plain values, checked and converted
    (runs/config/schema.py); and the overrides that set the method, the training or the
    model's settings differently from their files."""
    changed = _changed(cfg, overrides, files)
    config = {str(key): plain(cfg[key]) for key in cfg if key not in ("hydra", *WHERE)}
    if config["method"].get("kind") != "lora":
        # a preset of LoRA's rows set it, and METHODS= chose another
        config["method"].pop("scaling", None)
    values = Config.model_validate(config).model_dump(exclude_unset=True)
    _leave_out_neutral(values)
    for part in ("task", "method"):  # open ones: their keys in the order of their files
        values[part] = {key: values[part][key] for key in config[part]}
    return values | {"recipe": values.pop("recipe", {})}, changed


def _leave_out_neutral(values: dict[str, Any]) -> None:
    """Takes the settings of training by reward out of other runs' configurations, which
    then stay as they were before there were any."""
    train = values["train"]
    if train.get("objective") == "likelihood":
        del values["reward"]
    for name in ("objective", "evaluate_steps"):
        declared = KEYS[f"train.{name}"].added
        if name in train and declared and train[name] == declared.neutral:
            del train[name]


def _is_compared(key: str) -> bool:
    """Whether an override of this key is compared with the files: it can change the
    result."""
    group = key.partition(".")[0]
    if group == "model":
        declared = nearest_key(key)
        return declared is not None and declared.role == RESULT
    return group in ("task", "method", "train", "reward") and key != group


def _changed(
    cfg: DictConfig, overrides: tuple[str, ...], files: Files
) -> list[Override]:
    """The overrides that differ from the files. A value of a task or method gets the
    type that its file has: `1` and `1.0` are one run. Raises UserError for another
    type, and for another row or task."""
    groups, changed = groups_of(overrides), list[Override]()
    given = [text for text in overrides if _is_compared(Override(text).key)]
    if not given:
        return []
    default = files.defaults(groups)
    with open_dict(default):
        default.recipe = cfg.get("recipe")  # of this class of peft
    for line in given:
        key = Override(line).key
        wanted, value = (plain(OmegaConf.select(of, key)) for of in (default, cfg))
        if key == "task.name" and value != wanted and value in files.choices("task"):
            raise UserError(
                f"{line}: conf/task has another task of that name: give your data another"
            )
        if wanted is not None and key.startswith(("task.", "method.", "model.")):
            floats = isinstance(wanted, list) and all(
                type(one) is float for one in wanted
            )
            kind: Any = list[float] if floats else type(wanted)
            try:
                typed = TypeAdapter(kind | None).validate_python(value, strict=True)
            except ValidationError as error:
                raise UserError(mistake(error, within=key)) from None
            if repr(typed) != repr(value):
                OmegaConf.update(cfg, key, typed)
        if value != wanted and not key.startswith("task."):
            changed.append(Override(line))
        again = key == "method.redrawn" and value != wanted
        if again or (key == "method.projection_seed" and "${" in line):
            row = "a row of their own, method=vera_redrawn"
            raise UserError(
                f"{line}: matrices that are drawn anew for every seed are {row}"
            )
    return changed


# --- what a run starts from (init_from)

#: A run's overrides that do not hold for the run that it starts from.
NOT_CARRIED = frozenset(
    {
        "method",
        "model",
        "task",
        "recipe",
        "experiment",
        "seed",
        "data_seed",
        "init_from",
        "keep",
        "train.objective",
        "task.holdout",
        "task.label",
        "task.name",
    }
)


def _is_carried(override: Override, task: DictConfig) -> bool:
    """Whether a run's override holds for the run that it starts from, too."""
    if override.key in NOT_CARRIED or override.group in (*WHERE, "method", "reward"):
        return False
    if override.group != "task":
        return True
    return override.key.split(".")[1] in task


def _start(
    text: str, model: str, overrides: tuple[str, ...], files: Files
) -> tuple[str, Run | None]:
    """The start of a run: its name for the label and, for init_from=ROW@TASK, the run
    whose adapter it is.

    That run has this one's model, data folder and training overrides, its own recipe,
    and seed 0."""
    row, at, task = text.partition("@")
    if not at or "/" in text:
        is_id = re.fullmatch(RUN_ID, text)
        if not is_id and not text.endswith(".safetensors"):
            kinds = "a run id (12 hex digits), an adapter file or ROW@TASK such as lora@mnli"
            raise UserError(f"init_from={text}: should be {kinds}")
        return (f"run {text}" if is_id else Path(text).stem), None
    of_task = files.defaults((f"model={model}", f"task={task}")).task
    carried = [text for text in overrides if _is_carried(Override(text), of_task)]
    lines = (*carried, f"model={model}", f"method={row}", f"task={task}", "seed=0")
    run = _make_run(files.compose(lines), lines, "", files)
    if run.start:
        raise UserError(f"init_from={text}: {row} starts from another run itself")
    return task, run
