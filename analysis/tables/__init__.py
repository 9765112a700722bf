"""A table of the paper, or of the demo, from records. Each has a file; TABLES names them."""

from analysis.cells import published
from analysis.table import Table
from analysis.tables.ablations import table6, table7
from analysis.tables.counts import table1
from analysis.tables.demo import demo_table
from analysis.tables.e2e import table3
from analysis.tables.glue import table2
from analysis.tables.images import table5
from analysis.tables.instruct import table4, table12, table13
from analysis.tables.recipes import table8, table9, table10, table11
from runs.record import Ledger

TABLES = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "table6": table6,
}
TABLES |= {"table7": table7, "table8": table8, "table9": table9, "table10": table10, "table11": table11}
TABLES |= {"table12": table12, "table13": table13, "demo": demo_table}
#: Those that need no record.
WITHOUT_RECORDS = ("table1", "table8", "table9", "table10", "table11")


def make(name: str, ledger: Ledger, select: str = "paper", seeds: int | None = None) -> list[Table]:
    """A table's parts by its name, each with what of it is of published records."""
    made = TABLES[name](ledger, select, seeds)
    for table in made:
        table.notes += published(ledger, (run for runs in table.runs.values() for run in runs))
    return made
