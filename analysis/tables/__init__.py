"""A table of the paper, or of the demo, from records. Each has a file; TABLES names them."""

from collections.abc import Collection
from dataclasses import replace

from analysis.cost_score import with_score
from analysis.own import (
    as_published,
    early_stops,
    failures,
    hidden_variants,
    is_stopped,
    measured_unlike,
    nearest_variants,
    of_tasks,
    parts_of_data,
    published,
    split,
    with_variants,
)
from analysis.table import Table
from analysis.tables.ablations import table6, table7
from analysis.tables.claims import claims_table
from analysis.tables.counts import table1
from analysis.tables.demo import demo_table
from analysis.tables.e2e import table3
from analysis.tables.glue import table2
from analysis.tables.images import table5
from analysis.tables.instruct import table4, table12, table13
from analysis.tables.recipes import table8, table9, table10, table11
from analysis.tables.rows import rows_table
from runs.record import Ledger, Record

TABLES = {"table1": table1, "table2": table2, "table3": table3, "table4": table4, "table5": table5}
TABLES |= {"table6": table6, "table7": table7, "table8": table8, "table9": table9, "table10": table10}
TABLES |= {"table11": table11, "table12": table12, "table13": table13, "demo": demo_table}
TABLES |= {"claims": claims_table}
#: Those that need no record.
WITHOUT_RECORDS = ("table1", "table8", "table9", "table10", "table11", "claims")


def make(
    name: str,
    ledger: Ledger,
    select: str = "paper",
    seeds: int | None = None,
    models: Collection[str] = (),
    tasks: Collection[str] = (),
    every: bool = False,
    every_own: bool = False,
    cost: str = "none",
) -> list[Table]:
    """A table's parts by its name, "" for rows x tasks of whatever has run: first of what ran on this
    machine, then of what the project has published.

    models, tasks: what parts and columns are shown of it (empty: all). every: each variant of a row.
    every_own: each variant of own rows, and of a published row the variant that is nearest to an own run.
    cost: a column with the cost score by the constants of its paper, or of the table's model (cost_score.py).
    """
    if name in WITHOUT_RECORDS:
        return TABLES[name](ledger, select, seeds)
    own, others = split(ledger)
    tables, noted = list[Table](), set[str]()  # noted: own runs whose table has the note on them
    if own.records or own.measures or not others.records:
        shown = with_variants(own, paper=name != "") if every or every_own else own
        tables = _of_part(name, shown, select, seeds, models, tasks)
        tables.sort(key=lambda table: not table.runs)  # the paper's rows alone come after those with runs
        for table in tables:
            table.notes += _own_notes(table, shown)
            noted |= {record["id"] for record in _near(table, shown)}
        if cost != "none":
            tables = [with_score(table, shown.records, cost) for table in tables]
    if others.records:
        shown = with_variants(others, paper=name != "") if every else others
        if every_own and not every:
            shown = nearest_variants(others, own)
        no_own = not tables  # then the paper's rows alone are worth showing
        for table in _of_part(name, shown, select, seeds, models, tasks):
            hidden = hidden_variants(_near(table, others)) if every_own and not every else []
            runs = {run for runs in table.runs.values() for run in runs}
            in_table = [shown.records[run] for run in sorted(runs & shown.records.keys())]
            parts = [*parts_of_data(in_table), *measured_unlike(in_table)]
            table.notes += [*hidden, *parts, *published(others, runs)]
            if table.runs or no_own:
                scored = table if cost == "none" else with_score(table, shown.records, cost)
                tables.append(as_published(scored))
    if tables:
        tables[0].notes += early_stops(r for r in stopped(name, own, models, tasks) if r["id"] not in noted)
    return tables


def stopped(
    name: str, own: Ledger, models: Collection[str] = (), tasks: Collection[str] = ()
) -> list[Record]:
    """The own runs that would be in a table if train.max_steps had not stopped them early."""
    early = {i: r for i, r in own.records.items() if is_stopped(r)}
    if name in WITHOUT_RECORDS or not early:
        return []
    whole = {
        i: r | {"config": r["config"] | {"train": r["config"]["train"] | {"max_steps": None}}}
        for i, r in early.items()
    }
    parts = _of_part(name, replace(own, records=whole), "paper", None, models, tasks)
    return [r for r in early.values() if any(_near(part, Ledger({r["id"]: r})) for part in parts)]


def _of_part(
    name: str,
    ledger: Ledger,
    select: str,
    seeds: int | None,
    models: Collection[str],
    tasks: Collection[str],
) -> list[Table]:
    if name == "":
        tables = rows_table(ledger, select, seeds)
    elif tasks and name == "table2":
        tables = table2(ledger, select, seeds, tuple(tasks))
    else:
        tables = [of_tasks(t, tasks) if tasks else t for t in TABLES[name](ledger, select, seeds)]
    return [table for table in tables if not models or table.model in models]


def _own_notes(table: Table, own: Ledger) -> list[str]:
    """Notes on own runs of a table's model and tasks that it does not show, and on parts of the data."""
    near = _near(table, own)
    shown = {run for runs in table.runs.values() for run in runs}
    in_table = [r for r in near if r["id"] in shown]
    parts = [*parts_of_data(in_table), *measured_unlike(in_table)]
    return [*hidden_variants(near), *parts, *early_stops(near), *failures(near)]


def _near(table: Table, ledger: Ledger) -> list[Record]:
    """The records of a table's model and tasks."""
    return [r for r in ledger if r["cell"]["model"] == table.model and r["cell"]["task"] in table.tasks]
