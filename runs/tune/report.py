"""The report of a search: all trials, the overrides of the best one, and the lines for its recipe."""

import shlex
from collections.abc import Iterator
from typing import Any

import pandas as pd

import tasks
from runs.command import as_word
from runs.config import Files, recipe_keys
from runs.record import Metric, epoch_of_table, one_class, sample_deviation, write_atomically
from runs.record.text import plural
from runs.tune.cells import Cell, Point
from runs.tune.trials import Trial, trials_of


def ranked(cell: Cell, metric: Metric) -> list[Trial]:
    """The trials, the best first and equal ones in grid order; after them those with a run that diverged, and
    then those without a value."""
    sign = -1.0 if metric.higher_is_better else 1.0
    return sorted(trials_of(cell), key=lambda t: (t.value is None, t.diverged > 0, sign * (t.value or 0.0)))


def report(cell: Cell, task: tasks.Task) -> str:
    """The text of the report. Writes the trials as trials.csv, too (values as fractions)."""
    metric = Metric.of_task(task)
    trials = ranked(cell, metric)
    frame = pd.DataFrame([dict(zip(cell.axes, trial.point, strict=True)) for trial in trials])
    frame.insert(0, metric.name, [trial.value for trial in trials])
    frame.insert(1, "spread", [sample_deviation(t.values) if t.value is not None else None for t in trials])
    frame["state"], frame["diverged"] = [t.state for t in trials], [t.diverged for t in trials]
    frame["runs"] = [" ".join(trial.ids) for trial in trials]
    write_atomically(cell.folder / "trials.csv", frame.to_csv(index=False))
    for key in (metric.name, "spread"):
        frame[key] = ["-" if pd.isna(value) else metric.text(value) for value in frame[key]]
    trial_table = frame.drop(columns="runs").to_string(index=False)
    model, of = (cell.first.config[part]["label"] for part in ("model", "task"))
    title = f"{cell.first.row} on {of} ({model})"
    best = trials[0]
    if best.value is None:
        return "\n".join([f"{title}: no trial has a value", "", trial_table])
    held, rest = (best.records[0]["data"][f"{part}_rows"] for part in ("dev", "train"))
    which = f"{epoch_of_table(cell.first.config['train'], task.reported)} epoch"
    judged = f"{held} held-out training rows ({rest} trained on), {which}, {plural(cell.seeds, 'seed')}"
    lines = [f"{title}: {metric.name} on {judged}", "", trial_table, ""]
    if best.diverged:
        return "\n".join([f"{title}: in each trial a run diverged", "", trial_table])
    equal = sum(trial.value == best.value and not trial.diverged for trial in trials)
    shares = [share for t in trials for record in t.records if (share := one_class(record)) is not None]
    if shares:
        share = f" ({max(shares)})" if max(shares) else ""
        lines += [f"predicts one class: {plural(len(shares), 'run')}{share}"]
    if equal > 1:
        lines += [f"{equal} settings have the best value: which of them comes first says nothing"]
    lines += [f"{override} is the {end} tried" for override, end in edges(cell, best.point)]
    lines += [f"best: {best_command(cell, best.point)}"]
    return "\n".join([*lines, *recipe(cell, best.point, judged), f"trials: {cell.folder / 'trials.csv'}"])


def best_point(cell: Cell, task: tasks.Task) -> list[Point]:
    """The best point, if any trial has a value and no run of it diverged."""
    best = ranked(cell, Metric.of_task(task))[0]
    return [] if best.value is None or best.diverged else [best.point]


def best_command(cell: Cell, point: Point) -> str:
    """The command that does a point's run on the real dev set."""
    own = [f"--config-dir={cell.config_dir}"] if cell.config_dir else []
    return f"python -m runs {shlex.join([*own, *cell.overrides, *cell.overrides_of(point)])}"


def edges(cell: Cell, point: Point) -> list[tuple[str, str]]:
    """The overrides of a point that are at an end of their axis, since the best may be beyond it."""
    at_end = []
    for override, texts, text in zip(cell.overrides_of(point), cell.axes.values(), point, strict=True):
        try:
            values = sorted(map(float, texts))
        except ValueError:  # not numbers: no order
            continue
        if len(values) > 1 and float(text) in (values[0], values[-1]):
            at_end.append((override, "smallest" if float(text) == values[0] else "largest"))
    return at_end


def recipe(cell: Cell, point: Point, judged: str) -> list[str]:
    """The lines for a recipe file, for keys that are read from recipes."""
    task = cell.first.config["task"]["name"]
    by_task, chosen = [], []
    for key, value, values in tuned(cell, point):
        by_task.append(f"    {key}: {{{task}: {value}}}")
        how = f"the best of {', '.join(values)}" if len(values) > 1 else "the only one tried"
        chosen.append(f"    {key}: on {task} {how}, on {judged}")
    if not by_task or shared_parts(cell) is not None:
        return []
    method = cell.overrides[0].partition("=")[2]
    own = method != "peft"  # all classes of peft have one file
    name = f"{method if own else cell.first.row}/{cell.first.model}"
    title = f"for conf/recipe/{name}.yaml{'' if own else f', which recipe={name} takes'}:"
    # Without these, a recipe of its own would leave the other's values out, on other tasks too
    other = [] if cell.first.recipe in ("defaults", name) else [f"    - /recipe/{cell.first.recipe}@_here_"]
    defaults = ["  defaults:", *other, "    - _self_"] if other else []
    return [title, *defaults, "  by_task:", *by_task, "  chosen:", *chosen]


def tuned(cell: Cell, point: Point) -> Iterator[tuple[str, str, list[str]]]:
    """The settings that a recipe of the row may have, of those that were searched and those that were given
    with the search: the last part of the key, the value, and the values tried."""
    known = recipe_keys(cell.overrides[0].partition("=")[2], cell.config_dir)
    given = (word.partition("=") for word in cell.overrides)
    searched = zip(cell.axes, point, cell.axes.values(), strict=True)
    for path, value, values in [*searched, *((path, value, [value]) for path, _, value in given)]:
        group, _, key = path.rpartition(".")
        if group in ("train", "method") and key in known and "${" not in value:
            yield key, value, values


def shared_parts(cell: Cell) -> dict[str, Any] | None:
    """by_row of a cell's recipe, if rows share it."""
    files, name = Files(cell.config_dir), cell.first.recipe
    return files.read("recipe", name).get("by_row") if name in files.choices("recipe") else None


def shared_recipes(best: list[tuple[Cell, Point]]) -> str:
    """The parts (by_row) of the rows that were searched, with the best settings, for each recipe that rows
    share."""
    by_recipe: dict[str, dict[str, Any]] = {}
    for cell, point in best:
        parts = shared_parts(cell)
        if parts is None:
            continue
        run, found = cell.first, by_recipe.setdefault(cell.first.recipe, {})
        word = cell.overrides[0].partition("=")[2]
        word = f"peft:{run.config['method']['config_class']}" if word == "peft" else word
        by_task = found.setdefault(word, dict(parts.get(word) or {})).setdefault("by_task", {})
        for key, value, _ in tuned(cell, point):
            by_task.setdefault(key, {})[run.config["task"]["name"]] = value
    lines = []
    for name, rows in by_recipe.items():
        lines += [f"for conf/recipe/{name}.yaml, in by_row:"]
        lines += [f"  {word}: {_flow(part)}" for word, part in rows.items()]
    return "\n".join(lines)


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(of)}" for key, of in value.items()) + "}"
    return as_word(value)
