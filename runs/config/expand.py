"""From the overrides of a command line to its runs, of which those of a list are kept
in the user's cache. Composing a table takes longer than all else that a plan does."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from runs.command.parser import COMPOSING_OPTIONS, read_command_line
from runs.config.files import Files
from runs.config.schema import Launch
from runs.machine.hashes import kept_in_cache
from runs.record.configuration import Configuration, ModelConfig
from runs.record.keys import is_own_setting
from runs.record.ledger import ROOT
from runs.record.override import Override
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
    line = read_command_line(
        arguments,
        no_settings,
        overrides="the runs",
        options=COMPOSING_OPTIONS,
        module=__name__,
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
    own_settings = {
        key: value for key, value in settings.items() if is_own_setting(key)
    }
    return plain(cfg.model), own_settings


# --- composed runs, kept in the user's cache by the content of all that composing reads

#: What composing reads beside conf/: the checks, the keys, the sites
#: of peft, and the methods whose parameters a budget counts.
SOURCES = (
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
#: What lists several runs, or takes long to compose.
LISTING = re.compile(r"[,(]|^\+?experiment=|^budget=")
#: What may give another value tomorrow: an environment variable, the time, the folder,
#: chance.
CHANGING = re.compile(r"\$\{\s*(oc\.env|now|hydra)\b|shuffle\(")


def kept_command(
    overrides: Sequence[str], files: Files
) -> tuple[list[Run], Launch, list[str]]:
    """The runs of a command line, where they are done, and why cells were left out:
    from the cache where they are several and have been composed before. Raises
    UserError for any mistake."""
    # the import waits for Hydra
    if not _is_kept(overrides, files):
        from runs.config.cells import compose_command

        return compose_command(overrides, files)
    composed = list[tuple[list[Run], Launch, list[str]]]()

    def compose() -> dict[str, Any]:
        from runs.config.cells import compose_command

        composed.append(compose_command(overrides, files))
        return encode_runs(*composed[0])

    key = [
        version("hydra-core"),
        version("omegaconf"),
        str(Path.home()),  # for ~
        _content_of_sources(),
        files.content(),
        *overrides,
    ]
    values = kept_in_cache("commands", key, compose)
    return composed[0] if composed else decode_runs(values)


def _is_kept(overrides: Sequence[str], files: Files) -> bool:
    """Whether a command line may have several runs, and composes the same ones until a
    file changes."""
    if not any(LISTING.search(override) for override in overrides):
        return False
    texts = [*overrides]
    for folder in files.folders[1:]:
        texts += [path.read_text("utf-8") for path in folder.rglob("*.yaml")]
    return not any(CHANGING.search(text) for text in texts)


def _content_of_sources() -> str:
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# --- runs as JSON

#: The fields of a run that are JSON as they are.
PLAIN = ("row", "model", "task", "seed", "recipe", "experiment", "overrides")


class _Parts:
    """The parts of configurations, each once: the runs of a table share most."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts = [*texts]
        self._numbers = {text: number for number, text in enumerate(texts)}

    def add(self, part: Any) -> int:
        """The number of a part."""
        text = json.dumps(part)
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]

    def get(self, number: int) -> Any:
        """A part by its number: a copy of its own, as each run has it."""
        return json.loads(self.texts[number])


def encode_runs(
    runs: Sequence[Run], launch: Launch, left_out: Sequence[str]
) -> dict[str, Any]:
    """What a command line means, as JSON."""
    parts = _Parts()
    encoded = [_encode_run(run, parts) for run in runs]
    return {
        "launch": launch.model_dump(mode="json", exclude_unset=True),
        "parts": parts.texts,
        "runs": encoded,
        "left_out": [*left_out],
    }


def decode_runs(values: dict[str, Any]) -> tuple[list[Run], Launch, list[str]]:
    """What `encode_runs` was given."""
    parts = _Parts(values["parts"])
    runs = [_decode_run(fields, parts) for fields in values["runs"]]
    return runs, Launch.model_validate(values["launch"]), values["left_out"]


def _encode_run(run: Run, parts: _Parts) -> dict[str, Any]:
    fields = {name: getattr(run, name) for name in PLAIN}
    fields["config"] = {key: parts.add(part) for key, part in run.config.items()}
    fields["changed"] = [override.text for override in run.changed]
    fields["start"] = run.start and _encode_run(run.start, parts)
    return fields


def _decode_run(fields: dict[str, Any], parts: _Parts) -> Run:
    start = fields["start"]
    config = {key: parts.get(number) for key, number in fields["config"].items()}
    return Run(
        **{name: fields[name] for name in PLAIN},
        config=cast(Configuration, config),
        changed=[Override(text) for text in fields["changed"]],
        start=_decode_run(start, parts) if start else None,
    )
