"""From the cells of a command line to its runs: each cell is composed once for all its
seeds, and checked."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from runs.command.advice import describe_mistake
from runs.command.errors import UserError
from runs.config.compose import (
    Composer,
    choices_of,
    compared_defaults,
    dotted,
    plain,
    without_hydra,
)
from runs.config.files import Files, UnknownNameError
from runs.config.grid import RUN_ID, Grid, read_grid
from runs.config.schema import WHERE, Config, Launch
from runs.record.configuration import Configuration, MethodConfig
from runs.record.keys import KEYS, RESULT, Seed, nearest_key
from runs.record.override import Override
from runs.record.text import first_line
from runs.run.definition import Run

#: The seed that a cell is composed with, in place of each of its own.
SEED_STAND_IN = 2**63 - 25
#: Keys that came later. A configuration lacks them at the value that all earlier runs
#: had.
LEFT_OUT = (
    "train.objective",
    "train.evaluate_steps",
    "task.folds",
    "task.fold",
    "model.dtype",
    "model.chat",
    "method.shared_b",
    "reward.expected",
)


def compose_command(
    overrides: Sequence[str], files: Files
) -> tuple[list[Run], Launch, list[str]]:
    """The runs of a command line's overrides in their order, the settings of where and
    how they are done, and why cells were left out. Raises UserError for any mistake,
    with file and line if a preset makes it."""
    grid, cfg = Grid([]), OmegaConf.create()
    try:
        with Composer(files) as composer:
            grid = read_grid(overrides, composer)
            cfg = composer.compose(grid.cells[0])
            if grid.preset:
                _check_keys_of_preset(grid, composer)
            # the same for all runs of a command
            launch = Launch.model_validate({key: plain(cfg[key]) for key in WHERE})
            runs = list[Run]()
            for number, cell in enumerate(grid.cells):
                cfg = composer.compose(cell) if number else cfg
                runs += _runs_of_cell(cfg, cell, grid, composer)
            return runs, launch, grid.left_out
    except UnknownNameError as error:
        place = _place_in_preset(error.name, overrides, files)
        raise UserError(f"{place}{error}") from None
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        place = _place_in_preset(key, overrides, files)
        raise UserError(f"{place}{_with_advice(error, key, cfg, files)}") from None
    except OmegaConfBaseException as error:
        raise UserError(
            f"the configuration does not resolve: {first_line(error)}"
        ) from None


def _with_advice(
    error: ValidationError, key: str, cfg: DictConfig, files: Files
) -> str:
    """A mistake that pydantic has found, in words. For an unknown key they name the
    nearest known ones."""
    text = describe_mistake(error)
    if error.errors()[0]["type"] != "extra_forbidden":
        return text
    with Composer(files) as composer:
        return f"{text}.{composer.advice_on_key(key, _groups_without_preset(cfg))}"


def _groups_without_preset(cfg: DictConfig) -> tuple[str, ...]:
    choices = choices_of(cfg)
    return tuple(f"{group}={choices[group]}" for group in ("model", "task", "method"))


def _check_keys_of_preset(grid: Grid, composer: Composer) -> None:
    """Raises UnknownNameError for a key of a task or method that a preset sets and no
    cell of it reads: these groups are open, so it would be added without a word."""
    path = composer.files.path("experiment", grid.preset)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    unknown = {
        key
        for key, value in dotted(content)
        if key.partition(".")[0] in ("method", "task")
        and not isinstance(value, dict)
        and nearest_key(key) is None
    }
    for cell in grid.cells if unknown else ():
        groups = _groups_without_preset(composer.compose(cell))
        content = without_hydra(composer.defaults(groups), resolve=False)
        unknown -= {key for key, _ in dotted(content)}
        if not unknown:
            return
    if unknown:
        raise composer.no_key(min(unknown), groups)


def _place_in_preset(name: str, overrides: Sequence[str], files: Files) -> str:
    """Where the preset of a command line has a wrong name, as "FILE line 7: "; "" if the
    name comes from the command line or from another file."""
    values = {Override(text).key: Override(text).unquoted_value for text in overrides}
    preset = values.get("experiment", "")
    if not preset or name in values or name in ",".join(values.values()).split(","):
        return ""
    try:
        place = files.place_of("experiment", preset, name)
    except UserError:  # the preset itself is not there
        return ""
    return f"{place}: " if place else ""


# --- a cell


def _runs_of_cell(
    cfg: DictConfig, cell: tuple[str, ...], grid: Grid, composer: Composer
) -> list[Run]:
    """The runs of a composed cell: one for each seed."""
    if not grid.seeds:
        return [_make_run(cfg, cell, grid.preset, composer)]
    seeds = [yaml.safe_load(Override(line).value) for line in grid.seeds]
    if any("${" in line for line in cell):
        # An override may compute something from the seed, so each seed is composed.
        runs = list[Run]()
        for seed in seeds:
            cfg.seed = seed
            runs.append(_make_run(cfg, cell, grid.preset, composer))
        return runs
    cfg.seed = SEED_STAND_IN
    run = _make_run(cfg, cell, grid.preset, composer)
    return [_with_seed(run, seed) for seed in seeds]


def _with_seed(run: Run, seed: object) -> Run:
    """A run that was composed with the stand-in, with a seed in its place."""
    try:
        number: int = TypeAdapter(Seed).validate_python(seed)
    except ValidationError as error:
        raise UserError(describe_mistake(error, parent_key="seed")) from None
    return Run(
        row=run.row,
        model=run.model,
        task=run.task,
        seed=number,
        recipe=run.recipe,
        experiment=run.experiment,
        config=_replace_stand_in(run.config, number),
        start=run.start,
        changed=[*run.changed],
        overrides=[*run.overrides],
    )


def _replace_stand_in(value: Any, seed: int) -> Any:
    """A part of a configuration with the seed in the place of its stand-in."""
    if isinstance(value, dict):
        return {key: _replace_stand_in(part, seed) for key, part in value.items()}
    if isinstance(value, list):
        return [_replace_stand_in(part, seed) for part in value]
    if isinstance(value, str):
        return value.replace(str(SEED_STAND_IN), str(seed))
    return seed if value == SEED_STAND_IN else value


def _make_run(
    cfg: DictConfig, overrides: tuple[str, ...], preset: str, composer: Composer
) -> Run:
    """The run of a composed configuration, checked."""
    choices = choices_of(cfg)
    recipe = choices["recipe"] if cfg.get("recipe") else "defaults"
    if preset and not cfg.get("recipe"):
        _refuse_missing_recipe(choices, preset, composer)
    config, changed = _configuration(cfg, overrides, composer)
    method, row = config["method"], choices["method"]
    if method["kind"] == "peft":
        _label_class_of_peft(method, overrides)
    if row == "peft":  # each method of peft's is a row of its own
        row = f"peft_{_slug(method['label'])}"
    start = None
    if config["init_from"]:
        start_name, start = _resolve_start(
            config["init_from"], choices["model"], overrides, composer
        )
        if config["init_from"] != method.get("init_from"):
            row = f"{row}_from_{_slug(start_name)}"
        method["label"] += f" from {start_name}"
    objective = config["train"].get("objective")
    if objective:  # a row of its own beside the one by likelihood
        reward = config.get("reward")
        if reward and reward["permuted"]:
            objective = "permuted reward"
        elif reward and reward.get("expected"):
            objective = "expected reward"
        row = f"{row}_by_{_slug(objective)}"
        method["label"] += f" by {objective}"
    words = [f"{group}={choices[group]}" for group in ("method", "model", "task")]
    words += [text for text in overrides if _is_kept(Override(text))]
    return Run(
        row=row,
        model=choices["model"],
        task=choices["task"],
        seed=config["seed"],
        recipe=recipe,
        experiment=preset or None,
        config=config,
        start=start,
        changed=changed,
        overrides=words,
    )


def _refuse_missing_recipe(
    choices: dict[str, str], preset: str, composer: Composer
) -> None:
    row, model = choices["method"], choices["model"]
    missing = choices.get("recipe") or f"{row}/{model}"
    models_of_row = [
        name.partition("/")[2]
        for name in composer.files.choices("recipe")
        if name.startswith(f"{row}/")
    ]
    own_model = _first_model_of_preset(preset, composer)
    example = ""
    if models_of_row:
        # the preset's rates are meant for its own model
        suggested = own_model if own_model in models_of_row else models_of_row[-1]
        example = f", such as recipe={suggested}"
    raise UserError(
        f"preset {preset} has no recipe for {missing}: write conf/recipe/{missing}.yaml, "
        f"or take each row's recipe for another model (recipe=MODEL{example})"
    )


def _first_model_of_preset(preset: str, composer: Composer) -> str:
    cfg = composer.defaults((f"experiment={preset}",))
    models = OmegaConf.select(cfg, "hydra.sweeper.params.model")
    if models:
        return str(models).partition(",")[0].strip()
    return choices_of(cfg)["model"]


def _label_class_of_peft(method: MethodConfig, overrides: tuple[str, ...]) -> None:
    """Gives a class of peft its label, such as Lora use_dora=True."""
    if sum("method.config_class" in line for line in overrides) > 1:
        raise UserError(
            "method=peft:CLASS names the class: leave method.config_class= out"
        )
    class_settings = method["config"] or {}
    method["config"] = class_settings
    settings = [f"{key}={value}" for key, value in sorted(class_settings.items())]
    label = [str(method["config_class"]).removesuffix("Config"), *settings]
    method["label"] = method["label"] or " ".join(label)


def _is_kept(override: Override) -> bool:
    """Whether an override belongs to a run's own. Its cell and seed are named
    separately, and the settings of the command are no part of it."""
    is_cell = override.key in ("method", "model", "task", "seed")
    return not is_cell and override.group not in WHERE


def _slug(text: str) -> str:
    """A label as a part of a row's name: small letters, digits, dots and underscores."""
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


# --- the checks of a configuration


def _configuration(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> tuple[Configuration, list[Override]]:
    """A run's configuration as plain values, checked and converted
    (runs/config/schema.py); and the overrides that set the method, the training or the
    model's settings differently from their files."""
    changed = _changed_overrides(cfg, overrides, composer)
    config = {str(key): plain(cfg[key]) for key in cfg if key not in ("hydra", *WHERE)}
    if config["method"].get("kind") != "lora":
        # a preset of LoRA's rows may set it, and METHODS= choose another method
        config["method"].pop("scaling", None)
    values = Config.model_validate(config).model_dump(exclude_unset=True)
    _leave_out_neutral(values)
    # These groups accept undeclared keys; theirs keep the order of their files.
    for part in ("task", "method"):
        checked = values[part]
        values[part] = {key: checked[key] for key in config[part] if key in checked}
    values["recipe"] = values.pop("recipe", {})  # the last key
    return cast(Configuration, values), changed


def _leave_out_neutral(values: dict[str, Any]) -> None:
    """Takes settings that came later out of the configuration of a run that does not
    use them, so that it stays as it was before they existed."""
    if values["train"].get("objective") != "reward":
        del values["reward"]
    for key in LEFT_OUT:
        group, name = key.split(".")
        declared = KEYS[key].added
        if declared and values.get(group, {}).get(name, ...) == declared.neutral:
            del values[group][name]


def _is_compared(key: str) -> bool:
    """Whether an override of this key is compared with the files: it can change the
    result."""
    group = key.partition(".")[0]
    if group in ("model", "reward"):
        declared = nearest_key(key)
        return declared is not None and declared.role == RESULT
    return group in ("task", "method", "train") and key != group


def _changed_overrides(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> list[Override]:
    """The overrides that differ from the files. A value of a task or method gets the
    type that its file has: `1` and `1.0` are one run. Raises UserError for another
    type, and for another row or task."""
    compared = [text for text in overrides if _is_compared(Override(text).key)]
    if not compared:
        return []
    defaults = compared_defaults(composer, overrides, cfg.get("recipe"))
    changed = list[Override]()
    for line in compared:
        key = Override(line).key
        default, value = (
            plain(OmegaConf.select(config, key)) for config in (defaults, cfg)
        )
        is_task = key == "task.name" and value in composer.files.choices("task")
        if is_task and value != default:
            raise UserError(
                f"{line}: conf/task has another task of that name: give your data another"
            )
        if default is not None and key.startswith(("task.", "method.", "model.")):
            typed = _as_type_of(default, value, key)
            if repr(typed) != repr(value):
                OmegaConf.update(cfg, key, typed)
        if value != default and not key.startswith("task."):
            changed.append(Override(line))
        is_redrawn = key == "method.redrawn" and value != default
        if is_redrawn or (key == "method.projection_seed" and "${" in line):
            raise UserError(
                f"{line}: matrices that are drawn anew for every seed are a row of their "
                "own, method=vera_redrawn"
            )
    return changed


def _as_type_of(default: Any, value: Any, key: str) -> Any:
    """A value as the type of its default. Raises UserError for another type."""
    kind: Any = type(default)
    if isinstance(default, list) and all(type(item) is float for item in default):
        kind = list[float]
    try:
        return TypeAdapter(kind | None).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(describe_mistake(error, parent_key=key)) from None


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
        "task.fold",
        "task.folds",
        "task.holdout",
        "task.label",
        "task.name",
        "train.objective",
    }
)


def _is_carried(override: Override, task: DictConfig) -> bool:
    """Whether a run's override holds for the run that it starts from, too."""
    if override.key in NOT_CARRIED or override.group in (*WHERE, "method", "reward"):
        return False
    if override.group != "task":
        return True
    return override.key.split(".")[1] in task


def _resolve_start(
    text: str, model: str, overrides: tuple[str, ...], composer: Composer
) -> tuple[str, Run | None]:
    """What a run starts from, by its init_from: the name for the run's label and, for
    ROW@TASK, the run whose adapter it is.

    That run has this one's model, data folder and training overrides, its own recipe,
    and seed 0."""
    row, separator, task = text.partition("@")
    if not separator or "/" in text:
        is_id = re.fullmatch(RUN_ID, text)
        if not is_id and not text.endswith(".safetensors"):
            raise UserError(
                f"init_from={text}: should be a run id (12 hex digits), an adapter file "
                "or ROW@TASK such as lora@mnli"
            )
        return (f"run {text}" if is_id else Path(text).stem), None
    task_of_start = composer.defaults((f"model={model}", f"task={task}")).task
    carried = [text for text in overrides if _is_carried(Override(text), task_of_start)]
    lines = (*carried, f"model={model}", f"method={row}", f"task={task}", "seed=0")
    run = _make_run(composer.compose(lines), lines, "", composer)
    if run.start:
        raise UserError(f"init_from={text}: {row} starts from another run itself")
    return task, run
