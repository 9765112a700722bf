"""A table of the paper, or of the demo, from records. TABLES names them."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pandas as pd

from analysis import beside
from analysis.command import own_and_published
from analysis.frame import every_variant
from analysis.notes import unfinished
from analysis.render import Table
from analysis.tables.build import build, of_paper
from analysis.tables.formulas import claims_table, recipe_tables, table1
from analysis.tables.specs import View, specs
from runs.record import Ledger

#: Those that need no record.
WITHOUT_RECORDS: dict[str, Callable[[], list[Table]]] = {
    "table1": table1,
    **{f"table{number}": partial(recipe_tables, number) for number in range(8, 12)},
    "claims": claims_table,
}
#: The names of all, in the order of a page.
TABLES = (
    *(f"table{number}" for number in range(1, 14)),
    "maths",
    "commonsense",
    "lm_eval",
    "demo",
    "claims",
)


def make(
    name: str,
    ledger: Ledger,
    frames: tuple[pd.DataFrame, pd.DataFrame] | None = None,
    every: bool = False,
    every_own: bool = False,
    **how: Any,
) -> list[Table]:
    """A table's parts by its name, "" for rows x tasks of whatever has run: first of
    what ran on this machine, then of what the project has published.

    frames: the runs of this machine, and the published ones, where they are at hand.
    every: each variant of a row; every_own: of own rows alone. how: what View takes."""
    if name in WITHOUT_RECORDS:
        return WITHOUT_RECORDS[name]()
    own, others = frames or own_and_published(ledger)

    def part(runs: pd.DataFrame, each: bool, whose: str) -> list[Table]:
        return made(
            name,
            every_variant(runs, paper=name != "") if each else runs,
            whose=whose,
            **how,
        )

    # The paper's rows alone come after those with runs, and are shown once
    tables = part(own, every or every_own, "ours") if len(own) or others.empty else []
    tables.sort(key=lambda table: not table.ids)
    missing = belonging(name, own)[
        lambda of: ~of.model.isin([table.model for table in tables])
    ]
    missing = missing[
        (missing.kind == "stopped")
        & (missing.task.isin(how.get("tasks") or missing.task))
    ]
    published = part(others, every, "published") if len(others) else []
    tables += [table for table in published if table.ids or not tables]
    # own runs that were stopped early, of models without a table of own runs
    if tables:
        tables[0].notes += unfinished(missing)
    return tables


def made(
    name: str, runs: pd.DataFrame, tasks: Collection[str] = (), **how: Any
) -> list[Table]:
    """A table's parts from some runs, whosever they are; how: what View takes."""
    if name in WITHOUT_RECORDS:
        return WITHOUT_RECORDS[name]()
    view = View(
        runs[runs.task.isin(tasks)] if tasks else runs, tasks=tuple(tasks), **how
    )
    return [table for spec in specs()[name] for table in build(spec, view)]


def belonging(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that a table is made of, finished or not; of rows x tasks all."""
    return pd.concat([spec.belonging(runs) for spec in specs()[name]]).drop_duplicates(
        "id"
    )


def verdicts(runs: pd.DataFrame) -> pd.DataFrame:
    """Every number that the paper prints of a trained and judged model, beside our
    cell: `beside.beside` of each table, in the order of a page."""
    view, found = View(runs, seeds=beside.SEEDS), list[pd.DataFrame]()
    for name in ("table2", "table3", "table4", "table13", "table5", "table6", "table7"):
        for spec in specs()[name]:
            numbers = of_paper(spec, *spec.parts(view))[1]
            found.append(numbers.drop_duplicates(["model", "method", "size", "column"]))
    return pd.concat(found, ignore_index=True)
