"""Notebooks as percent scripts: a few calls of analysis, to be edited. Each runs as a script, too."""

import os
from typing import Any

from analysis.figures import Figure, svg
from analysis.render import Table, markdown
from analysis.rows import RowMaker
from runs.command.records import open_ledger
from runs.record.ledger import Ledger


def ledger() -> Ledger:
    """The records of the folder that the environment names (VERA_OUTPUT) or of outputs, and
    the published ones, as rows of `frame.runs`."""
    return open_ledger(os.environ.get("VERA_OUTPUT", "outputs"), make_row=RowMaker())


def show(*parts: Any) -> None:
    """Shows tables, figures and frames: rendered in a notebook, elsewhere as text. Without
    any it says that there are no records."""
    import IPython

    # None in a script, which prints
    notebook: Any = IPython.display if IPython.get_ipython() else None
    display = notebook.display if notebook else print
    for part in parts or ("note: there are no records of it yet",):
        if isinstance(part, Table):
            text = markdown(part)
            display(notebook.Markdown(text) if notebook else text)
        elif isinstance(part, Figure):
            print("\n".join([part.title, *part.notes]))
            if notebook:
                display(notebook.SVG(svg(part)))
            display(part.data)
        else:
            display(part)
