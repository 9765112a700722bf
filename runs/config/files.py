"""The files of the configuration, and what Hydra composes of them.

Hydra's compose API is used rather than its main(): a sweep is expanded before anything
starts, so that it can be counted, planned and checked, and every error is one line. How
a recipe's values get into it, through `${recipe:KEY,DEFAULT}`, by_task and by_row:
docs/recipes.md."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import omegaconf
import yaml
from hydra import compose, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runs.command import did_you_mean, one_of
from runs.config.schema import BASE, alpha_of
from runs.errors import UserError
from runs.record import CONF, ROOT, from_recipe, one_line
from runs.record.keys import is_own_setting
from runs.record.override import Override

#: The groups of a run; launcher and tracking are those of a command, and say where and
#: how its runs are done.
GROUPS = ("model", "task", "method", "recipe", "experiment", "launcher", "tracking")
#: Mappings that `+` may add keys to: they go to other libraries as they are.
OPEN = (
    *("method.config", "model.settings", "train.lr_by", "train.decay_by"),
    *("launcher.init", "launcher.remote", "launcher.additional_parameters"),
)
#: What Hydra raises, and OmegaConf and the reader of YAML beneath it.
ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)
#: A key of a recipe, where a file reads it.
READS = re.compile(r"\$\{recipe:([a-z_0-9]+)")
#: The sites of each class of peft where none are named. Read as a file: importing vera
#: would import torch.
PEFT_SITES = ROOT / "vera" / "methods" / "peft_sites.json"

ConfigStore.instance().store(name="schema", node=BASE)


class Files:
    """The files of conf/, and of a folder with the same groups and other names
    (--config-dir)."""

    def __init__(self, config_dir: str | None = None) -> None:
        """Raises UserError where the folder is missing, or has another file of a name
        in conf/."""
        self.folders = [CONF]
        if config_dir is not None:
            folder = Path(config_dir).expanduser().absolute()
            if not config_dir or not folder.is_dir():
                raise UserError(f"--config-dir {config_dir}: no such folder")
            for path in sorted(folder.glob("*/**/*.yaml")):
                same = CONF / path.relative_to(folder)
                if same.is_file() and same.read_bytes() != path.read_bytes():
                    raise UserError(
                        f"{path}: conf/ has a file of this name: name yours otherwise"
                    )
            self.folders.append(folder)
        #: What Hydra composes of group choices alone.
        self.chosen = cache(
            lambda groups: compose("config", [*groups], return_hydra_config=True)
        )
        #: The configuration with these group choices and no other override, and the
        #: names of a group's files.
        self.defaults, self.choices = cache(self.compose), cache(self._choices)
        # another row's recipe, by all but the task
        self.borrowed = dict[tuple[str, ...], tuple[str]]()
        self.checked = set[str]()  # recipes
        # by path: each file is read once for all cells of a sweep
        self.loaded = dict[str, Any]()

    @contextmanager
    def hydra(self, whole: bool = False) -> Iterator[Any]:
        """Hydra with these files, which `compose` needs; afterwards the caller's own,
        if any, is back. whole: with the settings of Hydra's own, of which no run reads
        any: a quarter of what composing takes."""
        others, path = (
            GlobalHydra.instance().hydra,
            create_config_search_path(str(CONF)),
        )
        for folder in self.folders[1:]:
            # behind conf/
            path.prepend("--config-dir", f"file://{folder}", anchor="schema")
        GlobalHydra.instance().clear()
        version.setbase("1.3")
        try:
            hydra: Any = Hydra.create_main_hydra2("vera-bench", path)
            files = hydra.config_loader.repository
            read = files.load_config

            def load_config(config_path: str) -> Any:
                self.loaded[config_path] = self.loaded.get(config_path) or read(
                    config_path
                )
                found = copy.deepcopy(self.loaded[config_path])
                if config_path == "hydra/config" and not whole:
                    found.defaults_list = [
                        one for one in found.defaults_list if "logging" in one.group
                    ]
                return found

            files.load_config = load_config
            yield hydra
        finally:
            GlobalHydra.instance().hydra = others

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """What Hydra composes, with Hydra's own part, and the recipe as its row sees
        it. Raises UserError for what Hydra refuses, a file that is not there, and a key
        of a recipe that nothing reads."""
        row = tuple(
            line for line in overrides if not Override(line).key.startswith("task")
        )
        groups = (*groups_of(overrides), *self.borrowed.get(row, ()))
        for group, _, name in (line.lstrip("+").partition("=") for line in groups):
            if not group.startswith("~"):
                self.path(group, name.strip("'\""))
        for added in (
            line for line in overrides if line.startswith("+") and line not in groups
        ):
            above, _, name = (open_part(added) or Override(added).key).rpartition(".")
            parent = (
                OmegaConf.select(self.defaults(groups), above)
                if above
                else self.defaults(groups)
            )
            if not isinstance(parent, DictConfig) or name not in parent:
                raise self.no_key(Override(added).key, groups)
        values = [line for line in overrides if line not in groups]
        # Hydra sets values last, too: cells that choose the same files are composed of
        # them once
        try:
            cfg = copy.deepcopy(self.chosen(groups))
            ConfigLoaderImpl._apply_overrides_to_config(
                OverridesParser.create().parse_overrides(values), cfg
            )
            cfg.hydra.overrides.task += values
        except ERRORS as error:
            if key := re.match(r"Could not override '([^']+)'", str(error)):
                raise self.no_key(key[1], groups) from None
            raise UserError(one_line(str(error))) from None
        choices, other = cfg.hydra.runtime.choices, cfg.method.get("recipe")
        if "experiment" in cfg:
            file = self.path("experiment", choices.experiment)
            raise UserError(f"{file}: its first line should be # @package _global_")
        if cfg.get("recipe"):
            with open_dict(cfg):
                cfg.recipe = self._recipe_of(cfg)
        elif other and not any(re.match("~?recipe(=|$)", line) for line in groups):
            rows = sorted({name.partition("/")[0] for name in self.choices("recipe")})
            one_of(
                f"row with recipes, as {self.path('method', choices.method)} names it:",
                other,
                rows,
            )
            # a preset may choose the model
            borrowed = f"{other}/{str(choices.recipe).partition('/')[2]}"
            if borrowed in self.choices("recipe"):
                self.borrowed[row] = (f"recipe={borrowed}",)
                return self.compose(overrides)
        return cfg

    def _recipe_of(self, cfg: DictConfig) -> dict[str, Any]:
        """The recipe as its row sees it. Raises UserError, with the file, for what
        nothing reads."""
        content: Any = OmegaConf.to_container(cfg.recipe)
        if (name := cfg.hydra.runtime.choices.recipe) not in self.checked:
            self._check_recipe(content, self.path("recipe", name), cfg.task.get("name"))
            self.checked.add(name)
        return of_row(content, row_word(cfg))

    def _check_recipe(self, recipe: dict[str, Any], path: Path, task: str) -> None:
        """Raises UserError for a key that nothing reads, and for a row or task that
        there is not: a misspelt one would leave the default in effect, under the
        recipe's name. task: one's own may have no file."""
        keys = {*self.read_by_files, "source", "chosen", "by_task", "by_row"}
        try:
            rows, tasks = recipe.get("by_row", {}), {*self.choices("task"), task}
            known = [(row.partition(":")[0], {*self.choices("method")}) for row in rows]
            for part in (recipe, *rows.values()):
                by_task = part.get("by_task", {})
                known += [
                    (key, keys) for key in (*part, *part.get("chosen", {}), *by_task)
                ]
                known += [(name, tasks) for of in by_task.values() for name in {**of}]
        except (AttributeError, TypeError):
            raise UserError(
                f"{path}: by_row, by_task and by_task's values are mappings"
            ) from None
        for name, names in known:
            if name not in names:
                near = (
                    did_you_mean(str(name), sorted(names))
                    or f" Known: {', '.join(sorted(names))}"
                )
                raise UserError(f"{path}: {name}: nothing reads it.{near}")

    @cached_property
    def read_by_files(self) -> set[str]:
        """The keys of recipes that any file reads."""
        paths = [CONF / "config.yaml"]
        for folder in self.folders:
            paths += [
                path
                for part in ("method", "task", "shared")
                for path in folder.glob(f"{part}/*.yaml")
            ]
        return {key for path in paths for key in READS.findall(path.read_text())}

    def no_key(self, key: str, groups: tuple[str, ...]) -> UserError:
        """The error for a key that an override sets and there is not, with the nearest
        right one."""
        keys = [
            k for k, _ in dotted(without_hydra(self.defaults(groups), resolve=False))
        ]
        near = did_you_mean(
            key,
            [k for k in keys if not k.startswith(("recipe", "model.architecture."))],
        )
        return UserError(f"no key {key!r}.{near} (python -m runs --help lists them)")

    # --- files

    def _choices(self, group: str) -> list[str]:
        folders = [folder / group for folder in self.folders]
        found = (
            (folder, path) for folder in folders for path in folder.rglob("*.yaml")
        )
        return sorted(
            {
                path.relative_to(folder).with_suffix("").as_posix()
                for folder, path in found
            }
        )

    def path(self, group: str, name: str) -> Path:
        """A group's file. Raises UserError, with the nearest right name, where there is
        none."""
        names = self.choices(group)
        if name in names:
            return next(
                filter(
                    Path.is_file,
                    (folder / group / f"{name}.yaml" for folder in self.folders),
                )
            )
        mend = did_you_mean(name, names)
        if group == "model" and "/" in name:
            mend = (
                f" One of the hub: model=encoder model.hub={name} (or decoder, vision)"
            )
        elif group == "method" and not mend:
            mend = f" If peft has it: peft:{name}Config."
        raise UserError(
            f"no {group} {name!r}.{mend} (python -m runs --help lists them)"
        )


def open_part(override: str) -> str:
    """The mapping of OPEN that an override's key is in, or ""."""
    key = Override(override).key
    return next((mapping for mapping in OPEN if key.startswith(f"{mapping}.")), "")


def groups_of(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides that choose files."""
    return tuple(line for line in overrides if Override(line).key in GROUPS)


def plain(node: Any) -> Any:
    """A part of the configuration as plain values, resolved."""
    return (
        OmegaConf.to_container(node, resolve=True)
        if OmegaConf.is_config(node)
        else node
    )


def row_word(cfg: DictConfig) -> str:
    """The word that chooses a configuration's row: lora, or peft:IA3Config."""
    row = str(cfg.hydra.runtime.choices["method"])
    return f"peft:{cfg.method.config_class}" if row == "peft" else row


def without_hydra(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """The configuration as plain values, without Hydra's part."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values: Any = OmegaConf.to_container(own, resolve=resolve)
    return dict(values)


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, those of mappings too."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def parts(model: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's configuration and a method's own settings, for what needs no task."""
    files = Files()
    with files.hydra():
        cfg = files.compose((f"model={model}", f"method={method}"))
    return plain(cfg.model), {
        key: value for key, value in plain(cfg.method).items() if is_own_setting(key)
    }


def of_row(recipe: dict[str, Any], row: str) -> dict[str, Any]:
    """A recipe as a row sees it: without by_row, and with the row's part in the place
    of what every row has. row: as by_row names it, vera or peft:IA3Config."""
    if "by_row" not in recipe:
        return recipe
    part = dict(recipe["by_row"].get(row) or {})
    shared, own = recipe.get("by_task") or {}, part.pop("by_task", None) or {}
    found = {key: value for key, value in recipe.items() if key != "by_row"} | part
    # a value for one task would stand before the row's own for all tasks
    if shared or own:
        found["by_task"] = {key: of for key, of in shared.items() if key not in part}
        found["by_task"] |= {key: shared.get(key, {}) | of for key, of in own.items()}
    # how a value was chosen is said of rows that have it
    if chosen := recipe.get("chosen"):
        here = {*recipe, *shared, *part, *own}
        found["chosen"] = {
            key: why for key, why in chosen.items() if key in here
        } | part.get("chosen", {})
    return found


# --- resolvers: ${recipe:KEY,DEFAULT}, ${alpha:...}, ${keep:} and ${peft_sites:CLASS} in conf/


#: A recipe's node and, once for all keys that read it, what is in it and its task.
_LAST: list[Any] = [None, {"task": {"name": ""}}]


def _recipe(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    if (recipe := _root_.get("recipe")) is not _LAST[0]:
        _LAST[:] = recipe, {"recipe": plain(recipe), "task": {"name": _root_.task.name}}
    return _node(from_recipe(_LAST[1], key, default))


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf's own type, which --resolve needs."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def _keep(*, _root_: DictConfig) -> str:
    """Which epoch's adapter is kept: the task's `keep`, else the method's; of a method
    without any, none."""
    method, task = str(_root_.method.get("keep")), _root_.task.get("keep")
    return method if method == "none" or task is None else str(task)


def _peft_sites(config_class: str) -> Any:
    sites: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return _node(sites.get(config_class, sites["others"]))


# Each run of a sweep has the same interpolations, and parsing them is a third of the
# time of composing it
omegaconf.base.parse = cache(omegaconf.base.parse)
RESOLVERS: dict[str, Any] = {
    "recipe": _recipe,
    "alpha": alpha_of,
    "keep": _keep,
    "peft_sites": _peft_sites,
}
for _name, _resolver in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
