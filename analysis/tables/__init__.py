"""A table of the paper, or of the demo, from records. TABLES names them."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pandas as pd

from analysis import beside
from analysis.command import split
from analysis.frame import every_variant, runs
from analysis.notes import unfinished
from analysis.render import Table
from analysis.tables.build import View, build, of_paper
from analysis.tables.formulas import claims_table, recipe_tables, table1
from analysis.tables.judged import JUDGED
from analysis.tables.specs import DEMO, ROWS, SPECS, demo
from runs.record import Ledger

_PAPER = SPECS | JUDGED


def _of_paper(number: int, view: View) -> list[Table]:
    return [table for spec in _PAPER[f"table{number}"] for table in build(spec, view)]


#: By their names, from how their runs are shown; those that need no record, too. In the order of a page.
TABLES: dict[str, Callable[[View], list[Table]]] = {
    "table1": lambda view: table1(),
    **{f"table{number}": partial(_of_paper, number) for number in range(2, 8)},
    **{f"table{number}": partial(recipe_tables, number) for number in range(8, 12)},
    **{f"table{number}": partial(_of_paper, number) for number in (12, 13)},
    "demo": demo,
    "claims": lambda view: claims_table(),
}
#: Those that need no record.
WITHOUT_RECORDS = ("table1", "table8", "table9", "table10", "table11", "claims")


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Every number that the paper prints of a trained and judged model, beside our cell: `beside.beside` of
    each table, in the order of a page."""
    view, found = View(runs, seeds=beside.SEEDS), list[pd.DataFrame]()
    for name in ("table2", "table3", "table4", "table13", "table5", "table6", "table7"):
        for spec in _PAPER[name]:
            numbers = of_paper(spec, view)[1]
            found.append(numbers.drop_duplicates(["model", "method", "size", "column"]))
    return pd.concat(found, ignore_index=True)


def make(
    name: str,
    ledger: Ledger,
    frames: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    every: bool = False,
    every_own: bool = False,
    **how: Any,
) -> list[Table]:
    """A table's parts by its name, "" for rows x tasks of whatever has run: first of what ran on this
    machine, then of what the project has published.

    frames: the runs of this machine, and the published ones, where they are at hand. every: each variant of a
    row; every_own: of own rows alone. how: what View takes."""
    if name in WITHOUT_RECORDS:
        return claims_table(ledger.serving) if name == "claims" else made(name, runs(Ledger()))
    own, others = frames or (runs(part) for part in split(ledger))
    tables = list[Table]()
    if len(own) or others.empty:
        shown = every_variant(own, paper=name != "") if every or every_own else own
        tables = made(name, shown, **how)
        tables.sort(key=lambda table: not table.ids)  # the paper's rows alone come after those with runs
    noted = {(table.model, task) for table in tables for task in table.tasks.values()}
    if len(others):
        shown = every_variant(others, paper=name != "") if every else others
        no_own = not tables  # then the paper's rows alone are worth showing
        published = made(name, shown, whose="published", **how)
        tables += [table for table in published if table.ids or no_own]
    if tables:  # own runs that were stopped early, of models and tasks without a table of own runs
        tasks = {task for table in tables for task in table.tasks.values()}
        early = own[(own.kind == "stopped") & (own.task.isin(tasks) | (name == ""))]
        keys = pd.MultiIndex.from_frame(early[["model", "task"]])
        tables[0].notes += unfinished(early[~keys.isin(list(noted))])
    return tables


def belonging(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that a table is made of, finished or not; of rows x tasks all."""
    specs = {**_PAPER, "demo": (DEMO,), "": (ROWS,)}[name]
    return runs[pd.concat([spec.belongs(runs) for spec in specs], axis=1).any(axis=1)]


def made(name: str, runs: pd.DataFrame, tasks: Collection[str] = (), **how: Any) -> list[Table]:
    """A table's parts from some runs, whosever they are; how: what View takes."""
    view = View(runs[runs.task.isin(tasks)] if tasks else runs, tasks=tuple(tasks), **how)
    return TABLES[name](view) if name else build(ROWS, view)
