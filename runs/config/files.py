"""The files of the configuration, and what Hydra composes of them.

Hydra's compose API is used rather than its main(): a sweep is expanded before anything starts, so that it can
be counted, planned and checked, and every error is one line."""

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runs.config.names import as_sweep, did_you_mean, dotted
from runs.config.recipes import check_recipe, of_row
from runs.config.schema import BASE
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
#: Keys that every file of these groups has.
KEYS_OF_FILES = {
    "model": ("name", "label", "modality"),
    "task": ("name", "label", "family", "modality"),
    "method": ("kind", "label", "keep"),
}


def _recipe(key: str, default: Any = None, *, _root_: DictConfig) -> Any:
    return _node(from_recipe(_root_, key, default))


def _node(value: Any) -> Any:
    """A list or mapping as OmegaConf's own type, which --resolve needs."""
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def alpha_of(scaling: str, alpha: float, of_rank: int, rank: int) -> float:
    """LoRA's alpha at a rank, from the recipe's alpha and rank (conf/method/lora.yaml): constant, or
    proportional to the rank. A whole number stays one: identities hash 8, not 8.0."""
    if scaling != "proportional":
        return alpha
    scaled = alpha * rank / of_rank
    return int(scaled) if scaled.is_integer() and isinstance(alpha, int) else scaled


def _keep(*, _root_: DictConfig) -> str:
    """Which epoch's adapter is kept: the task's `keep`, or else the method's; never one of a method that
    keeps none."""
    method, task = str(_root_.method.keep), _root_.task.get("keep")
    return method if method == "none" or task is None else str(task)


def _peft_sites(config_class: str) -> Any:
    sites: dict[str, list[str]] = json.loads(PEFT_SITES.read_text(encoding="utf-8"))
    return _node(sites.get(config_class, sites["others"]))


def _peft_classes() -> dict[str, str]:
    """The configuration classes of peft that is installed, by their names in small letters and without
    "config": read from its files, since it takes seconds to import."""
    spec = find_spec("peft")
    folders = (spec and spec.submodule_search_locations) or []
    files = [path for folder in folders for path in Path(folder).glob("tuners/*/config.py")]
    names = [name for file in files for name in re.findall(r"^class (\w+Config)\(", file.read_text(), re.M)]
    return {name.lower().removesuffix("config"): name for name in names}


OmegaConf.register_new_resolver("peft_sites", _peft_sites, replace=True)
OmegaConf.register_new_resolver("recipe", _recipe, replace=True)
OmegaConf.register_new_resolver("alpha", alpha_of, replace=True)
OmegaConf.register_new_resolver("keep", _keep, replace=True)
ConfigStore.instance().store(name="schema", node=BASE)


class Elsewhere(SearchPathPlugin):
    """Adds the folder of --config-dir to Hydra's search path, also for its help, glob() and completion."""

    folders: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Puts the folder behind conf/."""
        for folder in self.folders:
            search_path.append("--config-dir", f"file://{folder}")


Plugins.instance().register(Elsewhere)


class ReadOnce:
    """Hydra's repository of files, which reads each file once for all the cells of a sweep."""

    def __init__(self, repository: Any) -> None:
        self.repository, self.loaded = repository, cache(repository.load_config)

    def __deepcopy__(self, memo: Any) -> "ReadOnce":
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repository, name)

    def load_config(self, config_path: str) -> Any:
        """A copy of a file's content, into which Hydra then merges others; None where there is no file."""
        return copy.deepcopy(self.loaded(config_path=config_path))


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
                if not path.is_file():
                    raise UserError(f"{path}: a folder, or a link that leads to no file")
                if same.is_file() and same.read_bytes() != path.read_bytes():
                    raise UserError(
                        f"{path}: conf/ has a file of this name, which would count: name yours otherwise"
                    )
            self.folders.append(folder)
        self._defaults: dict[tuple[str, ...], DictConfig] = {}
        self.recipes: dict[str, dict[str, Any]] = {}
        self._choices: dict[str, list[str]] = {}

    @contextmanager
    def hydra(self) -> Iterator[Any]:
        """Initialises Hydra with these files, which `compose` needs, and gives Hydra's object; afterwards the
        caller's own Hydra, if any, is back."""
        others = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        Elsewhere.folders = self.folders[1:]
        try:
            with initialize_config_dir(str(CONF), job_name="vera-bench", version_base="1.3"):
                hydra: Any = GlobalHydra.instance().hydra
                hydra.config_loader.repository = ReadOnce(hydra.config_loader.repository)
                yield hydra
        finally:
            GlobalHydra.instance().hydra = others

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """What Hydra composes, with Hydra's own part, and the recipe as its row sees it. Raises UserError for
        what Hydra refuses, and for a key that `+` adds or a recipe has and nothing reads."""
        self._check_added(overrides)
        try:
            cfg = compose("config", list(overrides), return_hydra_config=True)
        except yaml.YAMLError as error:
            raise UserError(f"no YAML: {' '.join(str(error).split())}") from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(self._refusal(error, overrides)) from None
        for group, keys in KEYS_OF_FILES.items():
            for key in keys:
                if key not in cfg[group]:
                    path = self.path(group, cfg.hydra.runtime.choices[group])
                    raise UserError(f"{path}: {key}: is missing")
        with open_dict(cfg):
            self._take_recipe(cfg, any(re.match("~?recipe(=|$)", line) for line in overrides))
        return cfg

    def _take_recipe(self, cfg: DictConfig, chosen: bool) -> None:
        """Puts a row's recipe into the configuration: the one that was chosen, its own for the model, or else
        that of the row that its file names (recipe: lora)."""
        runtime, other = cfg.hydra.runtime.choices, cfg.method.get("recipe")
        rows = sorted({name.partition("/")[0] for name in self.choices("recipe")})
        if other not in (None, *rows):
            path, near = self.path("method", runtime.method), did_you_mean(str(other), rows)
            raise UserError(f"{path}: recipe: {other}: no row with recipes has this name.{near}")
        name = str(runtime.get("recipe"))
        if not (cfg.get("recipe") or chosen or other is None):
            name = f"{other}/{name.partition('/')[2]}"  # a preset may choose the model
        if not cfg.get("recipe") and name not in self.choices("recipe"):
            return
        if name not in self.recipes:
            found = cfg.recipe or compose(f"recipe/{name}").recipe[name.partition("/")[0]]
            content: Any = OmegaConf.to_container(found)
            check_recipe(self, name, content, {str(cfg.task.get("name"))})
            self.recipes[name] = content
        cfg.recipe, runtime.recipe = of_row(self.recipes[name], row_word(cfg)), name

    def _check_added(self, overrides: tuple[str, ...]) -> None:
        """Raises UserError for a key that `+` or `++` adds where nothing would read it."""
        groups = groups_of(overrides)
        for line in (one for one in overrides if one.startswith("+") and one not in groups):
            key, keys = line.lstrip("+").partition("=")[0], self.known_keys(groups)
            opens = [mapping for mapping in OPEN if mapping in keys]
            if not key.startswith(tuple(f"{mapping}." for mapping in opens)) and key not in keys:
                raise UserError(
                    f"no key {key!r}.{did_you_mean(key, keys)} (+ adds to {', '.join(opens)} alone)"
                )

    def defaults(self, groups: tuple[str, ...]) -> DictConfig:
        """The configuration with these group choices and no other override, composed once."""
        if groups not in self._defaults:
            self._defaults[groups] = self.compose(groups)
        return self._defaults[groups]

    def known_keys(self, groups: tuple[str, ...] = ()) -> list[str]:
        """Every key that an override may set with these group choices, dotted."""
        keys = (key for key, _ in dotted(without_hydra(self.defaults(groups), resolve=False)))
        return [key for key in keys if not key.startswith(("recipe", "model.architecture."))]

    # --- files

    def all(self) -> list[Path]:
        """Every file that Hydra may read."""
        return [path for folder in self.folders for path in sorted(folder.rglob("*.yaml"))]

    def choices(self, group: str) -> list[str]:
        """The names of a group's files."""
        if group not in self._choices:
            self._choices[group] = sorted(
                {
                    path.relative_to(folder / group).with_suffix("").as_posix()
                    for folder in self.folders
                    for path in (folder / group).rglob("*.yaml")
                }
            )
        return self._choices[group]

    def path(self, group: str, name: str) -> Path:
        """A group's file. Raises UserError, with the nearest right name, where there is none."""
        names = self.choices(group)
        if name in names:
            return next(filter(Path.is_file, (folder / group / f"{name}.yaml" for folder in self.folders)))
        if group in ("model", "task", "method") and (sweep := as_sweep(group, name)):
            raise UserError(f"no {group} {name!r}{sweep}")
        near = did_you_mean(name, names)
        if group == "method" and not near:
            of_peft = _peft_classes().get(name.lower().removesuffix("config"))
            near = f" Did you mean peft:{of_peft}?" if of_peft else ""
        raise UserError(f"no {group} {name!r}.{near} Known: {', '.join(names)} (python -m runs --help)")

    def read(self, group: str, name: str) -> dict[str, Any]:
        """The content of a group's file, not resolved."""
        content: Any = OmegaConf.to_container(OmegaConf.load(self.path(group, name)))
        return dict(content)

    def _refusal(self, error: Exception, overrides: tuple[str, ...]) -> str:
        """Hydra's error in one line, or the first key that there is not, with the nearest one."""
        groups = groups_of(overrides)
        # Where there are only groups, composing them is what failed
        known = self.known_keys(groups) if groups != overrides else []
        for line in overrides:
            key = line.lstrip("+~").partition("=")[0]
            if known and key not in (*known, *GROUPS):
                return f"no key {key!r}.{did_you_mean(key, known)} (python -m runs --help lists them)"
        last = first_line(error.__cause__ or error.__context__ or error)
        place = first_line(error).partition(":")[0] if first_line(error).startswith("In ") else ""
        return f"{place}: {last}" if place else last


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
