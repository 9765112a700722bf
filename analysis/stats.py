"""Statistics beside the paper's own: intervals over seeds, paired differences, probability of improvement,
verdicts.

    python -m analysis.stats                        every cell of the ledger
    python -m analysis.stats table2                 the cells of one table
    python -m analysis.stats experiment=table2_base      the runs of a preset
    python -m analysis.stats sweep=last             the runs of a sweep (task=, model=, method=: of these)

Everything is seeded: the same records give the same numbers.

- Interval of the median: percentile bootstrap over seeds (Efron and Tibshirani 1993, chapter 13). With 5
  seeds or fewer it is the range of the seeds (below 5 tables call it so), which covers the true median with
  probability 1 - 2 * (1/2)^n: 94% at n=5, 75% at n=3 (order statistics; David and Nagaraja 2003, section
  7.1). BCa is not used: its acceleration comes from a jackknife, which is not consistent for the median.
- Sign test on differences paired by task and seed, exact, two-sided, ties dropped (Dixon and Mood 1946). With
  n pairs it cannot go below 2 * (1/2)^n: 0.0625 at n=5.
- Probability of improvement P(X > Y) + P(X = Y) / 2, the mean over tasks; its interval resamples the runs of
  each task (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
  sections 4.1 and 4.3).
- Mean ranks over seeds of all rows of a task, Friedman's test that they are alike, and Nemenyi's critical
  difference of two of them (Demsar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets",
  section 3.2.2). Its blocks are seeds, not data sets: it says nothing of other tasks.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from analysis import tables
from analysis.cells import row_of
from analysis.command import Chosen, open_chosen, row_name
from analysis.own import as_published, early_stops, split
from analysis.ranks import ranks
from analysis.statistics import statistics_tables
from runs.command import did_you_mean, entry_point, read, setting
from runs.errors import UserError
from runs.record import CONF, Ledger


@dataclass(frozen=True)
class Settings(Chosen):
    """Which cells are shown, and how."""

    experiment: str | None = setting(None, "the preset whose runs are shown, in place of a table")
    row: str | None = setting(None, "the row that the others are compared with (vera)")
    format: Literal["md", "latex", "csv"] = setting("md", "how the tables are printed")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[TABLE]")
    settings, row = line.settings, row_name(line.settings.row or "vera")
    parts = [*line.names, *([f"experiment={settings.experiment}"] if settings.experiment else [])]
    if len(parts) > 1:
        raise UserError(f"{' and '.join(parts)}: name one of them")
    what = "".join(parts)
    ledger = open_chosen(settings)
    part = part_of(ledger, what, row)
    if not part.records:
        of, way = (f" of {what}", "make help lists what runs them") if what else ("", "make demo")
        raise UserError(f"no records{of} in {settings.output}/records yet ({way})")
    rows = sorted({row_of(record) for record in part})
    if settings.row and row not in rows:
        raise UserError(f"no records of row {row!r}. There are: {', '.join(rows)}")
    own, others = ([*statistics_tables(one, row), *ranks(one)] for one in split(part))
    shown = [*own, *map(as_published, others)]
    if not shown:
        notes = "".join(f": {note}" for note in early_stops(part))
        raise UserError(f"no finished run in {settings.output}/records for that{notes}")
    print("\n\n".join(table.render(settings.format) for table in shown))
    return 0


def part_of(ledger: Ledger, what: str, row: str = "vera") -> Ledger:
    """The records of a table, of a preset (experiment=NAME), or all of them. A preset's are those that ran
    for it and, where none of them is of `row`, with which the others are compared, those of `row`: they may
    have run for another preset first. Raises UserError for an unknown table or preset."""
    if not what:
        return ledger
    preset = what.removeprefix("experiment=")
    presets = {path.stem for path in CONF.glob("experiment/*.yaml")}
    presets |= {str(record["cell"]["paper"]) for record in ledger}
    if preset != what:
        if preset not in presets:
            hint = did_you_mean(preset, presets)
            raise UserError(f"no preset {preset!r}.{hint} They are the files of conf/experiment")
        shown = {(r["cell"]["model"], r["cell"]["task"]) for r in ledger if r["cell"]["paper"] == preset}
    elif what in tables.WITHOUT_RECORDS:
        raise UserError(f"{what} is of formulas or recipes, and has no records")
    elif what in tables.TABLES:
        parts = tables.TABLES[what](ledger, "paper", None)
        shown = {(table.model, task) for table in parts for task in table.tasks}
    else:
        hint = f" A preset's: experiment={what}." if what in presets else ""
        raise UserError(f"no table {what!r}.{hint} Known: {', '.join(tables.TABLES)}, and experiment=PRESET")

    with_row = {
        (r["cell"]["model"], r["cell"]["task"])
        for r in ledger
        if r["cell"]["paper"] == preset and r["cell"]["row"] == row
    }

    def belongs(cell: dict[str, Any]) -> bool:
        where = cell["model"], cell["task"]
        is_of_preset = cell["paper"] == preset or (cell["row"] == row and where not in with_row)
        return (is_of_preset or preset == what) and where in shown

    records = {i: record for i, record in ledger.records.items() if belongs(record["cell"])}
    published = {i: one for i, one in ledger.published.items() if i in records}
    return replace(ledger, records=records, published=published)


if __name__ == "__main__":
    entry_point(main)
