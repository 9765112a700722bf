"""From the overrides of a command line to its runs."""

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any

from runs.command.parser import COMPOSING, read
from runs.config.files import Files
from runs.config.kept import kept_command
from runs.config.schema import Launch
from runs.record.configuration import ModelConfig
from runs.record.keys import is_own_setting
from runs.run.definition import Run


@dataclass(frozen=True)
class Command:
    """A command line, read: its runs in order, and where and how they are done.

    left_out: a sentence for each cell without a setting for its budget."""

    runs: list[Run]
    launch: Launch
    left_out: list[str]


def expand(arguments: Sequence[str]) -> list[Run]:
    """The runs of a command line's overrides and --config-dir, in order. Raises
    UserError for any mistake."""
    no_settings: Any = make_dataclass("NoSettings", ())  # all words are overrides
    line = read(
        arguments, no_settings, overrides="the runs", options=COMPOSING, module=__name__
    )
    return read_command(line.overrides, line.config_dir).runs


def read_command(overrides: Sequence[str], config_dir: str | None = None) -> Command:
    """The runs of overrides. A preset (experiment=) brings lists of its own; the
    command line's value for the same key wins. Raises UserError for any mistake."""
    return Command(*kept_command(overrides, Files(config_dir)))


def parts(model: str, method: str) -> tuple[ModelConfig, dict[str, Any]]:
    """A model's configuration and a method's own settings, for what needs no task."""
    # Hydra is imported with it
    from runs.config.compose import Composer, plain

    with Composer(Files()) as composer:
        cfg = composer.compose((f"model={model}", f"method={method}"))
    settings = plain(cfg.method)
    own = {key: value for key, value in settings.items() if is_own_setting(key)}
    return plain(cfg.model), own
