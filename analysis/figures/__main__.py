"""Draws a figure from the records, beside what the paper prints of it.

    python -m analysis.figures figure2 [--output outputs]     (figure2 to figure6, parameters, demo; all:
                                                              whatever there is)

The vector PDF, the PNG and the data behind them as CSV go to OUTPUT/NAME/; each row of the data names the run
ids (or the measure) that it comes from. Figures 3, 5 and 6 are drawn from measures: python -m runs.measure.
"""

import sys
from pathlib import Path

from analysis.command import Parser, entry_point, open_ledger
from analysis.figures import FIGURES, make, save


def main(arguments: list[str]) -> int:
    parser = Parser("figures", __doc__, "the folder that holds records/; the files go to its NAME/")
    parser.add_argument("name", help=f"{', '.join(FIGURES)}, all")
    options = parser.read(arguments)
    if options.name not in (*FIGURES, "all"):
        print(f"error: no figure {options.name!r}. Known: {', '.join(FIGURES)}, all", file=sys.stderr)
        return 2
    ledger = open_ledger(options.output)
    drawn = 0
    for name in FIGURES if options.name == "all" else [options.name]:
        for figure in make(name, ledger):
            notes = [f"  {note}" for note in figure.notes]
            if figure.rows:
                paths = save(figure, Path(options.output) / name)
                png = next(str(path) for path in paths if path.suffix == ".png")
                print("\n".join([f"{figure.title}", *notes, f"Plot: {png} (.pdf, .csv beside it)"]))
                drawn += 1
            else:
                print("\n".join([f"{figure.title}: nothing to draw", *notes]), file=sys.stderr)
    if not drawn:
        print(
            f"error: no records of {options.name} in {options.output}/records yet (make help lists what runs"
            " them)",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    entry_point(main)
