"""The files of the configuration: the groups and names in conf/ and in a folder of the
user's own (--config-dir). What Hydra composes of them: runs/config/compose.py."""

import hashlib
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import yaml

from runs.command.advice import did_you_mean
from runs.command.errors import UserError
from runs.config.schema import BASE
from runs.record.ledger import CONF
from runs.record.override import Override

#: The groups of a run; launcher and tracking are those of a command, and say where and
#: how its runs are done.
GROUPS = ("model", "task", "method", "recipe", "experiment", "launcher", "tracking")
#: Mappings that `+` may add any key to: other libraries, or checks of our own, read them
#: as a whole.
OPEN_MAPPINGS = (
    "method.config",
    "model.settings",
    "model.chat",
    "train.lr_by",
    "train.decay_by",
    "launcher.init",
    "launcher.remote",
    "launcher.additional_parameters",
)
#: The groups whose names `vera-bench list` shows.
LISTED_GROUPS = ("model", "task", "method")
#: Where a file reads a key of the recipe, as ${recipe:KEY}.
RECIPE_REFERENCE = re.compile(r"\$\{recipe:([a-z_0-9]+)")


class Files:
    """The files of conf/, and of a folder of the user's own, which has the same groups
    and other names."""

    def __init__(self, config_dir: str | None = None) -> None:
        """Raises UserError where the user's folder is missing, or has a file of the same
        name as one in conf/ and with other content."""
        #: The folder of --config-dir; none without it.
        self.user_folders = list[Path]()
        if config_dir is not None:
            self.user_folders.append(_user_folder(config_dir))
        self.project_folder = CONF
        self.folders = [self.project_folder, *self.user_folders]
        #: `_find_choices`, once for each group.
        self.choices = cache(self._find_choices)

    def _find_choices(self, group: str) -> list[str]:
        """The names of a group's files."""
        names = set[str]()
        for folder in self.folders:
            for path in (folder / group).rglob("*.yaml"):
                relative = path.relative_to(folder / group)
                names.add(relative.with_suffix("").as_posix())
        return sorted(names)

    def path(self, group: str, name: str) -> Path:
        """The path of a group's file. Raises UnknownNameError, with the nearest right
        name, where there is no such file."""
        for folder in self.folders:
            path = folder / group / f"{name}.yaml"
            if name and path.is_file():
                return path
        advice = did_you_mean(name, self.choices(group))
        # the hub's names have slashes or dashes (roberta-base), and ours have neither
        if group == "model" and ("/" in name or (not advice and "-" in name)):
            advice = (
                f" One of the hub: model=encoder model.hub={name} (or decoder, vision)"
            )
        elif not advice:
            advice = self._advice_on_own_folder(group, name)
        command = f"list {group}s" if group in LISTED_GROUPS else "--help"
        raise UnknownNameError(
            f"no {group} {name!r}.{advice} All names: vera-bench {command}", name
        )

    def _advice_on_own_folder(self, group: str, name: str) -> str:
        """Sentences on where the file of a missing name may be. They name the file that
        the user's own folders lack and, if --config-dir was given a level too high, the
        right folder. For a method they also name other places. "" if there is nothing
        to say."""
        text = ""
        file = Path(group, f"{name}.yaml")
        for folder in self.user_folders:
            text += f" Your folder has no {_path_from_current_folder(folder / file)}."
            for subfolder in sorted(folder.iterdir()):
                if (subfolder / file).is_file():
                    right_folder = _path_from_current_folder(subfolder)
                    return f"{text} Did you mean --config-dir={right_folder}?"
        if group != "method":
            return text
        if not text:
            text = " If a folder of yours has it: --config-dir=FOLDER."
        return f"{text} If peft has it: peft:{name}Config."

    @cached_property
    def recipe_keys(self) -> set[str]:
        """The keys of recipes that some file reads."""
        paths = [self.project_folder / "config.yaml"]
        for folder in self.folders:
            for group in ("method", "task", "shared"):
                paths += folder.glob(f"{group}/*.yaml")
        # a default of BASE, which is in no file, may read one, too
        defaults = " ".join(map(str, BASE["model"].values()))
        keys = set(RECIPE_REFERENCE.findall(defaults))
        for path in paths:
            keys.update(RECIPE_REFERENCE.findall(path.read_text(encoding="utf-8")))
        return keys

    def content_hash(self) -> str:
        """A hash of all the files, with their names."""
        digest = hashlib.sha256()
        for folder in self.folders:
            for path in sorted(folder.rglob("*.yaml")):
                name = path.relative_to(folder).as_posix()
                digest.update(f"{name}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def location_of(self, group: str, name: str, text: str) -> str:
        """Where the file `name` of a group has `text` as a key (or its last parts) or
        as a value, such as "conf/experiment/mine.yaml line 7"; "" where it has neither."""
        path = self.path(group, name)
        root = yaml.compose(path.read_text(encoding="utf-8"))
        for entry in _yaml_keys(root):
            values = re.split(r"[,\s]+", entry.text)
            if f".{entry.key}".endswith(f".{text}") or text in values:
                return f"{_path_from_current_folder(path)} line {entry.line}"
        return ""


def comments_in(path: Path) -> dict[str, str]:
    """The comment behind each dotted key of a YAML file, for the keys that have one."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    comments = dict[str, str]()
    for entry in _yaml_keys(yaml.compose(text)):
        # a colon is left where the key of a mapping in lines of its own ends
        behind_value = lines[entry.end_line][entry.end_column :].lstrip(" :")
        if behind_value.startswith("# "):
            comments[entry.key] = behind_value.removeprefix("# ")
    return comments


class _YamlKey(NamedTuple):
    """A key of a YAML file.

    Attributes:
        key: The dotted key.
        text: The value, if it is no mapping or list; else "".
        line: The line of the key, from 1.
        end_line: The line, from 0, in which the value ends. Above a mapping or list in
            lines of its own it is the key that ends there.
        end_column: The column, from 0, of that end.
    """

    key: str
    text: str
    line: int
    end_line: int
    end_column: int


def _yaml_keys(node: yaml.Node | None, prefix: str = "") -> Iterator[_YamlKey]:
    """The keys of a YAML file, those in mappings and lists too. prefix: what stands
    before the keys of `node`, such as "train."."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            # a list of defaults has keys such as "override /method", whose group counts
            name = prefix + str(key.value).rpartition("/")[2]
            text = value.value if isinstance(value, yaml.ScalarNode) else ""
            is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            end = key.end_mark if is_block else value.end_mark
            yield _YamlKey(name, text, key.start_mark.line + 1, end.line, end.column)
            yield from _yaml_keys(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _yaml_keys(item, prefix)


class UnknownNameError(UserError):
    """There is no key or file of this name. name: as it was written."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def _user_folder(config_dir: str) -> Path:
    """The folder of --config-dir. Raises UserError where there is none, and for a file in
    it that has the name of one in conf/ and other content."""
    folder = Path(config_dir).expanduser().absolute()
    if not config_dir or not folder.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")
    for path in sorted(folder.glob("*/**/*.yaml")):
        original = CONF / path.relative_to(folder)
        if original.is_file() and original.read_bytes() != path.read_bytes():
            raise UserError(
                f"{path}: conf/ has a file of this name: give yours another name"
            )
    return folder


def _path_from_current_folder(path: Path) -> str:
    """A path as the user would type it: relative where it lies in the current folder."""
    current_folder = Path.cwd()
    if path.is_relative_to(current_folder):
        path = path.relative_to(current_folder)
    return str(path)


def open_mapping_of(override: str) -> str:
    """The mapping of OPEN_MAPPINGS that an override's key is in, or ""."""
    key = Override(override).key
    for mapping in OPEN_MAPPINGS:
        if key.startswith(f"{mapping}."):
            return mapping
    return ""


def group_overrides(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the overrides that choose the file of a group, such as method=vera."""
    return tuple(text for text in overrides if Override(text).key in GROUPS)
