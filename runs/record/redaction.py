"""Records without the local paths of the machine that made them: what is published, and
what is sent to W&B."""

import re
from pathlib import Path

from runs.record.keys import KEYS, PATH, names_with_role
from runs.record.override import Override
from runs.record.schema import Record

#: What a published record has in place of the folder that its run was written to.
PUBLISHED_OUTPUT = "outputs"


def without_paths(record: Record) -> Record:
    """The record with only the last part of local paths (runs/record/keys.py says which
    keys hold some): where files lay is private, and proves nothing."""
    config = dict(record["config"])
    for group in ("model", "task"):
        paths = names_with_role(PATH, group)
        config[group] = {
            key: _name(value) if key in paths and value else value
            for key, value in config[group].items()
        }
    start = record.get("start")
    if config.get("init_from"):
        config["init_from"] = _name(config["init_from"])
    if start:
        start = {**start, "from": config["init_from"]}
    config["output"] = PUBLISHED_OUTPUT
    clean = {
        "error": hide_paths(record.get("error")),
        "tries": [*map(hide_paths, record.get("tries", []))],
    }
    if "overrides" in record:
        clean["overrides"] = [*map(_without_path, record["overrides"])]
    return {**record, "config": config, "start": start, **clean}


def _without_path(text: str) -> str:
    override = Override(text)
    key = KEYS.get(override.key)
    if key is None or key.role != PATH:
        return text
    return override.with_value(_name(override.unquoted_value)).text


def _name(path: str) -> str:
    """The last part of a local path; a file on the hub (tasks/forgetting.py) keeps its
    name."""
    return path if path.startswith("hub:") else Path(path).name


#: A path in an error: an absolute one, or one that begins with . or ~.
_PATH = re.compile(r"(?<![\w/:.~])[.~]*/(?:[^\s/:;,'\"()]+/)*([^\s/:;,'\"()]*)")


def hide_paths(words: str | None) -> str | None:
    """An error with only the last part of each local path."""
    return words and _PATH.sub(r"\1", words)
