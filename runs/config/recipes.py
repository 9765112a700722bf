"""Recipes, as files of conf/recipe say them and as a row sees them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs.command.errors import UserError
from runs.command.parser import did_you_mean
from runs.config.files import Files

#: The keys of a recipe that no other file reads.
OF_RECIPES = ("source", "chosen", "by_task", "by_row")


def recipe_of_row(recipe: dict[str, Any], row: str) -> dict[str, Any]:
    """A recipe as a row sees it: without by_row, and with the row's part in the place
    of what every row has. row: as by_row names it, vera or peft:IA3Config."""
    if "by_row" not in recipe:
        return recipe
    part = dict(recipe["by_row"].get(row) or {})
    shared = recipe.get("by_task") or {}
    own = part.pop("by_task", None) or {}
    merged = {key: value for key, value in recipe.items() if key != "by_row"}
    merged.update(part)
    if shared or own:
        # a value for one task would stand before the row's own for all tasks
        by_task = {key: values for key, values in shared.items() if key not in part}
        for key, values in own.items():
            by_task[key] = shared.get(key, {}) | values
        merged["by_task"] = by_task
    if reasons := recipe.get("chosen"):
        # how a value was chosen is said of rows that have it
        read_here = {*recipe, *shared, *part, *own}
        chosen = {key: why for key, why in reasons.items() if key in read_here}
        merged["chosen"] = chosen | part.get("chosen", {})
    return merged


def check_recipe(
    recipe: dict[str, Any], path: Path, task: str | None, files: Files
) -> None:
    """Raises UserError for a key that nothing reads, and for a row or task that there
    is not: a misspelt one would leave the default in effect, under the recipe's name.
    task: the run's, since one's own may have no file."""
    keys = {*files.keys_of_recipes, *OF_RECIPES}
    tasks = {*files.choices("task"), str(task)}
    methods = {*files.choices("method")}
    try:
        rows = recipe.get("by_row", {})
        for row in rows:
            _check_names(path, [row.partition(":")[0]], methods)
        for part in (recipe, *rows.values()):
            by_task = part.get("by_task", {})
            _check_names(path, [*part, *part.get("chosen", {}), *by_task], keys)
            for values in by_task.values():
                _check_names(path, {**values}, tasks)
    except (AttributeError, TypeError):
        raise UserError(
            f"{path}: by_row, by_task and by_task's values are mappings"
        ) from None


def _check_names(path: Path, names: Iterable[Any], known: set[str]) -> None:
    for name in names:
        if name in known:
            continue
        listed = f" Known: {', '.join(sorted(known))}"
        advice = did_you_mean(str(name), sorted(known)) or listed
        raise UserError(f"{path}: {name}: nothing reads it.{advice}")
