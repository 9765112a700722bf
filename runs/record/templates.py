"""The project's one jinja2 environment: pages, the report, notes of studies and model
cards are made with it."""

import re
from functools import cache
from pathlib import Path

import jinja2

from runs.record.text import folded, megabytes, one_line, plural
from runs.record.wording import in_words

#: The most characters of a line in a cell of a page's table.
CELL_WIDTH = 40


@cache
def template_environment(
    *folders: Path, autoescape: bool = False
) -> jinja2.Environment:
    """Templates of these folders; a name that they use and nobody has defined is an
    error. autoescape: for HTML. In Markdown the filters `cell` and `folded` escape a
    label. `in_words` shows a record's sentence."""
    loaded = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loaded.filters["megabytes"] = megabytes
    loaded.filters["cell"] = table_cell
    loaded.filters["folded"] = folded_cell
    loaded.filters["in_words"] = in_words
    loaded.globals["plural"] = plural
    return loaded


def table_cell(text: object) -> str:
    """A text as a cell of a Markdown table."""
    return one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")


def folded_cell(text: object) -> str:
    """A list as a cell of a Markdown table, on several lines where it is long."""
    return "<br>".join(map(table_cell, folded(str(text), CELL_WIDTH)))


def without_gaps(text: str) -> str:
    """A page without the blank lines that empty parts of a template leave."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
