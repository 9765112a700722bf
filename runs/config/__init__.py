"""From the files of conf/ and the overrides of a command line to runs."""

from runs.config.expand import Command, expand, parts, read_command
from runs.config.files import GROUPS, Files
from runs.config.schema import WHERE, Launch
from runs.record.ledger import CONF
