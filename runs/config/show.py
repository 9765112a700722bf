"""The options that print something and run nothing (--cfg, --info, --help, ...)."""

import logging
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.command import COMPOSING, Line, Option, as_word, one_of
from runs.config.expand import read_grid
from runs.config.files import GROUPS, Files, row_word, without_hydra
from runs.config.names import did_you_mean, dotted
from runs.config.recipes import READS
from runs.errors import UserError, rank
from runs.record import CONF

#: Hydra's options, as python -m runs takes them.
OPTIONS = (
    Option(("-h", "--help"), "this text; with task=NAME and the like, the keys and values of that choice"),
    Option(("-c", "--cfg"), "print the configuration, and run nothing: job, hydra or all", "PART"),
    Option(("-p", "--package"), "with --cfg: a part of it, such as train", "KEY"),
    Option(("--resolve",), "with --cfg: without interpolations"),
    Option(("-i", "--info"), "what Hydra does: all, config, defaults, defaults-tree, ...", "[WHAT]"),
    *COMPOSING,
    Option(("-sc", "--shell-completion"), "install=bash (zsh, fish) or uninstall=bash"),
    Option(("--hydra-help",), "Hydra's own help"),
    Option(("--version",), "of this program and of Hydra"),
    Option(("-cn", "--config-name"), "there is one. experiment=NAME chooses a preset", taken=False),
    Option(("-cp", "--config-path"), "the files of conf/ stay; --config-dir FOLDER adds others", taken=False),
    Option(("--experimental-rerun",), "rerun=ID does a run again, with redo=true one done here", taken=False),
    Option(("-r", "--run"), "leave it out: one value for each key is one run", taken=False),
)


def answered(line: Line[Any], about: str) -> bool:
    """Prints what an option asks for, and returns whether there was such an option. about: the text of --help
    above Hydra's groups and keys. Raises UserError for a mistake in the options or the overrides."""
    asked = line.options
    if ({"--package", "--resolve"} & asked.keys() or line.settings.sources) and "--cfg" not in asked:
        raise UserError("--package, --resolve and sources=true are for --cfg job")
    if "--version" in asked:
        print(f"vera-bench {version('vera-bench')}, Hydra {version('hydra-core')}")
        return True
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
                _print(line, about, files, hydra)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{' '.join(asked)}: {' '.join(str(error).split())}") from None
    return True


def _print(line: Line[Any], about: str, files: Files, hydra: Any) -> None:
    """What is printed of the first run of a command line."""
    grid, package = read_grid(line.overrides, files), line.options.get("--package")
    if (count := len(grid.cells) * len(grid.seeds)) > 1 and "--help" not in line.options and rank() == 0:
        print(f"note: of {count} runs the first one", file=sys.stderr)
    overrides = (*grid.cells[0], *filter(None, grid.seeds[:1]))
    cfg = files.compose(overrides)
    hydra.compose_config = lambda *_, **__: cfg  # for Hydra to print: with the recipe as its row sees it
    if "--info" in line.options:
        logging.raiseExceptions = False  # Hydra prints by logging; a closed pipe (| head) is no error
        hydra.show_info(line.options["--info"] or "all", "config", [*overrides])
        return
    which = one_of("part", line.options.get("--cfg", "job"), ("job", "hydra", "all"))
    if package not in (None, "_global_") and OmegaConf.select(cfg, package, default=files) is files:
        near = did_you_mean(str(package), [str(key) for key in cfg])
        raise UserError(f"--package {package}: the configuration has no such part.{near}")
    if line.settings.sources:
        found = dict(_sources(cfg, line, overrides, files, hydra.config_loader))
        shown = [word for word in found if not package or word.startswith((f"{package}.", f"{package}="))]
        width = max(map(len, shown), default=0)
        print(*(f"{word:<{width}}  {found[word]}" for word in shown), sep="\n")
        return
    if "--help" in line.options:
        groups = (f"  {group}: {', '.join(files.choices(group))}" for group in GROUPS if group != "recipe")
        print(about, "\nGroups (GROUP=NAME):", *groups, "\nConfiguration (KEY=VALUE):", sep="\n")
    hydra.show_cfg("config", [], which, package, "--resolve" in line.options)


def _sources(
    cfg: DictConfig, line: Line[Any], overrides: tuple[str, ...], files: Files, loader: Any
) -> Iterator[tuple[str, str]]:
    """Each value as KEY=VALUE, and where it comes from: the command line, a file, or a place in a recipe."""
    recipe, preset = (str(cfg.hydra.runtime.choices.get(group)) for group in ("recipe", "experiment"))
    words = [word for word in overrides if not word.startswith("recipe=")]
    words += [f"recipe={recipe}"] if cfg.get("recipe") else []
    place = dict[str, str]()
    for one in loader.compute_defaults_list("config", words, RunMode.RUN).defaults:
        read = loader.repository.load_config(one.config_path)
        shown = f"{read.path}/{one.config_path}.yaml".replace(f"file://{CONF}", "conf").removeprefix(
            "file://"
        )
        shown = "runs/config/schema.py" if one.config_path == "schema" else shown
        within = "" if one.package in ("", "_global_", None) else f"{one.package}."
        content: Any = OmegaConf.to_container(read.config)
        place |= {f"{within}{key}": shown for key, _ in dotted(content)}
    typed = {_key(word) for word in line.overrides}
    for word in overrides:
        place[_key(word)] = "the command line" if _key(word) in typed else f"conf/experiment/{preset}.yaml"
    values = dict(dotted(without_hydra(cfg, resolve=True)))
    for key, raw in dotted(without_hydra(cfg, resolve=False)):
        if isinstance(raw, dict) or key.startswith("recipe."):
            continue
        asked = READS.search(str(raw))
        of_all = (f"by_task.{asked[1]}.{cfg.task.name}", asked[1]) if asked else ()
        in_recipe = (*(f"by_row.{row_word(cfg)}.{part}" for part in of_all), *of_all)
        found = next((part for part in in_recipe if f"recipe.{part}" in place), None)
        where = f"{place[f'recipe.{found}']}: {found}" if found else f"{place.get(key)}"
        yield f"{key}={as_word(values[key])}", where + (f": {raw}" if "${" in str(raw) and not found else "")


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
