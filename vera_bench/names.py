"""Lists the models, tasks and methods that you can name, with their labels.

vera-bench list models
vera-bench list methods --config-dir FOLDER
    also those of your own
"""

import re

import yaml

from runs.command.parser import COMPOSING, Common, entry_point, one_of, read
from runs.config.files import LISTED, Files

#: What can be listed, by its group.
KINDS = {f"{group}s": group for group in LISTED}
#: In a label, a reference to another key of the same file.
REFERENCE_TO_KEY = re.compile(r"\$\{\w+\.(\w+)\}")


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
    """The label in a file, with its references to keys of this file filled in; "" where
    other references are left, which only composing resolves."""
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
