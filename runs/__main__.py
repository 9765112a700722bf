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

vera-bench is the same command under a name that a shell can complete (vera-bench -sc install=bash).
"""

import sys

from runs.fork_server import start_early

if __name__ == "__main__":
    start_early(sys.argv[1:])

import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

from runs.command import Line, entry_point, find_record, open_ledger, read, setting
from runs.config import OPTIONS, Command, answered, read_command
from runs.errors import UserError, rank
from runs.identity import identify
from runs.overrides import overrides_of
from runs.run import with_starts
from runs.sweep.sweep import sweep
from runs.tracking import agent_note

#: Of a published run these have a name, and no longer the path of the machine that did it.
LOCAL = ("model.path", "task.data_dir", "task.train_file", "task.dev_file", "task.mt_bench_dir")


@dataclass(frozen=True)
class Settings:
    """The settings of python -m runs that are no keys of the configuration."""

    rerun: str | None = setting(None, "the id of a run, or its beginning: its overrides before those here")
    sources: bool = setting(False, "with --cfg job: each value, and where it comes from")


def main(arguments: list[str]) -> int:
    if rank():  # of torchrun's processes the first one speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    words = "groups, keys and values, as below; a list makes a sweep"
    line = read(arguments, Settings, overrides=words, options=OPTIONS)
    if line.settings.rerun is not None:
        line = repeated(line, line.settings.rerun)
    if answered(line):
        return 0
    if old := next((word for word in arguments if word.startswith("lease_seconds=")), None):
        raise UserError(
            f"{old}: there are no leases any more, since the kernel knows who lives. Leave it out"
        )
    command, wanted = _compose_once(line), line.settings.rerun
    if wanted and wanted not in (found := identify(command.runs, {})) and None not in found:
        print(f"note: this is another run than {wanted}: its settings, data or model are others")
    again = command.runs if command.launch.redo else []  # without the runs that only others need
    runs = with_starts(command.runs)
    if note := agent_note(runs):
        print(note)
    return sweep(runs, launch=command.launch, again=again).exit_code


def repeated(line: Line[Settings], name: str) -> Line[Settings]:
    """The line with the overrides of the run whose id begins with `name`, but for keys that it has itself.
    Raises UserError for an unknown run, or one whose overrides are not known."""
    given = {word.lstrip("+~").partition("=")[0]: word.partition("=")[2] for word in line.overrides}
    output = given.get("output", "outputs")
    record = find_record(open_ledger(output), name, output)
    if not (words := overrides_of(record)):
        where = f"{output}/runs/{record['id']}/overrides.yaml"
        raise UserError(f"run {record['id']}: its record is older than overrides in records. See {where}")
    kept = [word for word in words if word.lstrip("+~").partition("=")[0] not in given]
    for key, _, path in (word.partition("=") for word in kept):
        if key in LOCAL and path != "null" and not Path(path.strip("'\"")).exists():
            raise UserError(f"run {record['id']} read {path}, which is not here: add {key}=/where/it/is")
    settings = replace(line.settings, rerun=record["id"])
    return replace(line, overrides=(*kept, *line.overrides), settings=settings)


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
