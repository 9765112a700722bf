"""From the files of conf/ and the words of a command line to runs."""

from runs.config.expand import Command, expand, read
from runs.config.files import CONF, GROUPS, choices, parts
from runs.config.flags import answered, read_flags
from runs.config.launch import Launch, Launcher, Local, Ray, Serial, Slurm, Tracking
from runs.config.names import as_word
from runs.config.run import Run, starts, with_starts

__all__ = [
    *(
        "CONF",
        "GROUPS",
        "Command",
        "Launch",
        "Launcher",
        "Local",
        "Ray",
        "Run",
        "Serial",
        "Slurm",
        "Tracking",
    ),
    *("answered", "as_word", "choices", "expand", "parts", "read", "read_flags", "starts", "with_starts"),
]
