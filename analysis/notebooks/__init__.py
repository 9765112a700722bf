"""Notebooks as percent scripts: each is a few calls of analysis/*.py, and runs as a script, too."""

import os
from collections.abc import Iterable

from analysis.figures import Figure, svg
from analysis.report.html import table_html
from analysis.table import Table, texts
from runs.command import open_ledger
from runs.record import Ledger


def ledger() -> Ledger:
    """The records of the folder that the environment names (VERA_OUTPUT), or of outputs."""
    records = open_ledger(os.environ.get("VERA_OUTPUT", "outputs"))
    if not records.records:
        print("note: no records yet; tables show the paper's numbers alone")
    return records


class Shown:
    """A table or figure: HTML in a notebook, text elsewhere."""

    def __init__(self, part: Table | Figure) -> None:
        self.part = part

    def __repr__(self) -> str:
        part = self.part
        if isinstance(part, Table):
            return part.render("md")
        rows = ["  ".join(row) for row in [part.header, *texts(part.rows)]]
        return "\n".join([part.title, *rows, *part.notes])

    def _repr_html_(self) -> str:
        return ("" if isinstance(self.part, Table) else svg(self.part)) + table_html(self.part, {})


def show(parts: Iterable[Table | Figure], what: str) -> None:
    """Shows each table or figure, or a note that there is none."""
    shown = [Shown(part) for part in parts]
    for one in shown:
        _display(one)
    if not shown:
        print(f"note: the ledger holds nothing for {what}")


def _display(one: Shown) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(one)
        return
    (display if get_ipython() else print)(one)
