"""From the overrides of a command line to its runs. A command line that lists many is
composed once and then read from the user's cache, since composing a table takes longer
than the rest of a plan."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import make_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs.command.parser import COMPOSING_OPTIONS, read_command_line
from runs.config.composed import ComposedCommand, decode_command, encode_command
from runs.config.files import Files
from runs.machine.hashes import cached_value
from runs.record.configuration import ModelConfig
from runs.record.keys import is_own_setting
from runs.record.ledger import ROOT
from runs.run.definition import Run


def expand(arguments: Sequence[str]) -> list[Run]:
    """The runs of a command line's overrides and --config-dir, in order. Raises
    UserError for any mistake."""
    # without settings every KEY=VALUE is an override
    no_settings: Any = make_dataclass("NoSettings", ())
    line = read_command_line(
        arguments,
        no_settings,
        overrides_help="the runs",
        options=COMPOSING_OPTIONS,
        module=__name__,
    )
    return read_command(line.overrides, line.config_dir).runs


def read_command(
    overrides: Sequence[str], config_dir: str | None = None
) -> ComposedCommand:
    """The runs of overrides. A preset (experiment=) brings lists of its own; the
    command line's value for the same key wins. Raises UserError for any mistake."""
    files = Files(config_dir)
    if _is_cacheable(overrides, files):
        return _compose_once(overrides, files)
    # imported late, since it imports Hydra, which a cached command does not need
    from runs.config.cells import compose_command

    return compose_command(overrides, files)


def model_and_method(model: str, method: str) -> tuple[ModelConfig, dict[str, Any]]:
    """The configuration of a named model and a named method's own settings, for what
    needs no task."""
    # imported late, since it imports Hydra
    from runs.config.compose import Composer, to_plain

    with Composer(Files()) as composer:
        cfg = composer.compose((f"model={model}", f"method={method}"))
    settings = to_plain(cfg.method)
    own_settings = {
        key: value for key, value in settings.items() if is_own_setting(key)
    }
    return to_plain(cfg.model), own_settings


# --- composed commands in the user's cache, by the content of all that composing reads

#: What composing reads beside conf/: the checks, the keys, the sites
#: of peft, and the methods whose parameters a budget counts.
COMPOSING_SOURCES = (
    "runs/command/*.py",
    "runs/config/*.py",
    "runs/launchers/*.py",
    "runs/machine/*.py",
    "runs/record/*.py",
    "runs/models/*.py",
    "runs/run/*.py",
    "runs/tracking/*.py",
    "tasks/*.py",
    "vera/*.py",
    "vera/methods/*.py",
    "vera/methods/peft_sites.json",
)
#: Overrides that list several runs, or take long to compose.
WORTH_CACHING = re.compile(r"[,(]|^\+?experiment=|^budget=")
#: Text whose value may be another one tomorrow: an environment variable, the time, the
#: current folder, chance.
UNREPEATABLE = re.compile(r"\$\{\s*(oc\.env|now|hydra)\b|shuffle\(")


def _compose_once(overrides: Sequence[str], files: Files) -> ComposedCommand:
    """A composed command, from the cache where it has been composed before. Raises
    UserError for any mistake."""
    composed = list[ComposedCommand]()  # the command, if `compose` had to be called

    def compose() -> dict[str, Any]:
        """The command as JSON, for the cache. It also goes into `composed`."""
        from runs.config.cells import compose_command

        command = compose_command(overrides, files)
        composed.append(command)
        return encode_command(command)

    key = [
        version("hydra-core"),
        version("omegaconf"),
        str(Path.home()),  # for ~
        _hash_of_sources(),
        files.content_hash(),
        *overrides,
    ]
    values = cached_value("commands", key, compose)
    if composed:
        return composed[0]
    return decode_command(values)


def _is_cacheable(overrides: Sequence[str], files: Files) -> bool:
    """Whether a command line is worth caching, and composes the same runs until a file
    changes."""
    if not any(WORTH_CACHING.search(override) for override in overrides):
        return False
    texts = [*overrides]
    # no file of conf/ has such a text
    for folder in files.user_folders:
        texts += [path.read_text("utf-8") for path in folder.rglob("*.yaml")]
    return not any(UNREPEATABLE.search(text) for text in texts)


def _hash_of_sources() -> str:
    """A hash of the contents of COMPOSING_SOURCES."""
    digest = hashlib.sha256()
    for pattern in COMPOSING_SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()
