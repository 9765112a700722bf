"""Statistics beside the paper's own: intervals over seeds, paired differences, probability of improvement,
verdicts.

    python -m analysis.stats [table2 | paper=table2_base] [--row vera] [--output outputs] [--format
    md|latex|csv]

Without a word: every cell of the ledger. Everything is seeded: the same records give the same numbers.

- Interval of the median: percentile bootstrap over seeds (Efron and Tibshirani 1993, chapter 13). With 5
  seeds or fewer its 95% interval is the range of the seeds, which covers the true median with probability 1 -
  2 * (1/2)^n: 94% at n=5, 75% at n=3 (order statistics; David and Nagaraja 2003, section 7.1). BCa is not
  used: its acceleration comes from a jackknife, which is not consistent for the median.
- Sign test on differences paired by task and seed, exact, two-sided, ties dropped (Dixon and Mood 1946). With
  n pairs it cannot go below 2 * (1/2)^n: 0.0625 at n=5.
- Probability of improvement P(X > Y) + P(X = Y) / 2, the mean over tasks; its interval resamples the runs of
  each task (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
  sections 4.1 and 4.3).
"""

import sys

from analysis import verdicts
from analysis.cells import row_of
from analysis.command import Parser, entry_point, open_ledger
from analysis.statistics import statistics_tables


def main(arguments: list[str]) -> int:
    parser = Parser("stats", __doc__)
    parser.add_argument(
        "what", nargs="?", default="", help="a table (table2), or a preset's runs (paper=table2_base)"
    )
    parser.add_argument("--row", help="the row that the others are compared with (vera)")
    parser.add_argument("--format", choices=("md", "latex", "csv"), default="md")
    options = parser.read(arguments)
    ledger = open_ledger(options.output)
    try:
        part = verdicts.part(ledger, options.what, options.row or "vera")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not part.records:
        of = f" of {options.what}" if options.what else ""
        way = "make help lists what runs them" if of else "make demo"
        print(f"error: no records{of} in {options.output}/records yet ({way})", file=sys.stderr)
        return 2
    rows = sorted({row_of(record) for record in part})
    if options.row and options.row not in rows:
        print(f"error: no records of row {options.row!r}. There are: {', '.join(rows)}", file=sys.stderr)
        return 2
    print(
        "\n\n".join(table.render(options.format) for table in statistics_tables(part, options.row or "vera"))
    )
    return 0


if __name__ == "__main__":
    entry_point(main)
