"""What Hydra composes of the files of conf/.

Hydra's compose API is used rather than its main(): a sweep is expanded before anything
starts, so that it can be counted, planned and checked, and every error is one line.
Importing this module imports Hydra, which a repeated command does not need
(runs/config/expand.py)."""

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runs.command.advice import did_you_mean, require_known
from runs.command.errors import UserError
from runs.config.files import (
    GROUPS,
    Files,
    UnknownNameError,
    group_overrides,
    open_mapping_of,
)
from runs.config.resolvers import check_recipe, recipe_of_row
from runs.config.schema import BASE
from runs.record.override import Override
from runs.record.text import one_line

#: What Hydra raises, and OmegaConf and the reader of YAML beneath it.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
#: Hydra 1.3 has to be told which version's defaults it uses; 1.4 has only its own.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
#: Stands for ~recipe, which Hydra 1.4 does not take, since its name of the group is
#: recipe/ROW. A recipe is optional in conf/config.yaml, so a name without a file is none.
NO_RECIPE = "recipe=no_recipe"
#: The groups of a command: where its runs train, and who is told. Each of their files
#: may have keys that its neighbours lack, such as launcher.dry_run.
COMMAND_GROUPS = ("launcher", "tracking")
#: How Hydra says that a file (group/name) is missing, and that a key is.
NO_FILE = re.compile(r"Could not find '(\w+)/([^']+)'")
NO_KEY = re.compile(r"(?:Could not override|No earlier Group Default for) '([^']+)'")

ConfigStore.instance().store(name="schema", node=BASE)


class Composer:
    """Composes configurations in a `with` block. After it the Hydra of the calling
    program, if it has one, is as before."""

    def __init__(self, files: Files) -> None:
        self.files = files
        #: `compose` with overrides that only choose files: the values as the files have
        #: them. Cached, so callers must not change the result.
        self.defaults = cache(self.compose)
        #: The recipe ROW/MODEL that a cell takes from another row, by the cell's
        #: overrides without those of the task.
        self._recipes_of_other_rows = dict[tuple[str, ...], str]()
        self._checked_recipes = set[str]()

    def __enter__(self) -> "Composer":
        self._hydra_of_caller = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        self._hydra = hydra.initialize_config_dir(
            str(self.files.project_folder), job_name="vera-bench", **VERSION_BASE
        )
        self._hydra.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hydra.__exit__(*error)
        if self._hydra_of_caller is not None:
            GlobalHydra.instance().initialize(self._hydra_of_caller)

    def overrides_for_hydra(self, overrides: tuple[str, ...]) -> list[str]:
        """The overrides in Hydra's words, with two more where they are needed: the
        recipe that a row takes from another row, and the folder of the user's files."""
        words = []
        for text in overrides:
            removes_recipe = text == "~recipe" or text.startswith("~recipe=")
            words.append(NO_RECIPE if removes_recipe else text)
        if recipe := self._recipes_of_other_rows.get(_without_task(overrides)):
            words.append(f"recipe={recipe}")
        user_folders = [f"file://{folder}" for folder in self.files.user_folders]
        if user_folders:
            words.append(f"hydra.searchpath={user_folders}")
        return words

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """The configuration of these overrides, with Hydra's own part, and with the
        recipe as its row sees it. Raises UserError for what Hydra refuses, a missing
        file, and a key that nothing reads."""
        groups = group_overrides(overrides)
        for choice in map(Override, groups):
            if not choice.text.startswith("~"):  # which takes a choice away
                # raises UnknownNameError for a missing file
                self.files.path(choice.key, choice.unquoted_value)
        self._check_added_keys(overrides, groups)
        try:
            cfg = hydra.compose(
                "config", self.overrides_for_hydra(overrides), return_hydra_config=True
            )
        except HYDRA_ERRORS as error:
            raise self._as_user_error(error, groups) from None
        choices = group_choices(cfg)
        # without that line Hydra puts the keys of a preset below `experiment`
        if "experiment" in cfg:
            file = self.files.path("experiment", choices["experiment"])
            raise UserError(f"{file}: its first line should be # @package _global_")
        if cfg.get("recipe"):
            with open_dict(cfg):
                cfg.recipe = self._recipe_of_row(cfg, choices["recipe"])
            return cfg
        names_recipe = any(Override(text).key == "recipe" for text in groups)
        if cfg.method.get("recipe") and not names_recipe:
            # the method's file names another row, whose recipe for this model is taken.
            # The model is that of the missing recipe, which a preset may have chosen
            model = choices["recipe"].partition("/")[2]
            recipe = self._recipe_of_other_row(cfg, model)
            if recipe:
                # the same once more: overrides_for_hydra now adds this recipe
                self._recipes_of_other_rows[_without_task(overrides)] = recipe
                return self.compose(overrides)
        return cfg

    def recipe_for_model(self, overrides: tuple[str, ...], model: str) -> str:
        """The recipe ROW/MODEL that the overrides' row has for a model: its own, or that
        of the row that its file names. Raises UserError where it has none."""
        cfg = self.defaults(group_overrides(overrides))
        row = group_choices(cfg)["method"]
        if f"{row}/{model}" in self.files.choices("recipe"):
            return f"{row}/{model}"
        recipe = self._recipe_of_other_row(cfg, model)
        if recipe:
            return recipe
        raise UserError(
            f"recipe={model}: {row} has no recipe for {model} "
            f"(conf/recipe/{row}/{model}.yaml). Name another one: recipe=ROW/MODEL"
        )

    def _recipe_of_other_row(self, cfg: DictConfig, model: str) -> str:
        """The recipe ROW/MODEL that a method borrows: its file in conf/method may name
        another method under the key `recipe`, such as lora. "" if it names none, or if
        that one has no recipe for the model. Raises UserError if that one has no recipe
        at all."""
        row = cfg.method.get("recipe")
        if not row:
            return ""
        names = self.files.choices("recipe")
        rows = sorted({name.partition("/")[0] for name in names})
        file = self.files.path("method", group_choices(cfg)["method"])
        require_known(f"row with recipes, as {file} names it:", row, rows)
        return f"{row}/{model}" if f"{row}/{model}" in names else ""

    def _recipe_of_row(self, cfg: DictConfig, name: str) -> dict[str, Any]:
        """The configuration's recipe, as its row sees it (`recipe_of_row`). name: of the
        recipe's file, ROW/MODEL. Raises UserError, with the file, for a key that nothing
        reads."""
        content: Any = OmegaConf.to_container(cfg.recipe)
        # where Hydra 1.4 puts the file of the group recipe/ROW
        content = content.get(name.partition("/")[0], content)
        if name not in self._checked_recipes:
            path = self.files.path("recipe", name)
            check_recipe(content, path, cfg.task.get("name"), self.files)
            self._checked_recipes.add(name)
        return recipe_of_row(content, name_of_row(cfg))

    # --- errors

    def _check_added_keys(
        self, overrides: tuple[str, ...], groups: tuple[str, ...]
    ) -> None:
        """Raises UserError for a key that an override with `+` would add, although
        nothing reads it. groups: those of the overrides that choose files."""
        for text in overrides:
            if not text.startswith("+") or text in groups:
                continue
            key = Override(text).key
            # an open mapping takes any key, so that only the mapping itself has to exist
            required_key = open_mapping_of(text) or key
            parent_key, _, name = required_key.rpartition(".")
            parent: Any = self.defaults(groups)
            if parent_key:
                parent = OmegaConf.select(parent, parent_key)
            if not isinstance(parent, DictConfig) or name not in parent:
                raise self.unknown_key_error(key, groups)

    def _as_user_error(self, error: Exception, groups: tuple[str, ...]) -> UserError:
        """An error of Hydra as one line, with the nearest right name. groups: the
        overrides that choose files."""
        message = str(error) or str(error.__cause__)
        missing_file = NO_FILE.search(message)
        if missing_file:
            try:
                self.files.path(*missing_file.groups())
            except UnknownNameError as unknown_name:
                return unknown_name
        if "No earlier Group Default for 'recipe/" in message:
            return UserError(
                "Hydra 1.4 takes no recipe with a slash in a preset. Write `override "
                "/recipe: ROW/${model}`, or give it on the command line: recipe=ROW/MODEL"
            )
        missing_key = NO_KEY.search(message)
        if missing_key:
            # without the other choices, which may be what could not be composed
            choices = tuple(
                text for text in groups if text.partition("=")[0] in COMMAND_GROUPS
            )
            return self.unknown_key_error(missing_key[1], choices)
        return UserError(one_line(message))

    def unknown_key_error(self, key: str, groups: tuple[str, ...]) -> UnknownNameError:
        """The error for a key that does not exist in the configuration of these group
        choices (model=minilm), with the nearest right one."""
        advice = self.advice_on_key(key, groups)
        return UnknownNameError(f"no key {key!r}.{advice}", key)

    def advice_on_key(self, key: str, groups: tuple[str, ...]) -> str:
        """A sentence on a wrong key: the launcher or tracker that it needs, or else the
        nearest right keys; "" where none is near. groups: as `unknown_key_error`."""
        content = without_hydra(self.defaults(groups), resolve=False)
        keys_of_files_only = ("recipe", "model.architecture.")
        keys = []
        for name, _ in dotted_items(content):
            if not name.startswith(keys_of_files_only):
                keys.append(name)
        choices_by_key = self._choices_by_key()
        # only the keys of choices that were not made are left
        for name in keys:
            choices_by_key.pop(name, None)
        if key in choices_by_key:
            return f" It needs {' or '.join(choices_by_key[key])}"
        advice = did_you_mean(key, [*GROUPS, *keys, *choices_by_key])
        # the nearest key may be one of those
        for name, choices in choices_by_key.items():
            if advice.endswith(f" {name}?"):
                return f"{advice} It needs {' or '.join(choices)}"
        return advice

    def _choices_by_key(self) -> dict[str, list[str]]:
        """The keys of all launchers and trackers, with the choices that have them, such
        as launcher.dry_run with launcher=slurm."""
        choices_by_key = dict[str, list[str]]()
        for group in COMMAND_GROUPS:
            for choice in self.files.choices(group):
                path = self.files.path(group, choice)
                content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
                for name in content:
                    choices = choices_by_key.setdefault(f"{group}.{name}", [])
                    choices.append(f"{group}={choice}")
        return choices_by_key


def _without_task(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides but for task= and task.KEY=."""
    return tuple(
        text for text in overrides if not Override(text).key.startswith("task")
    )


# --- a composed configuration


def group_choices(cfg: DictConfig) -> dict[str, str]:
    """The name that a configuration has chosen, by group; a group without a choice is
    left out."""
    choices = dict[str, str]()
    for group, name in cfg.hydra.runtime.choices.items():
        # for recipe=vera/minilm Hydra 1.4 says that the group recipe/vera is minilm
        parent_group, _, row = group.partition("/")
        if parent_group == "recipe" and row:
            choices["recipe"] = f"{row}/{name}"
        elif name is not None and f"{group}={name}" != NO_RECIPE:
            choices[group] = str(name)
    return choices


def to_plain(node: Any) -> Any:
    """A part of the configuration as lists, dictionaries and values, resolved."""
    if not OmegaConf.is_config(node):
        return node
    return OmegaConf.to_container(node, resolve=True)


def name_of_row(cfg: DictConfig) -> str:
    """The name by which recipes know a configuration's row: lora, or peft:IA3Config."""
    row = group_choices(cfg)["method"]
    return f"peft:{cfg.method.config_class}" if row == "peft" else row


def without_hydra(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """The configuration as plain values, without Hydra's part. resolve: whether
    ${...} is replaced by its value."""
    keys = [str(key) for key in cfg if key != "hydra"]
    part = OmegaConf.masked_copy(cfg, keys)
    values: Any = OmegaConf.to_container(part, resolve=resolve)
    return dict(values)


def dotted_items(
    node: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of everything in nested mappings, of the inner
    mappings themselves, too."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted_items(value, f"{prefix}{key}.")


def defaults_with_recipe(
    composer: Composer, overrides: tuple[str, ...], recipe: Any
) -> DictConfig:
    """What the files that a run's overrides choose say, without the values that other
    overrides set: a copy of `Composer.defaults`, with the run's recipe.

    The run's recipe is given, since a row's part of it may belong to its class of peft,
    which is set by an override that chooses no file."""
    cfg = copy.deepcopy(composer.defaults(group_overrides(overrides)))
    with open_dict(cfg):
        cfg.recipe = recipe
    return cfg
