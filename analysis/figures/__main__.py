"""Draws a figure from the records, next to what the paper prints of it.

vera-bench figure figure2
    also figure3 to figure6, parameters and demo; all draws each of them
vera-bench figure parameters task=mine
    for any task; model=, method=, sweep= and published=false choose runs
vera-bench figure pareto x=seconds y=metric
    two numbers of each row, with the frontier
vera-bench figure demo labels=vera,lora
    labels these points, too
vera-bench figure curve ID [ID ...]
    score and losses of single runs

The vector PDF, the PNG and the data behind them as CSV go to OUTPUT/NAME/. Each row of
the data names the run ids (or the measure) that it comes from. Figures 3, 5 and 6 are
drawn from measures: run `vera-bench measure` first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.command import (
    VariantSelection,
    conf_rows,
    open_rows,
    row_name,
    split_names,
)
from analysis.figures import FIGURES, NAMES, figures_of_ledger, save_figure
from analysis.figures.curve import curve
from analysis.figures.figure import Figure
from runs.command.advice import require_known
from runs.command.errors import UserError
from runs.command.parser import entry_point, read_command_line, setting
from runs.command.records import find_record

#: The keys of `pareto.AXES`.
AxisName = Literal["metric", "parameters", "bytes", "seconds", "memory", "forgetting"]


@dataclass(frozen=True)
class Settings(VariantSelection):
    """Which runs are drawn and, for `pareto`, which numbers."""

    x: AxisName = setting("parameters", "of pareto: the number of its horizontal axis")
    y: AxisName = setting("metric", "of pareto: that of its vertical axis")
    labels: str | None = setting(
        None, "rows of conf/method that are named beside the frontier's (a,b)"
    )


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="FIGURE [ID ...]")
    settings = line.settings
    chosen = require_known("figure", line.positional[0], [*NAMES, "curve", "all"])
    ids = line.positional[1:]
    if (chosen == "curve") != bool(ids):  # curve without ids, or ids without curve
        raise UserError(f"{chosen}: curve takes the ids of runs, and no other figure")
    given_axes = {"x", "y"} & line.given.keys()
    if given_axes and chosen != "pareto":
        key = min(given_axes)
        raise UserError(f"{key}=: the axes of {chosen} are fixed; pareto has x= and y=")
    if settings.x == settings.y:
        raise UserError(f"x={settings.x} y={settings.y}: give two different ones")
    ledger = open_rows(settings)
    if ids:
        records = [find_record(ledger, name, settings.output) for name in ids]
        _save_and_show(curve(records), Path(settings.output) / chosen)
        return 0
    labels = tuple(map(row_name, split_names(settings.labels)))
    rows = conf_rows(ledger)
    for label in labels:
        require_known("row labels=", label, rows)
    part_options: dict[str, Any] = {
        "names_tasks": bool(settings.task or settings.sweep),
        "axes": (settings.x, settings.y) if given_axes else None,
        "labels": labels,
    }
    # a sweep may have run several settings of one row
    every_variant = settings.all or bool(settings.sweep)
    count = 0
    for name in FIGURES if chosen == "all" else [chosen]:
        for figure in figures_of_ledger(name, ledger, every_variant, **part_options):
            _save_and_show(figure, Path(settings.output) / name)
            count += 1
    if not count:
        raise UserError(
            f"no records of {chosen} in {settings.output}/records "
            "(make help: what runs them)"
        )
    return 0


def _save_and_show(figure: Figure, folder: Path) -> None:
    """Writes a figure's files, and prints its notes and where the files are."""
    _, png, _ = save_figure(figure, folder)
    print(*[figure.title, *figure.notes], sep="\n  ")
    print(f"Plot: {png} (.pdf, .csv beside it)")


if __name__ == "__main__":
    entry_point(main)
