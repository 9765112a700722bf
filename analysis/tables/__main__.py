"""Prints a table from the records, beside the paper's where there is one.

    python -m analysis.tables table2 [--format md|latex|csv] [--runs] [--select paper|crossfit]
                                     [--output outputs] [--save]
    python -m analysis.tables table6     (table1 to table13, demo)

Each cell is the median over the seeds, +- the sample standard deviation (in tables 6 and 7 the mean), of the
epoch that the table reports: the best one in tables 2, 6 and 7, the last one in 3, 4 and 5. A cell with fewer
seeds than the protocol's says so and enters no average. --runs lists the run ids behind each cell. Table 1 is
computed from formulas, tables 8 to 11 are the recipes of conf/: neither needs a record.
"""

import sys
from pathlib import Path

from analysis.command import Parser, entry_point, open_ledger
from analysis.tables import TABLES, WITHOUT_RECORDS, make
from runs.record import Ledger, write_atomically


def main(arguments: list[str]) -> int:
    parser = Parser("tables", __doc__)
    parser.add_argument("name", help=", ".join(TABLES))
    parser.add_argument("--format", choices=("md", "latex", "csv"), default="md")
    parser.add_argument("--select", choices=("paper", "crossfit"), default="paper")
    parser.add_argument(
        "--seeds",
        type=int,
        help="seeds of a complete cell (table2, 5, 6 and 7: 5, table3 and demo: 3, the others: 1)",
    )
    parser.add_argument(
        "--runs", action="store_true", help="also list the run ids behind each cell (CSV has them anyway)"
    )
    parser.add_argument(
        "--save", action="store_true", help="also write it to OUTPUT/NAME/table.md (.tex, .csv)"
    )
    options = parser.read(arguments)
    if options.name not in TABLES:
        print(
            f"error: no table {options.name!r}. Known: {', '.join(TABLES)}. A preset's runs stand in the"
            " paper's table of its protocol (glue_minilm: table2)",
            file=sys.stderr,
        )
        return 2
    if options.seeds is not None and options.seeds < 1:
        print(f"error: --seeds {options.seeds}: should be at least 1", file=sys.stderr)
        return 2
    ledger = Ledger() if options.name in WITHOUT_RECORDS else open_ledger(options.output)
    tables = make(options.name, ledger, options.select, options.seeds)
    if not tables:
        print(
            f"error: no records of {options.name} in {options.output}/records yet (make {options.name})",
            file=sys.stderr,
        )
        return 2
    text = "\n\n".join(table.render(options.format, options.runs) for table in tables)
    print(text)
    if options.save:
        ending = {"md": "md", "latex": "tex", "csv": "csv"}[options.format]
        path = Path(options.output) / options.name / f"table.{ending}"
        write_atomically(path, text + "\n")
        print(f"\nTable: {path}")
    return 0


if __name__ == "__main__":
    entry_point(main)
