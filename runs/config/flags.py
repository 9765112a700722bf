"""The options of a command that composes runs, with Hydra's names."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from runs.errors import UserError

#: Hydra's options that are refused, and what to use instead.
REFUSED = {
    "config_name": "--config-name: there is one, conf/config.yaml. experiment=NAME chooses a preset of it",
    "config_path": "--config-path: the files of conf/ stay. --config-dir FOLDER adds others",
    "experimental_rerun": "--experimental-rerun: a run's words are in runs/ID/overrides.yaml of the output"
    " folder, and redo=true does it again",
    "run": "--run: leave it out. One value for each key is one run",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = f"no option {unknown}; settings are KEY=VALUE, such as output=FOLDER"
        raise UserError(f"{message} (python -m runs --help)")


def parser() -> argparse.ArgumentParser:
    """The parser of Hydra's options and of overrides."""
    options = _Parser(add_help=False, allow_abbrev=False)
    add = options.add_argument
    add("overrides", nargs="*", help="KEY=VALUE, or KEY=a,b for a sweep")
    add("-h", "--help", action="store_true", help="this text")
    add("-c", "--cfg", choices=("job", "hydra", "all"), help="print the configuration, and run nothing")
    add("-p", "--package", help="with --cfg: a part of it, such as train")
    add("--resolve", action="store_true", help="with --cfg: without interpolations")
    infos = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    add("-i", "--info", nargs="?", const="all", choices=infos, help=f"what Hydra does: {', '.join(infos)}")
    add("-cd", "--config-dir", metavar="FOLDER", help="presets, rows, models and tasks from elsewhere, too")
    add("-m", "--multirun", action="store_true", help="accepted, and not needed: a list makes a sweep")
    add("-sc", "--shell-completion", action="store_true", help="install=bash (zsh, fish) or uninstall=bash")
    add("--hydra-help", action="store_true", help="Hydra's own help")
    add("--version", action="store_true", help="of this program and of Hydra")
    refused = "not taken here; says what is"
    add("-r", "--run", action="store_true", help=refused)
    for name in ("-cn/--config-name", "-cp/--config-path", "--experimental-rerun"):
        add(*name.split("/"), nargs="?", const="", help=refused)
    return options


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The options and overrides of a command line. Raises UserError for an option that is unknown or
    refused."""
    flags = parser().parse_intermixed_args(list(arguments))
    for name, why in REFUSED.items():
        if getattr(flags, name) not in (None, False):
            raise UserError(why)
    if (flags.package or flags.resolve) and not flags.cfg:
        raise UserError("--package and --resolve are for --cfg job")
    return flags
