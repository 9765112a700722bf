"""Draws a figure from the records, beside what the paper prints of it.

    python -m analysis.figures figure2               (to figure6, parameters, demo; all: what there is)
    python -m analysis.figures parameters task=mine  (of any task; model=, method=, sweep=, published=false)

The vector PDF, the PNG and the data behind them as CSV go to OUTPUT/NAME/; each row of the data names the run
ids (or the measure) that it comes from. Figures 3, 5 and 6 are drawn from measures: python -m runs.measure.
"""

import sys
from pathlib import Path

from analysis.command import OfVariants, open_chosen, words
from analysis.figures import FIGURES, make, save
from runs.command import entry_point, one_of, read
from runs.errors import UserError


class Settings(OfVariants):
    """None of its own."""


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="FIGURE")
    chosen, output = one_of("figure", line.names[0], [*FIGURES, "all"]), line.settings.output
    ledger = open_chosen(line.settings)
    tasks, every = words(line.settings.task), line.settings.all or bool(line.settings.sweep)
    if line.settings.sweep:
        tasks = tasks or tuple({str(record["cell"]["task"]) for record in ledger})
    drawn = 0
    for name in FIGURES if chosen == "all" else [chosen]:
        for figure in make(name, ledger, tasks, every):
            notes = [f"  {note}" for note in figure.notes]
            if figure.rows:
                paths = save(figure, Path(output) / name)
                png = next(str(path) for path in paths if path.suffix == ".png")
                print("\n".join([f"{figure.title}", *notes, f"Plot: {png} (.pdf, .csv beside it)"]))
                drawn += 1
            else:
                print("\n".join([f"{figure.title}: nothing to draw", *notes]), file=sys.stderr)
    if not drawn:
        raise UserError(f"no records of {chosen} in {output}/records yet (make help lists what runs them)")
    return 0


if __name__ == "__main__":
    entry_point(main)
