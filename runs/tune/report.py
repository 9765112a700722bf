"""What a search has found: all trials, the best one's overrides, and the lines of its recipe."""

import csv
import io
import math
import shlex
import statistics

import optuna
from optuna.trial import FrozenTrial, TrialState

import tasks
from runs.config import CONF
from runs.record import Metric, write_atomically
from runs.record.text import plural
from runs.tune.cells import Cell, Point
from runs.tune.study import latest


def ranked(cell: Cell, study: optuna.Study, metric: Metric) -> list[tuple[Point, FrozenTrial]]:
    """Points and their trials, the best first; of equals the first in the grid; then those without a
    value."""
    trials = latest(cell, study)
    tried = [(point, trials[point]) for point in cell.trials if point in trials]
    done = [(point, trial) for point, trial in tried if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda pair: pair[1].value or 0.0, reverse=metric.higher_is_better)
    return done + [(point, trial) for point, trial in tried if trial.state != TrialState.COMPLETE]


def report(cell: Cell, study: optuna.Study, task: tasks.Task) -> str:
    """All trials, and the best one's words and recipe. Writes the same as trials.csv (values as
    fractions)."""
    metric = Metric.of_task(task)
    trials = ranked(cell, study, metric)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([metric.name, "spread", *cell.axes, "state", "runs"])
    rows = []
    for point, trial in trials:
        attrs, state = trial.user_attrs, trial.state.name.lower()
        value, spread = trial.value, spread_of(attrs.get("values", []))
        writer.writerow([value, spread, *point, state, " ".join(attrs.get("runs", []))])
        words = [
            f"{attrs['diverged']} diverged" if attrs.get("diverged") else "",
            "failed" if value is None else "",
        ]
        numbers = ["-" if number is None else metric.text(number) for number in (value, spread)]
        rows.append([*numbers, *point, " ".join([str(len(attrs.get("runs", []))), *filter(None, words)])])
    write_atomically(cell.folder / "trials.csv", file.getvalue())
    model, of = (cell.first.config[part]["label"] for part in ("model", "task"))
    title = f"{cell.first.row} on {of} ({model})"
    point, best = trials[0]
    if best.value is None:
        return "\n".join(
            [f"{title}: no trial has a value", "", *table([metric.name, "spread", *cell.axes, "runs"], rows)]
        )
    held, rest = best.user_attrs["rows"]
    which = f"{task.reported} epoch"
    judged = f"{held} held-out training rows ({rest} trained on), {which}, {plural(cell.seeds, 'seed')}"
    lines = [
        f"{title}: {metric.name} on {judged}",
        "",
        *table([metric.name, "spread", *cell.axes, "runs"], rows),
        "",
    ]
    equal = sum(trial.value == best.value for _, trial in trials)
    lines += (
        [f"{equal} settings have the best value: which of them comes first says nothing"] if equal > 1 else []
    )
    lines += [f"{words} is the {end} tried" for words, end in edges(cell, point)]
    lines += [
        f"best: python -m runs {shlex.join([*cell.words, *cell.words_of(point)])}",
        *recipe(cell, point, judged),
    ]
    return "\n".join([*lines, f"trials: {cell.folder / 'trials.csv'}"])


def edges(cell: Cell, point: Point) -> list[tuple[str, str]]:
    """The words of a point that lie at an end of their axis: the best may be beyond it."""
    found = []
    for word, (_, texts), text in zip(cell.words_of(point), cell.axes.items(), point, strict=True):
        try:
            values = sorted(map(float, texts))
        except ValueError:  # not numbers: no order
            continue
        if len(values) > 1 and float(text) in (values[0], values[-1]):
            found.append((word, "smallest" if float(text) == values[0] else "largest"))
    return found


def recipe(cell: Cell, point: Point, judged: str) -> list[str]:
    """The lines for a recipe file, of those keys that look there."""
    files = "".join(path.read_text() for path in [CONF / "config.yaml", *sorted(CONF.glob("method/*.yaml"))])
    task = cell.first.config["task"]["name"]
    axes = [
        (key.rpartition(".")[2], values, value)
        for (key, values), value in zip(cell.axes.items(), point, strict=True)
    ]
    axes = [axis for axis in axes if f"${{recipe:{axis[0]}," in files]
    if not axes:
        return []
    tried = {
        key: f"the best of {', '.join(values)}" if len(values) > 1 else "the only one tried"
        for key, values, _ in axes
    }
    chosen = [f"    {key}: on {task} {words}, on {judged}" for key, words in tried.items()]
    method = cell.words[0].partition("=")[2]
    own = method != "peft"  # whose file would be that of every class
    name = f"{method if own else cell.first.row}/{cell.first.model}"
    return [
        f"for conf/recipe/{name}.yaml{'' if own else f', which recipe={name} takes'}:",
        "  by_task:",
        *(f"    {key}: {{{task}: {value}}}" for key, _, value in axes),
        "  chosen:",
        *chosen,
    ]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns to the right, in ASCII."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in (header, *rows)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return [f"| {' | '.join(line)} |" for line in lines]


def spread_of(values: list[float]) -> float | None:
    """Sample standard deviation over the seeds; None for a single one, or where one diverged without a
    perplexity."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
