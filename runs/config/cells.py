"""From the cells of a command line to its runs. A cell is one combination of the values
that the command line lists, seeds apart; it is composed once for all its seeds, and
checked."""

import dataclasses
import re
from collections.abc import Collection, Sequence
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
    defaults_with_recipe,
    dotted_items,
    group_choices,
    to_plain,
    without_hydra,
)
from runs.config.composed import ComposedCommand
from runs.config.files import Files, UnknownNameError
from runs.config.grid import RUN_ID, Grid, read_grid
from runs.config.schema import LAUNCH_KEYS, Config, Launch
from runs.record.configuration import Configuration, MethodConfig
from runs.record.keys import KEYS, RESULT, Seed, nearest_key
from runs.record.override import Override
from runs.record.text import first_line
from runs.run.definition import Run

#: The seed that a cell is composed with, in place of each of its own.
SEED_STAND_IN = 2**63 - 25
#: Keys that came later. A configuration lacks them where they have the value that all
#: earlier runs had, so that the ids of those runs stay.
LATER_KEYS = (
    "train.objective",
    "train.evaluate_steps",
    "task.folds",
    "task.fold",
    "task.orders",
    "model.dtype",
    "model.chat",
    "method.shared_b",
    "reward.expected",
)


def compose_command(overrides: Sequence[str], files: Files) -> ComposedCommand:
    """The runs of a command line's overrides, in their order, and how they are done.
    Raises UserError for any mistake, with file and line if a preset makes it."""
    cfg = OmegaConf.create()  # for an error before the first cell is composed
    try:
        with Composer(files) as composer:
            grid = read_grid(overrides, composer)
            cfg = composer.compose(grid.cells[0])
            if grid.preset:
                _check_keys_of_preset(grid, composer)
            # every cell has the same: read_grid refuses lists for these keys
            launch_settings = {key: to_plain(cfg[key]) for key in LAUNCH_KEYS}
            launch = Launch.model_validate(launch_settings)
            runs = _runs_of_cell(cfg, grid.cells[0], grid, composer)
            for cell in grid.cells[1:]:
                cfg = composer.compose(cell)
                runs += _runs_of_cell(cfg, cell, grid, composer)
            return ComposedCommand(runs, launch, grid.notes)
    except UnknownNameError as error:
        location = _location_in_preset(error.name, overrides, files)
        raise UserError(f"{location}{error}") from None
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        location = _location_in_preset(key, overrides, files)
        text = _describe_with_advice(error, key, cfg, files)
        raise UserError(f"{location}{text}") from None
    except OmegaConfBaseException as error:
        raise UserError(
            f"the configuration does not resolve: {first_line(error)}"
        ) from None


def _describe_with_advice(
    error: ValidationError, key: str, cfg: DictConfig, files: Files
) -> str:
    """`describe_mistake`, and for an unknown key the nearest known ones.

    Args:
        key: The key that the error is about.
        cfg: The configuration that has the mistake."""
    text = describe_mistake(error)
    if error.errors()[0]["type"] != "extra_forbidden":
        return text
    with Composer(files) as composer:
        return f"{text}.{composer.advice_on_key(key, _cell_choices(cfg))}"


def _cell_choices(cfg: DictConfig) -> tuple[str, ...]:
    """The overrides that choose a configuration's model, task and method, without its
    preset and its other overrides."""
    choices = group_choices(cfg)
    return tuple(f"{group}={choices[group]}" for group in ("model", "task", "method"))


def _check_keys_of_preset(grid: Grid, composer: Composer) -> None:
    """Raises UnknownNameError for a key of a task or method that a preset sets and no
    cell of it reads. These groups are open, so that Hydra would add any key."""
    path = composer.files.path("experiment", grid.preset)
    preset_content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    unknown = set[str]()
    for key, value in dotted_items(preset_content):
        is_of_open_group = key.partition(".")[0] in ("method", "task")
        is_value = not isinstance(value, dict)
        if is_of_open_group and is_value and nearest_key(key) is None:
            unknown.add(key)
    choices = tuple[str, ...]()
    for cell in grid.cells:
        if not unknown:
            return
        choices = _cell_choices(composer.compose(cell))
        defaults = without_hydra(composer.defaults(choices), resolve=False)
        unknown -= {key for key, _ in dotted_items(defaults)}
    if unknown:
        raise composer.unknown_key_error(min(unknown), choices)


def _location_in_preset(name: str, overrides: Sequence[str], files: Files) -> str:
    """Where the preset of a command line has a wrong key or value, as "FILE line 7: ";
    "" if it comes from the command line or from another file. name: the key or value."""
    values = {Override(text).key: Override(text).unquoted_value for text in overrides}
    typed_values = ",".join(values.values()).split(",")
    preset = values.get("experiment", "")
    if not preset or name in values or name in typed_values:
        return ""
    try:
        location = files.location_of("experiment", preset, name)
    except UserError:  # the preset itself is not there
        return ""
    return f"{location}: " if location else ""


# --- a cell


def _runs_of_cell(
    cfg: DictConfig, cell: tuple[str, ...], grid: Grid, composer: Composer
) -> list[Run]:
    """The runs of a cell, one for each seed. cfg: the cell, composed."""
    if not grid.seeds:
        return [_make_run(cfg, cell, grid.preset, composer)]
    seeds = [yaml.safe_load(Override(text).value) for text in grid.seeds]
    if any("${" in text for text in cell):
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
    """A copy of a run that was composed with SEED_STAND_IN, with a seed in its place.
    Raises UserError for what is no seed."""
    try:
        number: int = TypeAdapter(Seed).validate_python(seed)
    except ValidationError as error:
        raise UserError(describe_mistake(error, parent_key="seed")) from None
    return dataclasses.replace(
        run,
        seed=number,
        config=_replace_stand_in(run.config, number),
        changed=[*run.changed],  # a list of its own
        overrides=[*run.overrides],
    )


def _replace_stand_in(value: Any, seed: int) -> Any:
    """A part of a configuration with the seed in the place of SEED_STAND_IN."""
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
    """The run of a composed configuration, checked. The name of its row is that of the
    method's file, and what else sets it apart: a class of peft, the run that it starts
    from, an objective other than likelihood. preset: "" for none."""
    choices = group_choices(cfg)
    # without a recipe, the values of conf/config.yaml hold
    recipe = choices["recipe"] if cfg.get("recipe") else "defaults"
    if preset and not cfg.get("recipe"):
        raise _missing_recipe_error(choices, preset, composer)
    config, changed = _checked_configuration(cfg, overrides, composer)
    method = config["method"]
    row = choices["method"]
    if method["kind"] == "peft":
        _label_class_of_peft(method, overrides)
    if row == "peft":  # each method of peft's is a row of its own
        row = f"peft_{_slug(method['label'])}"
    start = None
    if config["init_from"]:
        start_name, start = _resolve_start(
            config["init_from"], choices["model"], overrides, composer
        )
        # a row whose own file names the start keeps its name
        if config["init_from"] != method.get("init_from"):
            row = f"{row}_from_{_slug(start_name)}"
        method["label"] += f" from {start_name}"
    objective = _name_of_objective(config)
    if objective:
        row = f"{row}_by_{_slug(objective)}"
        method["label"] += f" by {objective}"
    cell_groups = ("method", "model", "task")
    overrides_of_run = [f"{group}={choices[group]}" for group in cell_groups]
    overrides_of_run += [text for text in overrides if _is_of_run(Override(text))]
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
        overrides=overrides_of_run,
    )


def _name_of_objective(config: Configuration) -> str:
    """A run's objective as its row's name has it; "" for the likelihood, which a
    configuration does not name (LATER_KEYS)."""
    objective = config["train"].get("objective") or ""
    reward = config.get("reward")
    if objective and reward and reward["permuted"]:
        return "permuted reward"
    if objective and reward and reward.get("expected"):
        return "expected reward"
    return objective


def _missing_recipe_error(
    choices: dict[str, str], preset: str, composer: Composer
) -> UserError:
    """The error for a preset's run whose row has no recipe for its model. It suggests the
    row's recipe for another model, if there is one. choices: the run's `group_choices`."""
    row, model = choices["method"], choices["model"]
    missing = choices.get("recipe") or f"{row}/{model}"
    models_of_row = []
    for name in composer.files.choices("recipe"):
        if name.startswith(f"{row}/"):
            models_of_row.append(name.removeprefix(f"{row}/"))
    example = ""
    if models_of_row:
        suggested = _first_model_of_preset(preset, composer)
        if suggested not in models_of_row:
            suggested = models_of_row[-1]
        example = f", such as recipe={suggested}"
    return UserError(
        f"preset {preset} has no recipe for {missing}: write conf/recipe/{missing}.yaml, "
        f"or take each row's recipe for another model (recipe=MODEL{example})"
    )


def _first_model_of_preset(preset: str, composer: Composer) -> str:
    """The model that a preset's learning rates are meant for: the first one that it
    lists, or else the only one that it chooses."""
    cfg = composer.defaults((f"experiment={preset}",))
    models = OmegaConf.select(cfg, "hydra.sweeper.params.model")
    if models:
        return str(models).partition(",")[0].strip()
    return group_choices(cfg)["model"]


def _label_class_of_peft(method: MethodConfig, overrides: tuple[str, ...]) -> None:
    """Gives a class of peft its label, such as Lora use_dora=True, and a mapping of
    settings where it has none. Raises UserError where overrides name two classes."""
    # one of these overrides comes from method=peft:CLASS
    if sum("method.config_class" in text for text in overrides) > 1:
        raise UserError(
            "method=peft:CLASS names the class: leave method.config_class= out"
        )
    class_settings = method["config"] or {}
    method["config"] = class_settings
    if not method["label"]:
        settings = [f"{key}={value}" for key, value in sorted(class_settings.items())]
        name = str(method["config_class"]).removesuffix("Config")
        method["label"] = " ".join([name, *settings])


def _is_of_run(override: Override) -> bool:
    """Whether an override belongs into `Run.overrides` as it is. Those that choose the
    cell are written anew, the seed is left out, and those of the launch are no part of a
    run."""
    is_cell = override.key in ("method", "model", "task", "seed")
    return not is_cell and override.group not in LAUNCH_KEYS


def _slug(text: str) -> str:
    """A label as a part of a row's name: small letters, digits, dots and underscores."""
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


# --- the checks of a configuration


def _checked_configuration(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> tuple[Configuration, list[Override]]:
    """A run's configuration as plain values, checked and converted by
    runs/config/schema.py; and the overrides that differ from the files (`Run.changed`)."""
    changed = _changed_overrides(cfg, overrides, composer)
    config = dict[str, Any]()
    for key in map(str, cfg):
        if key not in ("hydra", *LAUNCH_KEYS):
            config[key] = to_plain(cfg[key])
    if config["method"].get("kind") != "lora":
        # a preset may set it for LoRA's rows, while the command line names other methods
        config["method"].pop("scaling", None)
    values = Config.model_validate(config).model_dump(exclude_unset=True)
    _remove_neutral_settings(values)
    # These groups accept undeclared keys, which keep the order of their files
    for part in ("task", "method"):
        checked = values[part]
        values[part] = {key: checked[key] for key in config[part] if key in checked}
    values["recipe"] = values.pop("recipe", {})  # the last key
    return cast(Configuration, values), changed


def _remove_neutral_settings(values: dict[str, Any]) -> None:
    """Removes settings that a run does not use, so that configurations and ids stay as
    they were before these keys existed: `reward` of a run without rewards, and LATER_KEYS
    with their neutral values."""
    if values["train"].get("objective") != "reward":
        del values["reward"]
    for key in LATER_KEYS:
        group, name = key.split(".")
        declared = KEYS[key].added
        # ... stands for a missing key, and equals no neutral value
        if declared and values.get(group, {}).get(name, ...) == declared.neutral:
            del values[group][name]


def _is_compared(key: str) -> bool:
    """Whether an override of this key is compared with the files: it can change the
    result, and chooses no file, as task=mrpc does."""
    group = key.partition(".")[0]
    if group in ("model", "reward"):
        declared = nearest_key(key)
        return declared is not None and declared.role == RESULT
    return group in ("task", "method", "train") and key != group


def _changed_overrides(
    cfg: DictConfig, overrides: tuple[str, ...], composer: Composer
) -> list[Override]:
    """The overrides that set the method, the training, the rewards or the model
    differently from their files (`Run.changed`).

    It also gives each value of a task, method or model in `cfg` the type that it has in
    its file, since `1` and `1.0` are one run. Raises UserError for a value of another
    type, and for one that makes another row or task of conf/."""
    compared = [text for text in overrides if _is_compared(Override(text).key)]
    if not compared:
        return []
    defaults = defaults_with_recipe(composer, overrides, cfg.get("recipe"))
    changed = list[Override]()
    for override in map(Override, compared):
        key = override.key
        default = to_plain(OmegaConf.select(defaults, key))
        value = to_plain(OmegaConf.select(cfg, key))
        is_other = value != default
        if key == "task.name" and is_other:
            _check_name_is_free(override, value, composer.files.choices("task"))
        if default is not None and key.startswith(("task.", "method.", "model.")):
            converted = _convert_to_type_of(default, value, key)
            if repr(converted) != repr(value):
                OmegaConf.update(cfg, key, converted)
        if is_other and not key.startswith("task."):
            changed.append(override)
        follows_seed = key == "method.projection_seed" and "${" in override.text
        if follows_seed or (key == "method.redrawn" and is_other):
            raise UserError(
                f"{override}: matrices that are drawn anew for every seed are a row of "
                "their own, method=vera_redrawn"
            )
    return changed


def _check_name_is_free(
    override: Override, name: str, names_of_files: Collection[str]
) -> None:
    """Raises UserError where task.name= gives the user's own data the name of a task in
    conf/task, as whose runs theirs would count."""
    if name in names_of_files:
        raise UserError(
            f"{override}: conf/task has another task of that name. Give your data "
            f"another name, such as task.name={_free_name(name, names_of_files)}"
        )


def _free_name(name: str, taken_names: Collection[str]) -> str:
    """A name like this one that is not taken: reviews_2, or else reviews_3 and so on."""
    number = 2
    while f"{name}_{number}" in taken_names:
        number += 1
    return f"{name}_{number}"


def _convert_to_type_of(default: Any, value: Any, key: str) -> Any:
    """A value in the type of its default: 1 as 1.0 where the default is 0.5. null stays
    null. Raises UserError for a value of another type."""
    kind: Any = type(default)
    if isinstance(default, list) and all(type(item) is float for item in default):
        kind = list[float]
    try:
        return TypeAdapter(kind | None).validate_python(value, strict=True)
    except ValidationError as error:
        raise UserError(describe_mistake(error, parent_key=key)) from None


# --- what a run starts from (init_from)

#: The keys of a run's overrides that do not hold for the run that it starts from.
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
    """Whether a run's override holds for the run that it starts from, too. task: that
    run's task, as its file has it."""
    if override.key in NOT_CARRIED:
        return False
    if override.group in (*LAUNCH_KEYS, "method", "reward"):
        return False
    if override.group != "task":
        return True
    return override.key.split(".")[1] in task


def _resolve_start(
    init_from: str, model: str, overrides: tuple[str, ...], composer: Composer
) -> tuple[str, Run | None]:
    """What a run starts from: its name for the run's label and, for ROW@TASK, the run
    whose adapter it is; None for an id or a file.

    That run has this one's model and the overrides that `_is_carried` lets through (its
    data folder, settings of training), its own recipe, and seed 0.

    Args:
        init_from: A run id, an adapter file or ROW@TASK.
        model: The name of the run's model.
        overrides: The run's.
        composer: Composes the other run.
    """
    row, separator, task = init_from.partition("@")
    if not separator or "/" in init_from:
        is_id = re.fullmatch(RUN_ID, init_from)
        if not is_id and not init_from.endswith(".safetensors"):
            raise UserError(
                f"init_from={init_from}: should be a run id (12 hex digits), an adapter file "
                "or ROW@TASK such as lora@mnli"
            )
        name = f"run {init_from}" if is_id else Path(init_from).stem
        return name, None
    task_of_start = composer.defaults((f"model={model}", f"task={task}")).task
    carried = [text for text in overrides if _is_carried(Override(text), task_of_start)]
    cell = (*carried, f"model={model}", f"method={row}", f"task={task}", "seed=0")
    start = _make_run(composer.compose(cell), cell, "", composer)
    if start.start:
        raise UserError(f"init_from={init_from}: {row} starts from another run itself")
    return task, start
