"""Runs experiments.

python -m runs model=roberta_base task=rte method=vera seed=3      one run
python -m runs task=rte,mrpc method=vera,lora seed=0,1,2           a sweep: every combination
python -m runs experiment=table2_base                              a preset: a whole table of the paper
python -m runs experiment=table2_base method=vera seed=0           part of it
python -m runs experiment=table2_base launcher=local               one process a device (or slurm, ray)
python -m runs experiment=table2_base method=vera redo=true        again, although there are records: these
                                                                   are set aside
python -m runs rerun=0123456789ab                                  a run by its id, published or done here;
                                                                   python -m analysis.diff ID compares
python -m runs --cfg job task=cola                                 the configuration, without running
python -m runs --help task=mrpc                                    groups, keys and values, of this task

vera-bench is the same command under a name that a shell can complete (vera-bench -sc
install=bash)."""

import sys

from runs.fork_server import start_early

if __name__ == "__main__":
    start_early(sys.argv[1:])

import logging
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runs.command import (
    COMPOSING,
    Line,
    as_word,
    entry_point,
    find_record,
    open_ledger,
    read,
    setting,
)
from runs.config import CONF, GROUPS, Files, read_command
from runs.config.expand import read_grid
from runs.config.files import ERRORS, READS, dotted, row_word, without_hydra
from runs.errors import UserError, rank
from runs.identity import identify
from runs.record.keys import KEYS, PATH
from runs.record.override import Override
from runs.run import overrides_of, with_starts
from runs.sweep.sweep import dry_run, sweep
from runs.tracking import agent_note

_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_VERSION = f"vera-bench {version('vera-bench')}, Hydra {version('hydra-core')}"
#: Hydra's options.
OPTIONS: Mapping[tuple[str, ...], Mapping[str, Any]] = {
    ("-h", "--help"): {
        "action": "store_true",
        "help": "this text; with task=NAME, the keys of that choice",
    },
    ("-c", "--cfg"): {
        "choices": ("job", "hydra", "all"),
        "help": "print the configuration, and run nothing",
    },
    ("-p", "--package"): {
        "metavar": "KEY",
        "help": "with --cfg: a part of it, such as train",
    },
    ("--resolve",): {
        "action": "store_true",
        "help": "with --cfg: without interpolations",
    },
    ("-i", "--info"): {
        "choices": _INFO,
        "nargs": "?",
        "const": "all",
        "help": "what Hydra does",
    },
    **COMPOSING,
    ("-sc", "--shell-completion"): {
        "action": "store_true",
        "help": "install=bash (or zsh, fish)",
    },
    ("--hydra-help",): {"action": "store_true", "help": "Hydra's own help"},
    ("--version",): {
        "action": "version",
        "version": _VERSION,
        "help": "of this program and of Hydra",
    },
}


@dataclass(frozen=True)
class Settings:
    """The settings of python -m runs that are no keys of the configuration."""

    rerun: str | None = setting(
        None, "the id of a run, or its beginning: its overrides before those here"
    )
    sources: bool = setting(
        False, "with --cfg job: each value, and where it comes from"
    )


def main(arguments: list[str]) -> int:
    if rank():  # of torchrun's processes the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    # each of them composes: shuffle() gives all the same order
    if port := os.environ.get("MASTER_PORT"):
        random.seed(port)
    words = "groups, keys and values, as below; a list makes a sweep"
    line = read(arguments, Settings, overrides=words, options=OPTIONS)
    if line.settings.rerun is not None:
        line = repeated(line, line.settings.rerun)
    if answered(line):
        return 0
    command, wanted = read_command(line.overrides, line.config_dir), line.settings.rerun
    if (
        wanted
        and wanted not in (found := identify(command.runs, {}))
        and None not in found
    ):
        print(
            f"note: this is another run than {wanted}: its settings, data or model are others"
        )
    # without the runs that only others need
    again = command.runs if command.launch.redo else []
    runs = with_starts(command.runs)
    if command.launch.launcher.dry_run:
        print(dry_run(runs, command.launch.launcher))
        return 0
    if note := agent_note(runs):
        print(note)
    return sweep(runs, launch=command.launch, again=again).exit_code


def repeated(line: Line[Settings], name: str) -> Line[Settings]:
    """The line with the overrides of the run whose id begins with `name`, but for keys
    that it has itself. Raises UserError for an unknown run, or one whose overrides are
    not known."""
    given = {Override(text).key: Override(text).value for text in line.overrides}
    output = given.get("output", "outputs")
    record = find_record(open_ledger(output), name, output)
    if not (words := overrides_of(record)):
        where = f"{output}/runs/{record['id']}/overrides.yaml"
        raise UserError(
            f"run {record['id']}: its record is older than overrides in records. "
            f"See {where}"
        )
    kept = [word for word in words if Override(word).key not in given]
    for override in map(Override, kept):
        if missing := _missing_path(override):
            raise UserError(
                f"run {record['id']} read {missing}, which is not here: "
                f"add {override.key}=/where/it/is"
            )
    settings = replace(line.settings, rerun=record["id"])
    return replace(line, overrides=(*kept, *line.overrides), settings=settings)


def _missing_path(override: Override) -> str:
    """The local path that an override names, where nothing is there, else "". Published
    runs store only the last part of a path."""
    key = KEYS.get(override.key)
    path = override.unquoted_value
    is_path = key is not None and key.role == PATH and key.group in ("model", "task")
    if not is_path or path in ("null", "none") or path.startswith("hub:"):
        return ""
    return "" if Path(path).exists() else path


# --- the options that print something and run nothing (--cfg, --info, --help, ...)


def answered(line: Line[Settings]) -> bool:
    """Prints what an option asks for; returns whether there was one. Raises UserError
    for a mistake."""
    asked = line.options
    if (
        {"--package", "--resolve"} & asked.keys() or line.settings.sources
    ) and "--cfg" not in asked:
        raise UserError("--package, --resolve and sources=true are for --cfg job")
    if not asked.keys() - {"--config-dir", "--multirun"}:
        return False
    files = Files(line.config_dir)
    with files.hydra(whole=True) as hydra:
        try:
            if "--shell-completion" in asked:
                hydra.shell_completion("config", [*line.overrides])
            elif "--hydra-help" in asked:
                hydra.hydra_help(
                    "config", get_args_parser(), get_args_parser().parse_args([])
                )
            else:
                _print(line, files, hydra)
        except ERRORS as error:
            raise UserError(
                f"{' '.join(asked)}: {' '.join(str(error).split())}"
            ) from None
    return True


def _print(line: Line[Settings], files: Files, hydra: Any) -> None:
    """What is printed of the first run of a command line."""
    (cells, seeds, _), asked = read_grid(line.overrides, files), line.options
    package = asked.get("--package")
    if (count := len(cells) * len(seeds)) > 1 and "--help" not in asked and rank() == 0:
        print(f"note: of {count} runs the first one", file=sys.stderr)
    overrides = (*cells[0], *filter(None, seeds[:1]))
    if "--cfg" in asked:  # what a run would refuse is refused here, too
        read_command(overrides, line.config_dir)
    cfg = files.compose(overrides)
    # for Hydra to print: with the recipe as its row sees it
    hydra.compose_config = lambda *_, **__: cfg
    if (
        package not in (None, "_global_")
        and OmegaConf.select(cfg, package, default=files) is files
    ):
        raise files.no_key(package, ())
    if "--info" in asked:
        # Hydra prints by logging; a closed pipe (| head) is no error
        logging.raiseExceptions = False
        hydra.show_info(asked["--info"], "config", [*overrides])
    elif line.settings.sources:
        found = dict(
            _sources(cfg, line.overrides, overrides, files, hydra.config_loader)
        )
        shown = [
            word
            for word in found
            if word.startswith((f"{package}.", f"{package}=") if package else "")
        ]
        width = max(map(len, shown), default=0)
        print(*(f"{word:<{width}}  {found[word]}" for word in shown), sep="\n")
    else:
        if "--help" in asked:
            names = (
                f"  {group}: {', '.join(files.choices(group))}"
                for group in GROUPS
                if group != "recipe"
            )
            print(
                line.help,
                "Groups (GROUP=NAME):",
                *names,
                "\nConfiguration (KEY=VALUE):",
                sep="\n",
            )
        hydra.show_cfg(
            "config", [], asked.get("--cfg", "job"), package, "--resolve" in asked
        )


def _sources(
    cfg: DictConfig,
    typed: tuple[str, ...],
    overrides: tuple[str, ...],
    files: Files,
    loader: Any,
) -> Iterator[tuple[str, str]]:
    """Each value as KEY=VALUE, and where it comes from: the command line, a file, or a
    place in a recipe."""
    choices, place = cfg.hydra.runtime.choices, dict[str, str]()
    typed_keys = {Override(text).key for text in typed}
    words = [word for word in overrides if not word.startswith("recipe=")]
    words += [f"recipe={choices.recipe}"] if cfg.get("recipe") else []
    # a later one wins
    for one in loader.compute_defaults_list("config", words, RunMode.RUN).defaults:
        read = loader.repository.load_config(one.config_path)
        file = f"{read.path}/{one.config_path}.yaml".removeprefix("file://").replace(
            f"{CONF}/", "conf/"
        )
        file = "runs/config/schema.py" if one.config_path == "schema" else file
        within = "" if one.package in ("", "_global_", None) else f"{one.package}."
        content: Any = OmegaConf.to_container(read.config)
        place |= {f"{within}{key}": file for key, _ in dotted(content)}
    for word in overrides:
        preset = f"conf/experiment/{choices.get('experiment')}.yaml"
        place[Override(word).key] = (
            "the command line" if Override(word).key in typed_keys else preset
        )
    values = dict(dotted(without_hydra(cfg, resolve=True)))
    for key, raw in dotted(without_hydra(cfg, resolve=False)):
        if isinstance(raw, dict) or key.startswith("recipe."):
            continue
        asked = READS.search(str(raw))
        parts = (f"by_task.{asked[1]}.{cfg.task.name}", asked[1]) if asked else ()
        in_recipe = (*(f"by_row.{row_word(cfg)}.{part}" for part in parts), *parts)
        found = next((part for part in in_recipe if f"recipe.{part}" in place), None)
        where = f"{place[f'recipe.{found}']}: {found}" if found else f"{place.get(key)}"
        yield (
            f"{key}={as_word(values[key])}",
            where + (f": {raw}" if "${" in str(raw) and not found else ""),
        )


def script() -> None:
    """The installed script vera-bench."""
    entry_point(main)


if __name__ == "__main__":
    script()
