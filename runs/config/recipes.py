"""Recipes: the one way by which a row gets values of its own (docs/recipes.md).

    conf/config.yaml          lr: ${recipe:lr,1e-3}         a key that recipes may set, and its default
    conf/recipe/ROW/MODEL     lr: 1e-2                      of every row and task
                              by_task: {lr: {rte: 4e-2}}    of one task
                              by_row: {vera: {lr: 8e-2}}    of one row, where rows share a recipe

A later line comes before the earlier ones; a row's part may have by_task itself. `of_row` takes a row's
part, and from_recipe (runs/record/rows.py) reads the result, in configurations and in records."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from runs.command import mistake
from runs.config.names import did_you_mean
from runs.errors import UserError
from runs.record import CONF


class Files(Protocol):
    """What is asked of runs/config/files.py."""

    def all(self) -> list[Path]: ...
    def choices(self, group: str) -> list[str]: ...
    def path(self, group: str, name: str) -> Path: ...
    def read(self, group: str, name: str) -> dict[str, Any]: ...


class Row(BaseModel):
    """A row's part of a recipe: values, and values by task."""

    model_config = ConfigDict(extra="allow")
    by_task: dict[str, dict[str, Any]] = {}


class Recipe(Row):
    """A file of conf/recipe. source: of its values. chosen: those that are this project's choice, with the
    reason. by_row: the parts of rows that share it."""

    source: str | None = None
    chosen: dict[str, Any] = {}
    by_row: dict[str, Row] = {}


def of_row(recipe: dict[str, Any], row: str) -> dict[str, Any]:
    """A recipe as a row sees it: without by_row, and with the row's part in the place of what every row has.
    row: as by_row names it, vera or peft:IA3Config."""
    if "by_row" not in recipe:
        return recipe
    part = dict(recipe["by_row"].get(row) or {})
    shared, own = recipe.get("by_task") or {}, part.pop("by_task", None) or {}
    found = {key: value for key, value in recipe.items() if key != "by_row"} | part
    if shared or own:  # a value for one task would stand before the row's own for all tasks
        found["by_task"] = {key: of for key, of in shared.items() if key not in part}
        found["by_task"] |= {key: shared.get(key, {}) | of for key, of in own.items()}
    if chosen := recipe.get("chosen"):  # how a value was chosen is said of rows that have it
        here = {*recipe, *shared, *part, *own}
        found["chosen"] = {key: why for key, why in chosen.items() if key in here}
    return found


def place_of(recipe: dict[str, Any], key: str, row: str, task: str) -> str | None:
    """Where in a recipe a row's value of a key on a task stands, dotted; None where it has none."""
    part = (recipe.get("by_row") or {}).get(row) or {}
    for place, of in ((f"by_row.{row}.", part), ("", recipe)):
        if task in ((of.get("by_task") or {}).get(key) or {}):
            return f"{place}by_task.{key}.{task}"
        if key in of:
            return f"{place}{key}"
    return None


# --- checks: a misspelt key would leave the default in effect, under the recipe's name


def check_recipe(files: Files, name: str, content: dict[str, Any], own_tasks: Collection[str]) -> None:
    """Raises UserError for a key of a recipe that nothing reads, and for a task that does not exist.

    name: ROW/MODEL. The keys are those that ROW's file and the files in its defaults read, and those of rows
    whose recipes its `defaults` take; at the top of a shared recipe, those that every row reads. own_tasks:
    the names of tasks that are in no file."""
    row, path = name.partition("/")[0], files.path("recipe", name)
    where = f"conf/recipe/{name}.yaml" if path.is_relative_to(CONF) else str(path)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {mistake(error)}") from None
    tasks = sorted({*files.choices("task"), *own_tasks})
    taken = [re.match(r"/?recipe/(\w+)/", str(one)) for one in files.read("recipe", name).get("defaults", [])]
    rows = [None] if "by_row" in content else [row, *(found[1] for found in taken if found)]
    known = sorted(set[str]().union(*(known_keys(files, one, where) for one in rows)))
    parts = [
        ("", recipe, known),
        *((f"by_row.{word}.", part, known_keys(files, word, where)) for word, part in recipe.by_row.items()),
    ]
    for place, part, allowed in parts:
        for key, names in _keys(part, allowed, tasks):
            if key.rpartition(".")[2] not in names:
                near = did_you_mean(key.rpartition(".")[2], names) or f" Known: {', '.join(names)}"
                raise UserError(f"{where}: {place}{key}: nothing reads it.{near}")


def _keys(part: Row, known: list[str], tasks: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The dotted keys of a part, and what the last part of each may be."""
    yield from ((key, known) for key in part.model_extra or {})
    yield from ((f"chosen.{key}", known) for key in getattr(part, "chosen", {}))
    for key, by_task in part.by_task.items():
        yield f"by_task.{key}", known
        yield from ((f"by_task.{key}.{task}", tasks) for task in by_task)


def known_keys(files: Files, row: str | None, where: str = "") -> list[str]:
    """The keys of a recipe that something reads; without a row, those that every row reads. where: the file,
    for the error."""
    paths = [path for path in files.all() if path.parent.name in ("task", "shared")]
    rows = [row] if row else []
    for one in rows:  # which grows by the rows in their defaults
        one = "peft" if one.startswith(("peft:", "peft_")) and one not in files.choices("method") else one
        if one not in files.choices("method"):
            raise UserError(f"{where}: no method {one!r}.{did_you_mean(one, files.choices('method'))}")
        paths.append(files.path("method", one))
        rows += [str(other) for other in files.read("method", one).get("defaults", []) if other != "_self_"]
    texts = [path.read_text() for path in [CONF / "config.yaml", *paths]]
    return sorted({key for text in texts for key in re.findall(r"\$\{recipe:([a-z_0-9]+)", text)})
