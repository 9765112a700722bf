"""From the files of conf/ and the overrides of a command line to runs."""

from runs.config.expand import WHERE, Command, expand, only_runs, read_command
from runs.config.files import GROUPS, Files, choices, parts, recipe_keys
from runs.config.launch import Launch, Launcher, Local, Serial
from runs.config.show import OPTIONS, answered
from runs.record import CONF
