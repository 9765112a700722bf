"""The options that print something and run nothing (--cfg, --info, --help, ...)."""

import logging
import sys
from importlib.metadata import version
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.command import COMPOSING, Line, Option
from runs.config.expand import read_grid
from runs.config.files import GROUPS, Files
from runs.config.names import did_you_mean
from runs.errors import UserError, rank
from runs.record.text import first_line

INFOS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
#: Hydra's options, as python -m runs takes them.
OPTIONS = (
    Option(("-h", "--help"), "this text; with task=NAME and the like, the keys and values of that choice"),
    Option(("-c", "--cfg"), "print the configuration, and run nothing", "PART", ("job", "hydra", "all")),
    Option(("-p", "--package"), "with --cfg: a part of it, such as train", "KEY"),
    Option(("--resolve",), "with --cfg: without interpolations"),
    Option(("-i", "--info"), f"what Hydra does: {', '.join(INFOS)}", "[WHAT]", INFOS, "all"),
    *COMPOSING,
    Option(("-sc", "--shell-completion"), "install=bash (zsh, fish) or uninstall=bash"),
    Option(("--hydra-help",), "Hydra's own help"),
    Option(("--version",), "of this program and of Hydra"),
    Option(
        ("-cn", "--config-name"),
        "there is one. experiment=NAME chooses a preset",
        taken=False,
    ),
    Option(("-cp", "--config-path"), "the files of conf/ stay; --config-dir FOLDER adds others", taken=False),
    Option(
        ("--experimental-rerun",),
        "a run's words are in runs/ID/overrides.yaml of the output folder; redo=true does it again",
        taken=False,
    ),
    Option(("-r", "--run"), "leave it out: one value for each key is one run", taken=False),
)


def answered(line: Line[Any], about: str) -> bool:
    """Prints what an option asks for, and returns whether there was such an option. about: the text of --help
    above Hydra's groups and keys. Raises UserError for a mistake in the options or the overrides."""
    asked = line.options
    if {"--package", "--resolve"} & asked.keys() and "--cfg" not in asked:
        raise UserError("--package and --resolve are for --cfg job")
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
            raise UserError(f"{' '.join(asked)}: {first_line(error)}") from None
    return True


def _print(line: Line[Any], about: str, files: Files, hydra: Any) -> None:
    """What is printed of the first run of a command line."""
    grid = read_grid([*line.overrides], files)
    if len(grid) > 1 and "--help" not in line.options and rank() == 0:
        print(f"note: of {len(grid)} runs the first one", file=sys.stderr)
    overrides = (*next(grid.combinations()), *filter(None, grid.seeds[:1]))
    if "--info" in line.options:
        logging.raiseExceptions = False  # Hydra prints by logging; a closed pipe (| head) is no error
        hydra.show_info(line.options["--info"], "config", [*overrides])
        return
    _, cfg = files.compose_with_recipe(overrides)
    if "--help" in line.options:
        groups = (f"  {group}: {', '.join(files.choices(group))}" for group in GROUPS if group != "recipe")
        print(about, "\nGroups (GROUP=NAME):", *groups, "\nConfiguration (KEY=VALUE):", sep="\n")
        show_cfg(cfg, "job", None, resolve=False)
        return
    HydraConfig.instance().set_config(cfg)
    show_cfg(cfg, line.options["--cfg"], line.options.get("--package"), "--resolve" in line.options)


def show_cfg(cfg: DictConfig, which: str, package: str | None, resolve: bool) -> None:
    """Prints the configuration as YAML, as Hydra does. Raises UserError for a package that is not there."""
    keys = [str(key) for key in cfg if which == "all" or (key == "hydra") == (which == "hydra")]
    part, missing = OmegaConf.masked_copy(cfg, keys), object()
    node = part if package in (None, "_global_") else OmegaConf.select(part, str(package), default=missing)
    if node is missing:
        close = did_you_mean(str(package), keys)
        raise UserError(f"--package {package}: the configuration has no such part.{close}")
    if not OmegaConf.is_config(node):
        print(node)
        return
    if node is not part:
        print(f"# @package {package}")
    if resolve:
        OmegaConf.resolve(node)
    print(OmegaConf.to_yaml(node), end="")
