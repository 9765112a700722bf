"""What a command line composes to, and the same as JSON for the user's cache."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from runs.config.schema import Launch
from runs.record.configuration import Configuration
from runs.record.override import Override
from runs.run.definition import Run

#: The fields of a run that are JSON as they are.
JSON_FIELDS = ("row", "model", "task", "seed", "recipe", "experiment", "overrides")


@dataclass(frozen=True)
class ComposedCommand:
    """A command line, composed.

    Attributes:
        runs: Its runs in order.
        launch: Where and how they are done.
        notes: What to know of cells: which have no setting for their budget, and which
            rates a rule has chosen.
    """

    runs: list[Run]
    launch: Launch
    notes: list[str]


class _PartTable:
    """The parts of configurations as JSON, each once: a command's runs share most of
    them. A part is known by its number. texts: the parts in the order of their
    numbers."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts = [*texts]
        self._numbers = {text: number for number, text in enumerate(texts)}

    def add(self, part: Any) -> int:
        """Adds a part, unless it is there. Returns its number."""
        text = json.dumps(part)
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]

    def get(self, number: int) -> Any:
        """A new copy of the part with this number, since each run has its own."""
        return json.loads(self.texts[number])


def encode_command(command: ComposedCommand) -> dict[str, Any]:
    """A composed command as JSON."""
    parts = _PartTable()
    encoded_runs = [_encode_run(run, parts) for run in command.runs]
    return {
        "launch": command.launch.model_dump(mode="json", exclude_unset=True),
        "parts": parts.texts,
        "runs": encoded_runs,
        "notes": command.notes,
    }


def decode_command(values: dict[str, Any]) -> ComposedCommand:
    """The command that `encode_command` was given."""
    parts = _PartTable(values["parts"])
    return ComposedCommand(
        runs=[_decode_run(fields, parts) for fields in values["runs"]],
        launch=Launch.model_validate(values["launch"]),
        notes=values["notes"],
    )


def _encode_run(run: Run, parts: _PartTable) -> dict[str, Any]:
    """A run as JSON. Its configuration becomes numbers of `parts`."""
    fields = {name: getattr(run, name) for name in JSON_FIELDS}
    fields["config"] = {key: parts.add(part) for key, part in run.config.items()}
    fields["changed"] = [override.text for override in run.changed]
    fields["start"] = run.start and _encode_run(run.start, parts)
    return fields


def _decode_run(fields: dict[str, Any], parts: _PartTable) -> Run:
    """The run that `_encode_run` was given."""
    start = fields["start"]
    config = {key: parts.get(number) for key, number in fields["config"].items()}
    return Run(
        **{name: fields[name] for name in JSON_FIELDS},
        config=cast(Configuration, config),
        changed=[Override(text) for text in fields["changed"]],
        start=_decode_run(start, parts) if start else None,
    )
