"""A table of the paper, or of the demo, from records. TABLES names them."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pandas as pd

from analysis import beside
from analysis.command import split
from analysis.frame import by_row, runs
from analysis.notes import unfinished
from analysis.render import Cell, Table
from analysis.tables.build import Spec, View, build, of_paper
from analysis.tables.columns import with_against, with_forgetting, with_numbers, with_score
from analysis.tables.formulas import claims_table, table1
from analysis.tables.judged import JUDGED
from analysis.tables.recipes import recipe_tables
from analysis.tables.specs import ROWS, SPECS, demo
from analysis.tables.theirs import with_others
from analysis.variants import every_variant, nearest_to
from runs.record import Ledger


def _recipes(number: int, view: View) -> list[Table]:
    return recipe_tables(number)


def _of_specs(*specs: Spec) -> Callable[[View], list[Table]]:
    return lambda view: [table for spec in specs for table in build(spec, view)]


_PAPER = SPECS | JUDGED
#: By their names, from how their runs are shown; those that need no record, too.
TABLES: dict[str, Callable[[View], list[Table]]] = {
    "table1": lambda view: table1(),
    **{
        name: _of_specs(*_PAPER[name])
        for name in ("table2", "table3", "table4", "table5", "table6", "table7")
    },
    **{f"table{number}": partial(_recipes, number) for number in range(8, 12)},
    **{name: _of_specs(*_PAPER[name]) for name in ("table12", "table13")},
    "demo": demo,
    "claims": lambda view: claims_table(),
}
#: Those that need no record.
WITHOUT_RECORDS = ("table1", "table8", "table9", "table10", "table11", "claims")
#: The tables with lines of what others report.
OTHERS = ("table2", "table3", "table4", "table5")


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Every number that the paper prints of a trained and judged model, beside our cell: `beside.beside` of
    each table, in the order of a page."""
    view, found = View(runs, seeds=beside.SEEDS), list[pd.DataFrame]()
    for name in ("table2", "table3", "table4", "table13", "table5", "table6", "table7"):
        for spec in _PAPER[name]:
            numbers = of_paper(spec, view)[1]
            found.append(numbers.drop_duplicates(["model", "method", "size", "column"]))
    return pd.concat(found, ignore_index=True)


Frames = tuple[pd.DataFrame, pd.DataFrame]


def make(name: str, ledger: Ledger, frames: Frames | None = None, **how: Any) -> list[Table]:
    """A table's parts by its name, "" for rows x tasks of whatever has run: first of what ran on this
    machine, then of what the project has published.

    frames: the runs of this machine, and the published ones, where they are at hand.

    how: select, seeds, tasks as in View; models, whose parts alone are shown; every, each variant of a row;
    every_own, each variant of own rows, and of a published row the variant that is nearest to an own run;
    cost, a column with the cost score by the constants of its paper, or of the table's model; columns,
    numbers of `frame.runs` as further columns; against, a row to which each row's difference is a column."""
    if name in WITHOUT_RECORDS:
        return claims_table(ledger.serving) if name == "claims" else TABLES[name](View(runs(Ledger())))
    own, others = frames or (runs(part) for part in split(ledger))
    tables = list[Table]()
    if len(own) or others.empty:
        shown = every_variant(own, paper=name != "") if how.get("every") or how.get("every_own") else own
        tables = made(name, shown, "ours", **how)
        tables.sort(key=lambda table: not table.ids)  # the paper's rows alone come after those with runs
    noted = {(table.model, task) for table in tables for task in table.tasks}
    if len(others):
        shown = every_variant(others, paper=name != "") if how.get("every") else others
        if how.get("every_own") and not how.get("every"):
            shown = nearest_to(others, own)
        no_own = not tables  # then the paper's rows alone are worth showing
        tables += [table for table in made(name, shown, "published", **how) if table.ids or no_own]
    if tables:
        tables[0].notes += unfinished(stopped(name, own, noted, **how))
    return tables


def made(name: str, runs: pd.DataFrame, whose: str = "ours", **how: Any) -> list[Table]:
    """A table's parts from some runs, whosever they are; how: as in `make`."""
    tasks, models = tuple(how.get("tasks", ())), tuple(how.get("models", ()))
    of_tasks = runs[runs.task.isin(tasks)] if tasks else runs
    view = View(of_tasks, how.get("select", "paper"), how.get("seeds"), tasks, models, whose)
    tables = build(ROWS, view) if name == "" else TABLES[name](view)
    if name in OTHERS and how.get("others", "false") != "false":
        chosen = cache(partial(_by_choice, name, view))
        each = how["others"] == "all"
        tables = [with_others(table, name, partial(chosen, table.model), each) for table in tables]
    if name in ("table3", "table4", "table13"):
        tables = [with_forgetting(table, runs) for table in tables]
    for column in how.get("columns", ()):
        tables = [with_numbers(table, runs, column) for table in tables]
    if how.get("against"):
        tables = [with_against(table, runs, how["against"]) for table in tables]
    if (cost := how.get("cost", "none")) != "none":
        tables = [with_score(table, runs, cost) for table in tables]
    return tables


def _by_choice(name: str, view: View, model: str, epoch: str) -> dict[str, dict[str, Cell]]:
    """The cells of a model by row and column, with the epoch chosen as a source of `others` chose it."""
    made, _ = of_paper(_PAPER[name][0], replace(view, select=epoch or "paper"))
    return by_row(made[made.model == model], "column")


def stopped(
    name: str, own: pd.DataFrame, noted: Collection[tuple[str, str]] = (), **how: Any
) -> pd.DataFrame:
    """The own runs that would be in a table if train.max_steps had not stopped them early. noted: models
    and tasks whose tables name them already."""
    early = own[own.kind == "stopped"]
    if early.empty:
        return early
    parts = made(name, early.assign(kind="result"), "ours", **{**how, "columns": (), "cost": "none"})
    in_parts = early[early.id.isin({run for part in parts for run in part.ids})]
    keys = pd.MultiIndex.from_frame(in_parts[["model", "task"]])
    return in_parts[~keys.isin(list(noted))]
