"""Records without the local paths of the machine that made them: what is published, and
what is sent to W&B."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from runs.record.configuration import Configuration, ModelConfig, TaskConfig
from runs.record.keys import KEYS, PATH, names_with_role
from runs.record.override import Override
from runs.record.schema import Record

#: What a published record has in place of the folder that its run was written to.
PUBLISHED_OUTPUT = "outputs"


def without_paths(record: Record) -> Record:
    """A copy of the record with only the last part of local paths (runs/record/keys.py
    says which keys hold some): where files lay is private, and proves nothing."""
    clean = record.copy()
    clean["config"] = config_without_paths(record["config"])
    start = record.get("start")
    if start:
        start = {**start, "from": clean["config"].get("init_from") or ""}
    clean["start"] = start
    error = record.get("error")
    clean["error"] = hide_paths(error) if error else None
    clean["tries"] = [hide_paths(end) for end in record.get("tries", [])]
    if "overrides" in record:
        clean["overrides"] = [_shorten_override(text) for text in record["overrides"]]
    return clean


def config_without_paths(config: Configuration) -> Configuration:
    """A copy of the configuration with only the last part of local paths."""
    clean = config.copy()
    clean["model"] = cast(ModelConfig, _shorten_paths("model", config["model"]))
    clean["task"] = cast(TaskConfig, _shorten_paths("task", config["task"]))
    source = config.get("init_from")
    if source:
        clean["init_from"] = _last_part(source)
    clean["output"] = PUBLISHED_OUTPUT
    return clean


def _shorten_paths(group: str, values: Mapping[str, object]) -> dict[str, object]:
    """The values of a group of the configuration, such as task, with only the last part
    of local paths."""
    clean = dict(values)
    for key in names_with_role(PATH, group):
        path = values.get(key)
        if path:
            clean[key] = _last_part(str(path))
    return clean


def _shorten_override(text: str) -> str:
    """An override with only the last part of its value, if that is a local path."""
    override = Override(text)
    key = KEYS.get(override.key)
    if key is None or key.role != PATH:
        return text
    return override.with_value(_last_part(override.unquoted_value)).text


def _last_part(path: str) -> str:
    """The last part of a local path. The name of a file on the hub, hub:..., stays whole
    (tasks/forgetting.py)."""
    return path if path.startswith("hub:") else Path(path).name


#: A path in an error: an absolute one, or one that begins with . or ~. The group is its
#: last part.
_PATH = re.compile(r"(?<![\w/:.~])[.~]*/(?:[^\s/:;,'\"()]+/)*([^\s/:;,'\"()]*)")


def hide_paths(text: str) -> str:
    """An error with only the last part of each local path."""
    return _PATH.sub(r"\1", text)
