"""Recipes: the one way by which a row gets values of its own (docs/recipes.md).

    conf/config.yaml          lr: ${recipe:lr,1e-3}         a key that recipes may set, and its default
    conf/recipe/ROW/MODEL     lr: 1e-2                      of every row and task
                              by_task: {lr: {rte: 4e-2}}    of one task
                              by_row: {vera: {lr: 8e-2}}    of one row, where rows share a recipe

A later line comes before the earlier ones; a row's part may have by_task itself. `of_row` takes a row's
part, and from_recipe (runs/record/rows.py) reads the result, in configurations and in records."""

import re
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from runs.command import mistake
from runs.config.names import did_you_mean
from runs.errors import UserError

#: A key of a recipe, where a file reads it.
READS = re.compile(r"\$\{recipe:([a-z_0-9]+)")


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


def check_recipe(content: dict[str, Any], row: str, read: Collection[str], tasks: Collection[str]) -> None:
    """Raises UserError for a key of a recipe's file that nothing reads, of those that a row sees: a misspelt
    one would leave the default in effect, under the recipe's name. Likewise for a task that there is not.

    read: the keys that are read. tasks: the names of all tasks."""
    try:
        Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(mistake(error)) from None
    seen = of_row(content, row)
    keys = [(key, read) for key in seen if key not in ("defaults", "source", "chosen", "by_task")]
    keys += [(f"chosen.{key}", read) for key in content.get("chosen", {})]
    for key, by_task in seen.get("by_task", {}).items():
        keys += [(f"by_task.{key}", read), *((f"by_task.{key}.{task}", tasks) for task in by_task)]
    for key, known in keys:
        if (name := key.rpartition(".")[2]) not in known:
            near = did_you_mean(name, sorted(known)) or f" Known: {', '.join(sorted(known))}"
            raise UserError(f"{key}: nothing reads it.{near}")
