"""The options that print something and run nothing (--cfg, --info, --help, ...)."""

import logging
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs.command import COMPOSING, Line, Options, as_word, did_you_mean
from runs.config.expand import read_grid
from runs.config.files import ERRORS, GROUPS, READS, Files, dotted, key_of, row_word, without_hydra
from runs.errors import UserError, rank
from runs.record import CONF

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_VERSION = f"vera-bench {version('vera-bench')}, Hydra {version('hydra-core')}"
#: Hydra's options, as python -m runs takes them.
OPTIONS: Options = {
    ("-h", "--help"): {"action": "store_true", "help": "this text; with task=NAME, the keys of that choice"},
    ("-c", "--cfg"): {"choices": ("job", "hydra", "all"), "help": "print the configuration, and run nothing"},
    ("-p", "--package"): {"metavar": "KEY", "help": "with --cfg: a part of it, such as train"},
    ("--resolve",): {"action": "store_true", "help": "with --cfg: without interpolations"},
    ("-i", "--info"): {"choices": _INFO, "nargs": "?", "const": "all", "help": "what Hydra does"},
    **COMPOSING,
    ("-sc", "--shell-completion"): {"action": "store_true", "help": "install=bash (or zsh, fish)"},
    ("--hydra-help",): {"action": "store_true", "help": "Hydra's own help"},
    ("--version",): {"action": "version", "version": _VERSION, "help": "of this program and of Hydra"},
}


def answered(line: Line[Any]) -> bool:
    """Prints what an option asks for, and returns whether there was such an option. Raises UserError for a
    mistake in the options or the overrides."""
    asked = line.options
    if ({"--package", "--resolve"} & asked.keys() or line.settings.sources) and "--cfg" not in asked:
        raise UserError("--package, --resolve and sources=true are for --cfg job")
    if not asked.keys() - {"--config-dir", "--multirun"}:
        return False
    files = Files(line.config_dir)
    with files.hydra() as hydra:
        try:
            if "--shell-completion" in asked:
                hydra.shell_completion("config", [*line.overrides])
            elif "--hydra-help" in asked:
                hydra.hydra_help("config", get_args_parser(), get_args_parser().parse_args([]))
            else:
                _print(line, files, hydra)
        except ERRORS as error:
            raise UserError(f"{' '.join(asked)}: {' '.join(str(error).split())}") from None
    return True


def _print(line: Line[Any], files: Files, hydra: Any) -> None:
    """What is printed of the first run of a command line."""
    (cells, seeds, _), asked = read_grid(line.overrides, files), line.options
    package = asked.get("--package")
    if (count := len(cells) * len(seeds)) > 1 and "--help" not in asked and rank() == 0:
        print(f"note: of {count} runs the first one", file=sys.stderr)
    overrides = (*cells[0], *filter(None, seeds[:1]))
    cfg = files.compose(overrides)
    hydra.compose_config = lambda *_, **__: cfg  # for Hydra to print: with the recipe as its row sees it
    if package not in (None, "_global_") and OmegaConf.select(cfg, package, default=files) is files:
        near = did_you_mean(package, [str(key) for key in cfg])
        raise UserError(f"--package {package}: the configuration has no such part.{near}")
    if "--info" in asked:
        logging.raiseExceptions = False  # Hydra prints by logging; a closed pipe (| head) is no error
        hydra.show_info(asked["--info"], "config", [*overrides])
    elif line.settings.sources:
        found = dict(_sources(cfg, line.overrides, overrides, files, hydra.config_loader))
        shown = [word for word in found if word.startswith((f"{package}.", f"{package}=") if package else "")]
        width = max(map(len, shown), default=0)
        print(*(f"{word:<{width}}  {found[word]}" for word in shown), sep="\n")
    else:
        if "--help" in asked:
            names = (f"  {group}: {', '.join(files.choices(group))}" for group in GROUPS if group != "recipe")
            print(line.help, "Groups (GROUP=NAME):", *names, "\nConfiguration (KEY=VALUE):", sep="\n")
        hydra.show_cfg("config", [], asked.get("--cfg", "job"), package, "--resolve" in asked)


def _sources(
    cfg: DictConfig, typed: tuple[str, ...], overrides: tuple[str, ...], files: Files, loader: Any
) -> Iterator[tuple[str, str]]:
    """Each value as KEY=VALUE, and where it comes from: the command line, a file, or a place in a recipe."""
    choices, place = cfg.hydra.runtime.choices, dict[str, str]()
    words = [word for word in overrides if not word.startswith("recipe=")]
    words += [f"recipe={choices.recipe}"] if cfg.get("recipe") else []
    for one in loader.compute_defaults_list("config", words, RunMode.RUN).defaults:  # a later one wins
        read = loader.repository.load_config(one.config_path)
        file = f"{read.path}/{one.config_path}.yaml".removeprefix("file://").replace(f"{CONF}/", "conf/")
        file = "runs/config/schema.py" if one.config_path == "schema" else file
        within = "" if one.package in ("", "_global_", None) else f"{one.package}."
        content: Any = OmegaConf.to_container(read.config)
        place |= {f"{within}{key}": file for key, _ in dotted(content)}
    for word in overrides:
        preset = f"conf/experiment/{choices.get('experiment')}.yaml"
        place[key_of(word)] = "the command line" if key_of(word) in map(key_of, typed) else preset
    values = dict(dotted(without_hydra(cfg, resolve=True)))
    for key, raw in dotted(without_hydra(cfg, resolve=False)):
        if isinstance(raw, dict) or key.startswith("recipe."):
            continue
        asked = READS.search(str(raw))
        parts = (f"by_task.{asked[1]}.{cfg.task.name}", asked[1]) if asked else ()
        in_recipe = (*(f"by_row.{row_word(cfg)}.{part}" for part in parts), *parts)
        found = next((part for part in in_recipe if f"recipe.{part}" in place), None)
        where = f"{place[f'recipe.{found}']}: {found}" if found else f"{place.get(key)}"
        yield f"{key}={as_word(values[key])}", where + (f": {raw}" if "${" in str(raw) and not found else "")
