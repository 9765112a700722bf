"""Notebooks as percent scripts: each is a few calls of analysis/*.py, and runs as a script, too."""

import html
import os
from collections.abc import Iterable
from typing import Any

from analysis.figures import svg
from analysis.table import Table, texts
from runs.command import open_ledger
from runs.record import Ledger


def ledger() -> Ledger:
    """The records of the folder that the environment names (VERA_OUTPUT), or of outputs."""
    found = open_ledger(os.environ.get("VERA_OUTPUT", "outputs"))
    if not found.records:
        print("note: no records yet; tables show the paper's numbers alone")
    return found


class Shown:
    """A table or figure: HTML in a notebook, text elsewhere."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __repr__(self) -> str:
        of = self.of
        if isinstance(of, Table):
            return of.render("md")
        return "\n".join([of.title, *("  ".join(row) for row in [of.header, *texts(of.rows)]), *of.notes])

    def _repr_html_(self) -> str:
        of = self.of
        picture = "" if isinstance(of, Table) else svg(of).partition("<svg")[2]
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in of.header)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in texts(of.rows)
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in of.notes)
        caption = f"<caption>{html.escape(of.title)}</caption>"
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return (f"<svg{picture}" if picture else "") + f"{table}<ul>{notes}</ul>"


def show(made: Iterable[Any], what: str) -> None:
    """Shows each table or figure; where there is none, says so and what would make it."""
    found = list(made)
    for one in found:
        _display(Shown(one))
    if not found:
        print(f"note: the ledger holds nothing for {what}")


def _display(one: Any) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(one)
        return
    (display if get_ipython() else print)(one)
