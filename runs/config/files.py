"""The files of the configuration, and what Hydra composes of them.

Hydra's compose API is used rather than its main(): a sweep is expanded before anything starts, so that it can
be counted, planned and checked, and every error is one line."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runs.command import one_of
from runs.config.names import did_you_mean, dotted
from runs.config.recipes import READS, check_recipe, of_row
from runs.config.schema import BASE, alpha_of
from runs.errors import UserError
from runs.record import CONF, NOT_SETTINGS, ROOT, from_recipe
from runs.record.text import first_line

#: The sites of each class of peft where none are named. Read as a file: importing vera would import torch.
PEFT_SITES = ROOT / "vera" / "methods" / "peft_sites.json"
#: The groups of a run; launcher and tracking are those of a command, and say where and how its runs are done.
GROUPS = ("model", "task", "method", "recipe", "experiment", "launcher", "tracking")
#: Mappings that `+` may add keys to: they go to other libraries as they are.
OPEN = (
    *("method.config", "model.settings", "train.lr_by", "train.decay_by"),
    *("launcher.init", "launcher.remote", "launcher.additional_parameters"),
)


# --- resolvers: ${recipe:KEY,DEFAULT}, ${alpha:...}, ${keep:} and ${peft_sites:CLASS} in conf/


def _recipe(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    return _node(from_recipe(_root_, key, default))


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf's own type, which --resolve needs."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def _keep(*, _root_: DictConfig) -> str:
    """Which epoch's adapter is kept: the task's `keep`, or else the method's; never one of a method that
    keeps none."""
    method, task = str(_root_.method.get("keep")), _root_.task.get("keep")
    return method if method == "none" or task is None else str(task)


def _peft_sites(config_class: str) -> Any:
    sites: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return _node(sites.get(config_class, sites["others"]))


OmegaConf.register_new_resolver("peft_sites", _peft_sites, replace=True)
OmegaConf.register_new_resolver("recipe", _recipe, replace=True)
OmegaConf.register_new_resolver("alpha", alpha_of, replace=True)
OmegaConf.register_new_resolver("keep", _keep, replace=True)
ConfigStore.instance().store(name="schema", node=BASE)


class Files:
    """The files of conf/, and of a folder with the same groups and other names (--config-dir)."""

    def __init__(self, config_dir: str | None = None) -> None:
        """Raises UserError where the folder is missing, or has another file of a name in conf/."""
        self.folders = [CONF]
        if config_dir is not None:
            folder = Path(config_dir).expanduser().absolute()
            if not config_dir or not folder.is_dir():
                raise UserError(f"--config-dir {config_dir}: no such folder")
            for path in sorted(folder.glob("*/**/*.yaml")):
                same = CONF / path.relative_to(folder)
                if same.is_file() and same.read_bytes() != path.read_bytes():
                    raise UserError(f"{path}: conf/ has a file of this name: name yours otherwise")
            self.folders.append(folder)
        #: The configuration with these group choices and no other override, and the names of a group's files.
        self.defaults, self.choices = cache(self.compose), cache(self._choices)
        self.checked = set[tuple[str, str]]()  # recipes, each with a row that takes it

    @contextmanager
    def hydra(self) -> Iterator[Any]:
        """Initialises Hydra with these files, which `compose` needs, and gives Hydra's object; afterwards the
        caller's own Hydra, if any, is back."""
        others, path = GlobalHydra.instance().hydra, create_config_search_path(str(CONF))
        for folder in self.folders[1:]:
            path.prepend("--config-dir", f"file://{folder}", anchor="schema")  # behind conf/
        GlobalHydra.instance().clear()
        version.setbase("1.3")
        try:
            hydra: Any = Hydra.create_main_hydra2("vera-bench", path)
            files = hydra.config_loader.repository
            read = cache(files.load_config)  # each file once for all cells of a sweep
            files.load_config = lambda config_path: copy.deepcopy(read(config_path))
            yield hydra
        finally:
            GlobalHydra.instance().hydra = others

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """What Hydra composes, with Hydra's own part, and the recipe as its row sees it. Raises UserError for
        what Hydra refuses, a file that is not there, and a key that `+` adds or a recipe has and nothing
        reads."""
        groups = groups_of(overrides)
        for group, _, name in (line.lstrip("+").partition("=") for line in groups):
            if not group.startswith("~"):
                self.path(group, name.strip("'\""))
        self._check_keys(tuple(line for line in overrides if line.startswith("+")), groups)
        try:
            cfg = compose("config", [*overrides], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            if groups != overrides:  # else composing the groups is what failed
                self._check_keys(overrides, groups)
            raise UserError(_short(error)) from None
        choices, other = cfg.hydra.runtime.choices, cfg.method.get("recipe")
        if cfg.get("recipe"):
            if (taken := (choices.recipe, row_word(cfg))) not in self.checked:
                self._check_recipe(*taken, cfg)
                self.checked.add(taken)
            with open_dict(cfg):
                content: Any = OmegaConf.to_container(cfg.recipe)
                cfg.recipe = of_row(content, row_word(cfg))
        elif other and not any(re.match("~?recipe(=|$)", line) for line in groups):
            rows = sorted({name.partition("/")[0] for name in self.choices("recipe")})
            one_of(f"row with recipes, as {self.path('method', choices.method)} names it:", other, rows)
            borrowed = f"{other}/{str(choices.recipe).partition('/')[2]}"  # a preset may choose the model
            if borrowed in self.choices("recipe"):
                return self.compose((*overrides, f"recipe={borrowed}"))
        return cfg

    def _check_recipe(self, name: str, row: str, cfg: DictConfig) -> None:
        """Raises UserError, with the file, for what a recipe's own file says to a row and nothing reads."""
        content, path = self.read("recipe", name), self.path("recipe", name)
        for word in content.get("by_row", ()):
            self.path("method", word.partition(":")[0])  # raises UserError where there is none
        of = row if "by_row" in content else name.partition("/")[0]
        rows = ["peft" if of.startswith(("peft:", "peft_")) else of]
        for one in rows:  # which grows by the rows in their defaults
            rows += {*self.read("method", one).get("defaults", ())} - {"_self_", *rows}
        files = [CONF / "config.yaml", *(self.path("method", one) for one in rows)]
        for folder in self.folders:
            files += [*folder.glob("task/*.yaml"), *folder.glob("shared/*.yaml")]
        read = {key for file in files for key in READS.findall(file.read_text())}
        try:
            check_recipe(content, row, read, {*self.choices("task"), cfg.task.get("name")})
        except UserError as error:
            where = f"conf/recipe/{name}.yaml" if path.is_relative_to(CONF) else path
            raise UserError(f"{where}: {error}") from None

    def _check_keys(self, lines: tuple[str, ...], groups: tuple[str, ...]) -> None:
        """Raises UserError for an override of a key that there is not. Only some mappings take others."""
        known = self.known_keys(groups) if lines else []
        opens = tuple(f"{key}." for key in OPEN if key in known)
        for line in lines:
            key = line.lstrip("+~").partition("=")[0]
            if key not in (*known, *GROUPS) and not (line[0] in "+~" and key.startswith(opens)):
                raise UserError(
                    f"no key {key!r}.{did_you_mean(key, known)} (python -m runs --help lists them)"
                )

    def known_keys(self, groups: tuple[str, ...] = ()) -> list[str]:
        """Every key that an override may set with these group choices, dotted."""
        keys = (key for key, _ in dotted(without_hydra(self.defaults(groups), resolve=False)))
        return [key for key in keys if not key.startswith(("recipe", "model.architecture."))]

    # --- files

    def _choices(self, group: str) -> list[str]:
        found = (
            (folder / group, path) for folder in self.folders for path in (folder / group).rglob("*.yaml")
        )
        return sorted(
            {path.relative_to(folder).with_suffix("").as_posix() for folder, path in found if path.is_file()}
        )

    def path(self, group: str, name: str) -> Path:
        """A group's file. Raises UserError, with the nearest right name, where there is none."""
        names = self.choices(group)
        if name in names:
            return next(filter(Path.is_file, (folder / group / f"{name}.yaml" for folder in self.folders)))
        if group == "model" and "/" in name:
            raise UserError(
                f"no model {name!r}. One of the hub: model=encoder model.hub={name} (or decoder, vision)"
            )
        peft = f" One of peft's classes: peft:CLASS, such as peft:{name}Config." if group == "method" else ""
        near = did_you_mean(name, names) or f"{peft} Known: {', '.join(names)}"
        raise UserError(f"no {group} {name!r}.{near} (python -m runs --help lists them)")

    def read(self, group: str, name: str) -> dict[str, Any]:
        """The content of a group's file, not resolved."""
        content: Any = OmegaConf.to_container(OmegaConf.load(self.path(group, name)))
        return dict(content)


def _short(error: Exception) -> str:
    """Hydra's error in one line: its cause, with the file that it is in."""
    if isinstance(error, yaml.YAMLError):
        return f"no YAML: {' '.join(str(error).split())}"
    last, line = first_line(error.__cause__ or error.__context__ or error), first_line(error)
    return f"{line.partition(':')[0]}: {last}" if line.startswith("In ") else last


def groups_of(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides that choose files."""
    return tuple(line for line in overrides if line.lstrip("~+").partition("=")[0] in GROUPS)


def plain(node: Any) -> Any:
    """A part of the configuration as plain values, resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def row_word(cfg: DictConfig) -> str:
    """The word that chooses a configuration's row: lora, or peft:IA3Config."""
    row = str(cfg.hydra.runtime.choices["method"])
    return f"peft:{cfg.method.config_class}" if row == "peft" else row


def without_hydra(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """The configuration as plain values, without Hydra's part."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    values: Any = OmegaConf.to_container(own, resolve=resolve)
    return dict(values)


def choices(group: str) -> list[str]:
    """The names of the files of a group of conf/."""
    return Files().choices(group)


def parts(model: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's configuration and a method's own settings, for what needs no task."""
    files = Files()
    with files.hydra():
        cfg = files.compose((f"model={model}", f"method={method}"))
    return plain(cfg.model), {key: v for key, v in plain(cfg.method).items() if key not in NOT_SETTINGS}


def recipe_keys(row: str, config_dir: str | None = None) -> list[str]:
    """The keys of a recipe that the training and this row's file read."""
    files = Files(config_dir)
    with files.hydra():
        return READS.findall(str(without_hydra(files.defaults((f"method={row}",)), resolve=False)))
