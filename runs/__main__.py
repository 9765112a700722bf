"""Runs experiments.

python -m runs model=roberta_base task=rte method=vera seed=3      one run
python -m runs task=rte,mrpc method=vera,lora seed=0,1,2           a sweep: every combination
python -m runs experiment=table2_base                              a preset: a whole table of the paper
python -m runs experiment=table2_base method=vera seed=0           part of it
python -m runs experiment=table2_base launcher=local               one process a device (or slurm, ray)
python -m runs experiment=table2_base method=vera redo=true        again, although there are records: these
                                                                   are set aside
python -m runs --cfg job task=cola                                 the configuration, without running
python -m runs --help task=mrpc                                    groups, keys and values, of this task

vera-bench is the same command under a name that a shell can complete (vera-bench -sc install=bash).
"""

import os
import pickle
import sys
from dataclasses import dataclass

from runs.command import Line, entry_point, help_of, read, setting
from runs.config import OPTIONS, Command, answered, read_command
from runs.errors import UserError, rank
from runs.run import with_starts
from runs.sweep.sweep import sweep
from runs.tracking import agent_note


@dataclass(frozen=True)
class Settings:
    """The settings of python -m runs that are no keys of the configuration."""

    sources: bool = setting(False, "with --cfg job: each value, and where it comes from")


def main(arguments: list[str]) -> int:
    if rank():  # of torchrun's processes the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    words = "groups, keys and values, as below; a list makes a sweep"
    line = read(arguments, Settings, overrides=words, options=OPTIONS)
    if answered(line, help_of(Settings, "", words, OPTIONS)):
        return 0
    if old := next((word for word in arguments if word.startswith("lease_seconds=")), None):
        raise UserError(
            f"{old}: there are no leases any more, since the kernel knows who lives. Leave it out"
        )
    command = _compose_once(line)
    again = command.runs if command.launch.redo else []  # without the runs that only others need
    runs = with_starts(command.runs)
    if note := agent_note(runs):
        print(note)
    return sweep(runs, launch=command.launch, again=again).exit_code


def _compose_once(line: Line[Settings]) -> Command:
    """The runs of a command line. Under torchrun the first process composes them, and the others get them
    through the store of torchrun's agent."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return read_command(line.overrides, line.config_dir)
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if not rank():
        composed = pickle.dumps(read_command(line.overrides, line.config_dir))
        store.set("vera-bench/command", composed)  # type: ignore[arg-type]
    command: Command = pickle.loads(store.get("vera-bench/command"))
    return command


def script() -> None:
    """The installed script vera-bench."""
    entry_point(main)


if __name__ == "__main__":
    script()
