"""Statistics beside the paper's own: intervals over seeds, paired differences, probability of improvement,
verdicts.

    python -m analysis.stats                        every cell of the ledger
    python -m analysis.stats table2                 the cells of one table
    python -m analysis.stats experiment=table2_base      the runs of a preset
    python -m analysis.stats sweep=last             the runs of a sweep (task=, model=, method=: of these)

What each number is, and where it is from: docs/statistics.md.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from analysis import tables
from analysis.command import Chosen, having, open_chosen, row_name, split
from analysis.frame import runs
from analysis.notes import unfinished
from analysis.render import render
from analysis.statistics import ranks, statistics_tables
from runs.command import did_you_mean, entry_point, read, setting
from runs.errors import UserError
from runs.record import CONF


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
    part = part_of(runs(ledger), what, row)
    if part.empty:
        of, way = (f" of {what}", "make help lists what runs them") if what else ("", "make demo")
        raise UserError(f"no records{of} in {settings.output}/records yet ({way})")
    if settings.row and row not in set(part.row):
        raise UserError(f"no records of row {row!r}. There are: {', '.join(sorted(set(part.row)))}")
    own, others = (runs(of) for of in split(having(ledger, ids=set(part.id))))
    shown = [*statistics_tables(own, row), *ranks(own)]
    for table in (*statistics_tables(others, row), *ranks(others)):
        shown.append(replace(table, title=f"{table.title} (published)"))
    if not shown:
        notes = "".join(f": {note}" for note in unfinished(part))
        raise UserError(f"no finished run in {settings.output}/records for that{notes}")
    print(render(shown, settings.format))
    return 0


def part_of(runs: pd.DataFrame, what: str, row: str = "vera") -> pd.DataFrame:
    """The runs of a table, of a preset (experiment=NAME), or all of them. A preset's are those that ran for
    it and, where none of them is of `row`, with which the others are compared, those of `row`: they may have
    run for another preset first. Raises UserError for an unknown table or preset."""
    if not what:
        return runs
    preset = what.removeprefix("experiment=")
    of_preset = runs[runs.preset == preset]
    if preset == what:
        of_table = _of_table(runs, what)
        return runs[[key in of_table for key in zip(runs.model, runs.task, strict=True)]]
    presets = {path.stem for path in CONF.glob("experiment/*.yaml")} | set(runs.preset)
    if preset not in presets:
        hint = did_you_mean(preset, presets)
        raise UserError(f"no preset {preset!r}.{hint} They are the files of conf/experiment")
    on = ["model", "task"]
    without = of_preset[on].merge(of_preset[of_preset.conf_row == row][on], how="left", indicator=True)
    without = without[without._merge == "left_only"]
    elsewhere = runs[runs.conf_row == row].merge(without[on].drop_duplicates()).id
    return runs[(runs.preset == preset) | runs.id.isin(elsewhere)]


def _of_table(runs: pd.DataFrame, name: str) -> Collection[tuple[str, str]]:
    """The models and tasks of a table."""
    if name in tables.WITHOUT_RECORDS:
        raise UserError(f"{name} is of formulas or recipes, and has no records")
    if name not in tables.TABLES:
        known = (CONF / "experiment" / f"{name}.yaml").is_file() or name in set(runs.preset)
        hint = f" A preset's: experiment={name}." if known else ""
        raise UserError(f"no table {name!r}.{hint} Known: {', '.join(tables.TABLES)}, and experiment=PRESET")
    return {(table.model, task) for table in tables.made(name, runs) for task in table.tasks.values()}


if __name__ == "__main__":
    entry_point(main)
