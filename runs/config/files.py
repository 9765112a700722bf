"""The files of the configuration, and what Hydra composes of them.

Hydra's compose API is used rather than its main(): a sweep is expanded before anything starts, so that it can
be counted, planned and checked, and every error is one line."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.command import as_word
from runs.config import launch, schema
from runs.config.names import as_sweep, did_you_mean, dotted
from runs.config.recipes import check_recipe, known_keys
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
#: Keys that every file of these groups has, with an example.
KEYS_OF_FILES = {
    "model": {"name": "my_model", "label": "My model", "modality": "text"},
    "task": {"name": "my_task", "label": "My task", "family": "text", "modality": "text"},
    "method": {"kind": "lora", "label": "LoRA r=8", "keep": "best"},
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
ConfigStore.instance().store(name="schema", node=schema.Settings)
for launcher in launch.LAUNCHERS:
    ConfigStore.instance().store(group="schema/launcher", name=launcher.name, node=launcher)


class Elsewhere(SearchPathPlugin):
    """Adds the folder of --config-dir to Hydra's search path, also for its help, glob() and completion."""

    folders: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Puts the folder behind conf/."""
        for folder in self.folders:
            search_path.append("--config-dir", f"file://{folder}")


Plugins.instance().register(Elsewhere)


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
        self._checked, self._own_tasks = set[str](), set[str]()
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
                yield GlobalHydra.instance().hydra
        finally:
            GlobalHydra.instance().hydra = others

    def compose(self, overrides: tuple[str, ...]) -> DictConfig:
        """The configuration that Hydra composes, with its own part. Raises UserError, in one line, for what
        it refuses."""
        try:
            return compose("config", list(overrides), return_hydra_config=True)
        except yaml.YAMLError as error:
            raise UserError(f"no YAML: {' '.join(str(error).split())}") from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(self._explain(error, overrides)) from None

    def compose_with_recipe(self, overrides: tuple[str, ...]) -> tuple[tuple[str, ...], DictConfig]:
        """The configuration, and the overrides that compose it: a row without a recipe for this model takes
        the recipe of the row that its file names, and its own part (by_row) of a recipe that rows share
        takes the place of what all have. Raises UserError for a key of the recipe that nothing reads."""
        self._check_added(overrides)
        cfg = self.compose(overrides)
        for group in KEYS_OF_FILES:
            if group in cfg:
                self._check_needed(group, cfg.hydra.runtime.choices[group], cfg[group])
        other = cfg.get("method", {}).get("recipe")
        chosen = any(re.match(r"~?recipe\b", line) for line in overrides)
        if not (cfg.get("recipe") or chosen or other is None):
            recipe = f"{other}/{cfg.hydra.runtime.choices['recipe'].partition('/')[2]}"  # a preset may choose
            if recipe in self.choices("recipe"):
                overrides = (*overrides, f"recipe={recipe}")
                cfg = self.compose(overrides)
        if cfg.get("recipe"):
            self._own_tasks.add(str(cfg.task.get("name")))
            self._check_recipe(str(cfg.hydra.runtime.choices["recipe"]), cfg.recipe)
        if "by_row" in (cfg.get("recipe") or {}):
            part = cfg.recipe.by_row.get(row_word(cfg)) or {}
            # A value for one task would stand before the row's own for all tasks
            others = (f"~recipe.by_task.{key}" for key in part if key in (cfg.recipe.get("by_task") or {}))
            own = (f"++recipe.{key}={as_word(plain(value))}" for key, value in part.items())
            # How a value was chosen is said of rows that have it
            said, task = cfg.recipe.get("chosen") or {}, cfg.recipe.get("by_task") or {}
            here = {*cfg.recipe, *task, *part, *(part.get("by_task") or {})}
            unsaid = (f"~recipe.chosen.{key}" for key in said if key not in here)
            overrides = (*overrides, "~recipe.by_row", *others, *unsaid, *own)
            cfg = self.compose(overrides)
        return overrides, cfg

    def _check_needed(self, group: str, name: str, part: DictConfig) -> None:
        """Raises UserError where a group's file lacks a key that each has, or a row's file names recipes that
        nobody has written."""
        for key, example in KEYS_OF_FILES[group].items():
            if key not in part:
                raise UserError(f"{self.path(group, name)}: {key}: is missing, such as {key}: {example}")
        rows = sorted({name.partition("/")[0] for name in self.choices("recipe")})
        other = part.get("recipe")
        if group == "method" and other is not None and other not in rows:
            near = did_you_mean(str(other), rows) or f" Known: {', '.join(rows)}"
            raise UserError(
                f"{self.path(group, name)}: recipe: {other}: no row with recipes has this name.{near}"
            )

    def _check_added(self, overrides: tuple[str, ...]) -> None:
        """Raises UserError for a key that `+` or `++` adds where nothing would read it."""
        for line in overrides:
            if not line.startswith("+"):
                continue
            key, keys = line.lstrip("+").partition("=")[0], self.known_keys(groups_of(overrides))
            opens = [mapping for mapping in OPEN if mapping in keys]
            if key.startswith(tuple(f"{mapping}." for mapping in opens)):
                continue
            if key not in keys:
                close = did_you_mean(key, keys)
                raise UserError(f"no key {key!r}.{close} (+ adds to {', '.join(opens)} alone)")
            if not line.startswith("++"):
                raise UserError(f"{line}: {key} is there already; without the + it is set")

    def defaults(self, groups: tuple[str, ...]) -> DictConfig:
        """The configuration with these group choices and no other override, composed once."""
        if groups not in self._defaults:
            self._defaults[groups] = self.compose(groups)
        return self._defaults[groups]

    def known_keys(self, groups: tuple[str, ...] = ()) -> list[str]:
        """Every key that an override may set with these group choices, dotted."""
        return [key for key, _ in dotted(without_hydra(self.defaults(groups), resolve=False))]

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

    def _check_recipe(self, name: str, recipe: DictConfig) -> None:
        if name not in self._checked:
            check_recipe(self, name, OmegaConf.to_container(recipe), self._own_tasks)
            self._checked.add(name)

    # --- errors

    def _explain(self, error: Exception, overrides: tuple[str, ...]) -> str:
        """Hydra's error in one line: which key is unknown, and which one was probably meant."""
        groups = groups_of(overrides)
        # Where there are only groups, composing them is what failed
        known = self.known_keys(groups) if groups != overrides else []
        for line in overrides:
            key, _, value = line.lstrip("+~").partition("=")
            if "method.config" in known and key not in known and key.startswith("method."):
                name = key.removeprefix("method.").removeprefix("config.")
                return (
                    f"no key {key!r}. A class of peft takes its own settings (peft's names) in one:"
                    f" method.config='{{{name}: {value}}}'"
                )
            if known and key not in known and key not in GROUPS:
                return f"no key {key!r}.{did_you_mean(key, known)} (python -m runs --help lists them)"
        cause = error.__cause__ or error.__context__ or error
        for line in overrides:
            key, _, value = line.lstrip("+~").partition("=")
            if re.search(rf"full_key: {re.escape(key)}$", f"{error}\n{cause}", re.MULTILINE):
                for text, wanted in TYPE_ERRORS.items():
                    if text in str(cause):
                        return f"{line}: should be {wanted}{as_sweep(key, value)}"
                return f"{line}: {first_line(cause)}"
            if line.startswith("~") and line in str(error):
                return f"{line}: every run has this key. {key}=VALUE sets it"
        if first_line(error).endswith("raised while composing config:"):
            return f"{first_line(error).partition(':')[0]}: {first_line(cause)}"
        return first_line(error)


#: How OmegaConf says that a value has the wrong type.
TYPE_ERRORS = {
    "to Float": "a number",
    "to Integer": "a whole number",
    "to string": "text",
    "valid bool": "true or false",
}


def groups_of(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides that choose files, or a row's part of a recipe."""
    keys = {line: line.lstrip("~+").partition("=")[0] for line in overrides}
    return tuple(line for line, key in keys.items() if key in GROUPS or key.startswith("recipe."))


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


def recipe_by_row(name: str, config_dir: str | None = None) -> dict[str, Any] | None:
    """The parts of the rows that share a recipe; None for a recipe of one row, and where there is none."""
    files = Files(config_dir)
    return files.read("recipe", name).get("by_row") if name in files.choices("recipe") else None


def keys_of_recipes(row: str, config_dir: str | None = None) -> list[str]:
    """The keys of a row's recipes that something reads."""
    return known_keys(Files(config_dir), row, "")


def parts(model: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's configuration and a method's own settings, for what needs no task."""
    files = Files()
    with files.hydra():
        cfg = files.compose((f"model={model}", f"method={method}"))
    return plain(cfg.model), {key: v for key, v in plain(cfg.method).items() if key not in NOT_SETTINGS}
