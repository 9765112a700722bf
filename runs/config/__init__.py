"""From the files of conf/ and the overrides of a command line to runs."""

from runs.config.expand import WHERE, Command, expand, only_runs, read_command
from runs.config.files import GROUPS, choices, parts
from runs.config.flags import read_flags
from runs.config.help import answered
from runs.config.launch import Launch, Launcher, Local, Ray, Serial, Slurm
from runs.config.names import as_word
from runs.config.run import Run, run_from, starts, with_starts
from runs.record import CONF

__all__ = ["CONF", "GROUPS", "WHERE", "Command", "choices", "expand", "only_runs", "parts", "read_command"]
__all__ += ["Run", "answered", "as_word", "read_flags", "run_from", "starts", "with_starts"]
__all__ += ["Launch", "Launcher", "Local", "Ray", "Serial", "Slurm"]
