"""Lists the models, tasks and methods that you can name, with their labels.

vera-bench list models
vera-bench list methods --config-dir FOLDER
    also those of your own
"""

import re

import yaml

from runs.command.advice import require_known
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommonSettings,
    entry_point,
    read_command_line,
)
from runs.config.files import LISTED_GROUPS, Files

#: What can be listed, such as models, and the group that it is in, such as model.
GROUP_BY_KIND = {f"{group}s": group for group in LISTED_GROUPS}
#: In a label, a reference to another key of the same file.
REFERENCE_TO_KEY = re.compile(r"\$\{\w+\.(\w+)\}")


def main(arguments: list[str]) -> int:
    """Prints the names of a group."""
    line = read_command_line(
        arguments, CommonSettings, "KIND", options=COMPOSING_OPTIONS, module=__name__
    )
    kind = require_known("kind of name", line.positional[0], GROUP_BY_KIND)
    group = GROUP_BY_KIND[kind]
    files = Files(line.config_dir)
    names = files.choices(group)
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {label_of(files, group, name)}".rstrip())
    print(f"\n{group}=NAME chooses one; vera-bench --help {group}=NAME shows its keys")
    return 0


def label_of(files: Files, group: str, name: str) -> str:
    """The label in a group's file: its key `label`, or else the name of its class of
    peft without "Config". References to keys of the same file are filled in. "" where
    it has no label, or one that refers to other files, which only Hydra resolves."""
    content = content_of(files, group, name)
    label = str(content.get("label") or content.get("config_class") or "")
    label = label.removesuffix("Config")
    label = REFERENCE_TO_KEY.sub(
        lambda match: str(content.get(match[1], match[0])), label
    )
    return "" if "${" in label else label


def content_of(files: Files, group: str, name: str) -> dict[str, object]:
    """The keys of a file, and those that it inherits from files of the same group."""
    text = files.path(group, name).read_text(encoding="utf-8")
    content: dict[str, object] = yaml.safe_load(text)
    inherited = dict[str, object]()
    bases = content.get("defaults")
    for base in bases if isinstance(bases, list) else []:
        if isinstance(base, str) and base in files.choices(group):
            inherited |= content_of(files, group, base)
    return inherited | content


if __name__ == "__main__":
    entry_point(main)
