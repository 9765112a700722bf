"""From the files of conf/ and the overrides of a command line to runs."""

from runs.config.expand import WHERE, Command, expand, only_runs, read_command
from runs.config.files import GROUPS, choices, keys_of_recipes, parts, recipe_by_row
from runs.config.flags import read_flags
from runs.config.help import answered
from runs.config.launch import Launch, Launcher, Local, Serial
from runs.config.names import as_word
from runs.record import CONF
