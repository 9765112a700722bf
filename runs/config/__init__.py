"""From the files of conf/ and the overrides of a command line to runs."""

from runs.config.expand import WHERE, Command, expand, read_command
from runs.config.files import GROUPS, Files, parts
from runs.config.schema import Launch, Launcher
from runs.record import CONF
