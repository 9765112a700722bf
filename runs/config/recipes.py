"""Checks the recipes of conf/recipe: a misspelt key would leave the default value in effect, under the
recipe's name."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from runs.config.names import did_you_mean
from runs.errors import UserError
from runs.record import CONF


class Files(Protocol):
    """What the checks ask of runs/config/files.py."""

    def all(self) -> list[Path]: ...
    def choices(self, group: str) -> list[str]: ...
    def path(self, group: str, name: str) -> Path: ...
    def read(self, group: str, name: str) -> dict[str, Any]: ...


def check_recipe(files: Files, name: str, recipe: Any, own_tasks: Collection[str]) -> None:
    """Raises UserError for a key of a recipe that nothing reads, and for a task that does not exist.

    name: ROW/MODEL. The keys of method settings are those that ROW's file, and the files in its defaults,
    read; so are those of rows whose recipes its `defaults` take. A recipe with by_row is shared: only the
    parts of its rows have settings of methods. own_tasks: the names of tasks that are in no file."""
    row, path = name.partition("/")[0], files.path("recipe", name)
    row = "peft" if row.startswith("peft_") and row not in files.choices("method") else row
    where = f"conf/recipe/{name}.yaml" if path.is_relative_to(CONF) else str(path)
    tasks = sorted({*files.choices("task"), *own_tasks})
    if shared := "by_row" in recipe:
        by_row = recipe.pop("by_row")
        if not isinstance(by_row, dict) or not all(isinstance(part, dict) for part in by_row.values()):
            raise UserError(f"{where}: by_row should be a mapping, such as {{lora: {{lr: ...}}}}")
        for word, part in by_row.items():
            file = "peft" if re.fullmatch(r"peft:\w+", word) else word
            _check_keys(f"{where}, by_row: {word}", part, known_keys(files, file, where), tasks, file)
    taken = map(str, files.read("recipe", name).get("defaults", []))
    others = [found[1] for line in taken if (found := re.match(r"/?recipe/(\w+)/", line))]
    rows = [None] if shared else [row, *others]
    known = sorted(set[str]().union(*(known_keys(files, of, where) for of in rows)))
    _check_keys(where, recipe, known, tasks, row, ("source", "chosen"))


def known_keys(files: Files, row: str | None, where: str) -> list[str]:
    """The keys of a recipe that something reads; without a row, those that every row reads. where: the file,
    for the error."""
    everywhere = [path for path in files.all() if path.parent.name in ("task", "shared")]
    rows = _method_files(files, row, where) if row else []
    return sorted(set[str]().union(*map(_recipe_keys, [CONF / "config.yaml", *everywhere, *rows])))


def _recipe_keys(path: Path) -> set[str]:
    """The keys of a recipe that a file reads."""
    return set(re.findall(r"\$\{recipe:([a-z_0-9]+)", path.read_text()))


def _method_files(files: Files, row: str, where: str) -> list[Path]:
    """A row's file, and the files of methods in its defaults."""
    rows = files.choices("method")
    if row not in rows:
        raise UserError(f"{where}: no method of the name {row!r}.{did_you_mean(row, rows)}")
    paths = [files.path("method", row)]
    for name in files.read("method", row).get("defaults", []):
        if isinstance(name, str) and name != "_self_":
            paths += _method_files(files, name, where)
    return paths


def _check_keys(
    where: str,
    recipe: dict[str, Any],
    known: list[str],
    tasks: list[str],
    row: str,
    more: tuple[str, ...] = (),
) -> None:
    """Raises UserError for a key of a recipe, or of a row's part of one, that is neither known nor one of
    `more`."""

    def check(keys: Any, allowed: list[str], part: str, what: str = "key") -> None:
        for key in keys:
            if key not in allowed:
                close = did_you_mean(str(key), allowed) or f" Known: {', '.join(allowed)}"
                raise UserError(f"{where}: no {what} {str(key)!r}{part}.{close}")

    check(recipe, [*known, *more, "by_task"], f" for the row {row}")
    for part in ("chosen", "by_task"):
        inner = recipe.get(part) or {}
        if not isinstance(inner, dict):
            raise UserError(f"{where}: {part} should be a mapping, such as {{lr: ...}}")
        check(inner, known, f" for the row {row}, in {part}")
    for key, by_task in (recipe.get("by_task") or {}).items():
        if not isinstance(by_task, dict):
            raise UserError(f"{where}: by_task: {key} should be a mapping, such as {{rte: ...}}")
        check(by_task, tasks, f", in by_task: {key}", "task")
