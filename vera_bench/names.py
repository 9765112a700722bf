"""The models, tasks and methods that vera-bench has, with their labels.

vera-bench list models
vera-bench list methods --config-dir FOLDER   and those of your own"""

from typing import Any

import yaml

from runs.command import COMPOSING, Common, entry_point, one_of, read
from runs.config.files import LISTED, Files

#: What can be listed, by its group.
KINDS = {f"{group}s": group for group in LISTED}


def main(arguments: list[str]) -> int:
    """Prints the names of a group."""
    line = read(arguments, Common, "KIND", options=COMPOSING, module=__name__)
    group = KINDS[one_of("kind of name", line.names[0], KINDS)]
    files = Files(line.config_dir)
    names = files.choices(group)
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {label_of(files, group, name)}".rstrip())
    print(f"\n{group}=NAME chooses one; vera-bench --help {group}=NAME shows its keys")
    return 0


def label_of(files: Files, group: str, name: str) -> str:
    """The label in a file, or in the file of the same group that it begins with; "" for
    one that has none before it is composed."""
    content: dict[str, Any] = yaml.safe_load(
        files.path(group, name).read_text(encoding="utf-8")
    )
    label = content.get("label")
    if label and "${" not in str(label):
        return str(label)
    for base in content.get("defaults", []):
        if isinstance(base, str) and base in files.choices(group):
            return label_of(files, group, base)
    return ""


if __name__ == "__main__":
    entry_point(main)
