"""From the files of conf/ and the overrides of a command line to runs."""

from runs.config.composed import ComposedCommand
from runs.config.expand import expand, model_and_method, read_command
from runs.config.files import GROUPS, Files
from runs.config.schema import LAUNCH_KEYS, Launch
from runs.record.ledger import CONF
