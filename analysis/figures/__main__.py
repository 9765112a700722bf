"""Draws a figure from the records, beside what the paper prints of it.

    python -m analysis.figures figure2               (to figure6, parameters, demo; all: what there is)
    python -m analysis.figures parameters task=mine  (of any task; model=, method=, sweep=, published=false)
    python -m analysis.figures pareto x=seconds y=metric  (two numbers of each row, with the frontier)
    python -m analysis.figures demo labels=vera,lora      (names these points, too)

The vector PDF, the PNG and the data behind them as CSV go to OUTPUT/NAME/; each row of the data names the run
ids (or the measure) that it comes from. Figures 3, 5 and 6 are drawn from measures: python -m runs.measure.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from analysis.command import OfVariants, open_chosen, row_name, words
from analysis.figures import FIGURES, NAMES, make, save
from analysis.figures.pareto import AXES, USUAL
from runs.command import entry_point, one_of, read, setting
from runs.errors import UserError


@dataclass(frozen=True)
class Settings(OfVariants):
    """Of `pareto`: what is drawn against what."""

    x: str | None = setting(None, f"of pareto: {', '.join(AXES)} (null: {USUAL[0]})")
    y: str | None = setting(None, f"of pareto: one of these, too (null: {USUAL[1]})")
    labels: str | None = setting(None, "rows of conf/method that have a label beside the frontier's (a,b)")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="FIGURE")
    chosen, output = one_of("figure", line.names[0], [*NAMES, "all"]), line.settings.output
    axes = _axes(chosen, line.settings)
    ledger = open_chosen(line.settings)
    tasks, every = words(line.settings.task), line.settings.all or bool(line.settings.sweep)
    labels = tuple(map(row_name, words(line.settings.labels)))
    for label in labels:
        one_of("row labels=", label, sorted({str(record["cell"]["row"]) for record in ledger}))
    if line.settings.sweep:
        tasks = tasks or tuple({str(record["cell"]["task"]) for record in ledger})
    drawn = 0
    for name in FIGURES if chosen == "all" else [chosen]:
        for figure in make(name, ledger, every, tasks=tasks, axes=axes, labels=labels):
            notes = "".join(f"\n  {note}" for note in figure.notes)
            if figure.data.empty:
                print(f"{figure.title}: nothing to draw{notes}", file=sys.stderr)
                continue
            _, png, _ = save(figure, Path(output) / name)
            print(f"{figure.title}{notes}\nPlot: {png} (.pdf, .csv beside it)")
            drawn += 1
    if not drawn and ledger.records:
        raise UserError(f"{chosen}: nothing could be drawn of the {len(ledger.records)} records")
    if not drawn:
        raise UserError(f"no records of {chosen} in {output}/records yet (make help lists what runs them)")
    return 0


def _axes(figure: str, settings: Settings) -> tuple[str, str]:
    """The names of pareto's axes. Raises UserError for a name that is none, for one name twice, and for axes
    of another figure."""
    given = {key: getattr(settings, key) for key in "xy" if getattr(settings, key)}
    if given and figure != "pareto":
        raise UserError(f"{next(iter(given))}=: the axes of {figure} are fixed; pareto has x= and y=")
    for key, name in given.items():
        one_of(f"axis {key}=", name, AXES)
    # One alone: the other is the usual, or what is left of the usual two
    x = given.get("x") or next(name for name in USUAL if name != given.get("y"))
    y = given.get("y") or next(name for name in reversed(USUAL) if name != x)
    if x == y:
        raise UserError(f"x={x} y={y}: two different ones of {', '.join(AXES)}")
    return x, y


if __name__ == "__main__":
    entry_point(main)
