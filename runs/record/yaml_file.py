"""YAML files of the project."""

from pathlib import Path
from typing import Any

import yaml

#: libyaml reads a file eight times as fast; a PyYAML built without it has the other.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
