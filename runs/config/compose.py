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
    groups_of,
    open_part,
)
from runs.config.resolvers import check_recipe, recipe_of_row
from runs.config.schema import BASE
from runs.record.override import Override
from runs.record.text import one_line

#: What Hydra raises, and OmegaConf and the reader of YAML beneath it.
ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
#: Hydra 1.3 wants to be told which version's defaults it uses; 1.4 has only its own.
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
#: In place of ~recipe, which Hydra 1.4 does not take: it knows the group as
#: recipe/ROW. A recipe is optional, so a name without a file is none.
NO_RECIPE = "recipe=no_recipe"
#: How Hydra says that a file is missing, and a key.
NO_FILE = re.compile(r"Could not find '(\w+)/([^']+)'")
NO_KEY = re.compile(r"(?:Could not override|No earlier Group Default for) '([^']+)'")

ConfigStore.instance().store(name="schema", node=BASE)


class Composer:
    """Composes configurations, within a `with`. Afterwards the caller's own Hydra, if
    there is one, is back."""

    def __init__(self, files: Files) -> None:
        self.files = files
        #: The configuration with these group choices and no other override.
        self.defaults = cache(self.compose)
        # the recipe of another row, by all overrides but the task's
        self._borrowed = dict[tuple[str, ...], str]()
        self._checked_recipes = set[str]()

    def __enter__(self) -> "Composer":
        self._callers_own = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        self._hydra = hydra.initialize_config_dir(
            str(self.files.folders[0]), job_name="vera-bench", **VERSION_BASE
        )
        self._hydra.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hydra.__exit__(*error)
        if self._callers_own is not None:
            GlobalHydra.instance().initialize(self._callers_own)

    def for_hydra(self, overrides: tuple[str, ...]) -> list[str]:
        """The overrides that Hydra gets: with the recipe that a row borrows from another
        one, and with the folder of the user's own files, behind conf/."""
        words = [*overrides]
        for number, line in enumerate(words):
            if line == "~recipe" or line.startswith("~recipe="):
                words[number] = NO_RECIPE
        if recipe := self._borrowed.get(_without_task(overrides)):
            words.append(f"recipe={recipe}")
        user_folders = [f"file://{folder}" for folder in self.files.folders[1:]]
        if user_folders:
            words.append(f"hydra.searchpath={user_folders}")
        return words

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """What Hydra composes, with Hydra's own part, and the recipe as its row sees
        it. Raises UserError for what Hydra refuses, a file that is not there, and a key
        of a recipe that nothing reads."""
        groups = groups_of(overrides)
        for choice in map(Override, groups):
            if not choice.text.startswith("~"):
                self.files.path(choice.key, choice.unquoted_value)
        self._check_added_keys(overrides, groups)
        try:
            cfg = hydra.compose(
                "config", self.for_hydra(overrides), return_hydra_config=True
            )
        except ERRORS as error:
            raise self._refusal(error) from None
        choices = choices_of(cfg)
        if "experiment" in cfg:
            file = self.files.path("experiment", choices["experiment"])
            raise UserError(f"{file}: its first line should be # @package _global_")
        if cfg.get("recipe"):
            with open_dict(cfg):
                cfg.recipe = self._recipe_for(cfg, choices["recipe"])
            return cfg
        names_recipe = any(Override(line).key == "recipe" for line in groups)
        if cfg.method.get("recipe") and not names_recipe:
            # a preset may choose the model
            model = choices["recipe"].partition("/")[2]
            if borrowed := self._recipe_of_other_row(cfg, model):
                self._borrowed[_without_task(overrides)] = borrowed
                return self.compose(overrides)
        return cfg

    def recipe_for_model(self, overrides: tuple[str, ...], model: str) -> str:
        """The recipe ROW/MODEL that a row has for a model, its own or the one that its
        file names. Raises UserError where it has none."""
        cfg = self.defaults(groups_of(overrides))
        row = choices_of(cfg)["method"]
        if f"{row}/{model}" in self.files.choices("recipe"):
            return f"{row}/{model}"
        if borrowed := self._recipe_of_other_row(cfg, model):
            return borrowed
        raise UserError(
            f"recipe={model}: {row} has no recipe for {model} "
            f"(conf/recipe/{row}/{model}.yaml). Name another one: recipe=ROW/MODEL"
        )

    def _recipe_of_other_row(self, cfg: DictConfig, model: str) -> str:
        """The recipe of the row that a method's file names, or ""."""
        row = cfg.method.get("recipe")
        if not row:
            return ""
        names = self.files.choices("recipe")
        rows = sorted({name.partition("/")[0] for name in names})
        file = self.files.path("method", choices_of(cfg)["method"])
        require_known(f"row with recipes, as {file} names it:", row, rows)
        return f"{row}/{model}" if f"{row}/{model}" in names else ""

    def _recipe_for(self, cfg: DictConfig, name: str) -> dict[str, Any]:
        """The recipe of this name, as its row sees it. Raises UserError, with the file,
        for what nothing reads."""
        content: Any = OmegaConf.to_container(cfg.recipe)
        # where Hydra 1.4 puts the file of the group recipe/ROW
        content = content.get(name.partition("/")[0], content)
        if name not in self._checked_recipes:
            path = self.files.path("recipe", name)
            check_recipe(content, path, cfg.task.get("name"), self.files)
            self._checked_recipes.add(name)
        return recipe_of_row(content, name_of_row(cfg))

    # --- what is refused

    def _check_added_keys(
        self, overrides: tuple[str, ...], groups: tuple[str, ...]
    ) -> None:
        """Raises UserError for a key that `+` would add where nothing reads it."""
        for line in overrides:
            if not line.startswith("+") or line in groups:
                continue
            key = Override(line).key
            parent_name, _, name = (open_part(line) or key).rpartition(".")
            parent: Any = self.defaults(groups)
            if parent_name:
                parent = OmegaConf.select(parent, parent_name)
            if not isinstance(parent, DictConfig) or name not in parent:
                raise self.no_key(key, groups)

    def _refusal(self, error: Exception) -> UserError:
        """What Hydra refuses, in one line with the nearest right name."""
        message = str(error) or str(error.__cause__)
        if missing := NO_FILE.search(message):
            try:
                self.files.path(*missing.groups())
            except UnknownNameError as refusal:
                return refusal
        if "No earlier Group Default for 'recipe/" in message:
            return UserError(
                "Hydra 1.4 takes no recipe with a slash in a preset. Write `override "
                "/recipe: ROW/${model}`, or give it on the command line: recipe=ROW/MODEL"
            )
        if key := NO_KEY.search(message):
            return self.no_key(key[1], ())
        return UserError(one_line(message))

    def no_key(self, key: str, groups: tuple[str, ...]) -> UnknownNameError:
        """The error for a key that an override sets and there is not, with the nearest
        right one."""
        advice = self.advice_on_key(key, groups)
        return UnknownNameError(f"no key {key!r}.{advice}", key)

    def advice_on_key(self, key: str, groups: tuple[str, ...]) -> str:
        """The nearest right names of a key, as a sentence; or ""."""
        content = without_hydra(self.defaults(groups), resolve=False)
        of_files = ("recipe", "model.architecture.")
        keys = [name for name, _ in dotted(content) if not name.startswith(of_files)]
        return did_you_mean(key, [*GROUPS, *keys])


def _without_task(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        line for line in overrides if not Override(line).key.startswith("task")
    )


# --- a composed configuration


def choices_of(cfg: DictConfig) -> dict[str, str]:
    """The name that each group has in a configuration. Of recipe=vera/minilm, Hydra
    1.4 says that the group recipe/vera is minilm."""
    choices = dict[str, str]()
    for group, name in cfg.hydra.runtime.choices.items():
        above, _, below = group.partition("/")
        if above == "recipe" and below:
            choices["recipe"] = f"{below}/{name}"
        elif name is not None and f"{group}={name}" != NO_RECIPE:
            choices[group] = str(name)
    return choices


def plain(node: Any) -> Any:
    """A part of the configuration as plain values, resolved."""
    if not OmegaConf.is_config(node):
        return node
    return OmegaConf.to_container(node, resolve=True)


def name_of_row(cfg: DictConfig) -> str:
    """The name by which recipes know a configuration's row: lora, or peft:IA3Config."""
    row = choices_of(cfg)["method"]
    return f"peft:{cfg.method.config_class}" if row == "peft" else row


def without_hydra(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """The configuration as plain values, without Hydra's part."""
    own_part = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values: Any = OmegaConf.to_container(own_part, resolve=resolve)
    return dict(values)


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, those of mappings too."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def compared_defaults(
    composer: Composer, overrides: tuple[str, ...], recipe: Any
) -> DictConfig:
    """The configuration of the same files without other overrides, and with this
    recipe: the one of a class of peft is chosen by an override."""
    cfg = copy.deepcopy(composer.defaults(groups_of(overrides)))
    with open_dict(cfg):
        cfg.recipe = recipe
    return cfg
