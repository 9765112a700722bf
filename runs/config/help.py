"""The options that print something and run nothing (--cfg, --info, --help, ...); Hydra's object prints."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.config.expand import read_grid, seed_of
from runs.config.files import Files
from runs.config.flags import parser, read_flags
from runs.config.names import did_you_mean
from runs.errors import UserError, rank
from runs.record.text import first_line


def answered(arguments: Sequence[str], about: str | None) -> bool:
    """Prints what an option asks for, and returns whether there was such an option. about: the command's own
    help.

    Raises UserError for a mistake in the options or the overrides."""
    flags = read_flags(arguments)
    if flags.version:
        print(f"vera-bench {version('vera-bench')}, Hydra {version('hydra-core')}")
        return True
    if not (flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion):
        return False
    files = Files(flags.config_dir)
    with files.hydra() as hydra:
        if flags.shell_completion:
            try:
                hydra.shell_completion("config", flags.overrides)
            except ValueError as error:
                raise UserError(f"--shell-completion: {' '.join(str(error).split())}") from None
            return True
        grid = read_grid(flags.overrides, files)
        if len(grid) > 1 and not flags.help and rank() == 0:
            print(f"note: of {len(grid)} runs the first one", file=sys.stderr)
        overrides = next(grid.combinations())
        overrides, cfg = files.compose_with_recipe(overrides)
        missing = object()
        if flags.package not in (None, "_global_") and (
            OmegaConf.select(cfg, flags.package, default=missing) is missing
        ):
            close = did_you_mean(flags.package, files.known_keys())
            raise UserError(f"--package {flags.package}: the configuration has no such part.{close}")
        flags.overrides = [*overrides, *(f"seed={seed_of(line)}" for line in grid.seeds[:1] if line)]
        try:
            _print(flags, about or "", hydra)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"the configuration does not resolve: {first_line(error)}") from None
    return True


def _print(flags: argparse.Namespace, about: str, hydra: Any) -> None:
    if flags.help:
        print(about.strip(), end="\n\n")
        hydra.app_help("config", parser(), flags)
    elif flags.hydra_help:
        flags.overrides = []
        hydra.hydra_help("config", parser(), flags)
    elif flags.cfg:
        hydra.show_cfg("config", flags.overrides, flags.cfg, flags.package, flags.resolve)
    else:
        logging.raiseExceptions = False  # Hydra prints by logging; a closed pipe (| head) is no error
        hydra.show_info(flags.info, "config", flags.overrides)
