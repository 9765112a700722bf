"""Trains a model with a method on a task, and records the result.

vera-bench model=roberta_base task=rte method=vera seed=3  one run
vera-bench task=rte,mrpc method=vera,lora seed=0,1,2       every combination
vera-bench experiment=table2_base                          a table of the paper
vera-bench experiment=table2_base launcher=local           a process a device
vera-bench experiment=table2_base redo=true                train it again
vera-bench rerun=0123456789ab                              a run by its id
vera-bench --cfg job task=cola                             the configuration
vera-bench --help task=mrpc                                the keys of a choice

redo=true archives the old records. launcher= also knows slurm and ray. rerun= takes
a published run, too; overrides beside it replace the run's own.
"""

import sys

from runs.machine.processes import start_early

if __name__ == "__main__":
    start_early(sys.argv[1:])

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs.command.errors import UserError, process_rank
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommandLine,
    entry_point,
    read_command_line,
    setting,
)
from runs.command.records import find_record, open_ledger
from runs.config import Files, read_command
from runs.launchers.contract import ByScript
from runs.record.keys import KEYS, PATH
from runs.record.override import Override
from runs.run.definition import Run, overrides_of, with_starts
from runs.run.identity import identify
from runs.sweep.sweep import dry_run, sweep
from runs.tracking.tracker import agent_note

_INFO_KINDS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_VERSION = f"vera-bench {version('vera-bench')}, Hydra {version('hydra-core')}"
#: Hydra's options, and --version, as argparse's add_argument takes them.
OPTIONS: Mapping[tuple[str, ...], Mapping[str, Any]] = {
    ("-h", "--help"): {
        "action": "store_true",
        "help": "this text; with task=NAME, its keys",
    },
    ("-c", "--cfg"): {
        "choices": ("job", "hydra", "all"),
        "metavar": "PART",
        "help": "print it (job, hydra or all); run nothing",
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
        "choices": _INFO_KINDS,
        "nargs": "?",
        "const": "all",
        "metavar": "KIND",
        "help": "what Hydra does, such as defaults-tree",
    },
    **COMPOSING_OPTIONS,
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
    """The settings of a command that are no keys of the configuration."""

    rerun: str | None = setting(None, "the id of a run to repeat, or its beginning")
    sources: bool = setting(False, "with --cfg job: each value and its source")


def main(arguments: list[str]) -> int:
    if process_rank():  # of torchrun's processes the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    # each of torchrun's processes composes the runs, and shuffle() must give all of
    # them one order: the port is a seed that they have in common
    port = os.environ.get("MASTER_PORT")
    if port:
        random.seed(port)
    line = read_command_line(
        arguments,
        Settings,
        overrides_help="groups, keys and values, as below; a list makes a sweep",
        options=OPTIONS,
    )
    repeated_id = ""
    if line.settings.rerun is not None:
        line, repeated_id = with_overrides_of(line, line.settings.rerun)
    if _print_for_options(line):
        return 0
    command = read_command(line.overrides, line.config_dir)
    for note_on_cell in command.notes:
        print(note_on_cell, file=sys.stderr)
    if repeated_id:
        _note_if_another_run(command.runs, repeated_id)
    # redo=true does not repeat the runs that with_starts adds
    runs_to_repeat = command.runs if command.launch.redo else []
    runs = with_starts(command.runs)
    launcher = command.launch.launcher
    if isinstance(launcher, ByScript) and launcher.dry_run:
        print(dry_run(runs, launcher))
        return 0
    note = agent_note(runs)
    if note:
        print(note)
    return sweep(runs, command.launch, runs_to_repeat).exit_code


def with_overrides_of(
    line: CommandLine[Settings], name: str
) -> tuple[CommandLine[Settings], str]:
    """The line with the overrides of the run whose id begins with `name`, but for keys
    that it has itself; and the whole id. Raises UserError for an unknown run, or one
    whose overrides are not known."""
    typed = [Override(text) for text in line.overrides]
    typed_values = {override.key: override.value for override in typed}
    output = typed_values.get("output", "outputs")
    record = find_record(open_ledger(output), name, output)
    run_id = str(record["id"])
    overrides = overrides_of(record)
    if not overrides:
        raise UserError(
            f"run {run_id}: its record is older than overrides in records. See "
            f"{output}/runs/{run_id}/overrides.yaml"
        )
    repeated = []
    for override in map(Override, overrides):
        if override.key in typed_values:
            continue
        missing = _missing_path(override)
        if missing:
            raise UserError(
                f"run {run_id} read {missing}, which is not here: "
                f"add {override.key}=/where/it/is"
            )
        repeated.append(str(override))
    return replace(line, overrides=(*repeated, *line.overrides)), run_id


def _missing_path(override: Override) -> str:
    """The local path of a model or of data that an override names and that does not
    exist; "" for any other override. A published run may have a path that existed on
    another machine, of which only the last part is published."""
    key = KEYS.get(override.key)
    path = override.unquoted_value
    is_path = key is not None and key.role == PATH and key.group in ("model", "task")
    # null and none name no file, and hub:... one of the hub
    if not is_path or path in ("null", "none") or path.startswith("hub:"):
        return ""
    return "" if Path(path).exists() else path


def _note_if_another_run(runs: list[Run], repeated_id: str) -> None:
    """Prints a note if none of the composed runs has the id that should be repeated."""
    # a run's id is None where it is not known yet. The problems are dropped here, since
    # the sweep shows them
    ids = identify(runs, problems={})
    if repeated_id not in ids and None not in ids:
        print(
            f"note: this is another run than {repeated_id}: its settings, data or model "
            "are others"
        )


def _print_for_options(line: CommandLine[Settings]) -> bool:
    """Prints what an option such as --cfg asks for, in place of any run. Returns whether
    there was one. Raises UserError for a mistake."""
    options = line.options
    sources = line.settings.sources
    needs_cfg = sources or "--package" in options or "--resolve" in options
    if needs_cfg and "--cfg" not in options:
        raise UserError("--package, --resolve and sources=true are for --cfg job")
    # these two say how runs are composed, and ask for no print
    if not options.keys() - {"--config-dir", "--multirun"}:
        return False
    # imports Hydra
    from runs.config import shown

    files = Files(line.config_dir)
    if "--shell-completion" in options:
        shown.show_completion(line.overrides)
    elif "--hydra-help" in options:
        shown.print_by_hydra(["--hydra-help"])
    elif "--cfg" in options:
        shown.show_configuration(
            line.overrides, options, files, line.config_dir, sources
        )
    elif "--info" in options:
        shown.show_info(options["--info"], line.overrides, files)
    else:
        shown.show_help(line.help, line.overrides, files)
    return True


def script() -> None:
    """What `python -m runs` does."""
    entry_point(main)


if __name__ == "__main__":
    script()
