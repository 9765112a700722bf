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
    """The environment of the templates in these folders. A name that a template uses and
    nobody has defined is an error. autoescape: for HTML; in Markdown the filters `cell`
    and `folded` escape a label."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["megabytes"] = megabytes
    environment.filters["cell"] = table_cell
    environment.filters["folded"] = folded_cell
    environment.filters["in_words"] = in_words
    environment.globals["plural"] = plural
    return environment


def table_cell(text: object) -> str:
    """A text as a cell of a Markdown table: on one line, and escaped."""
    return one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")


def folded_cell(text: object) -> str:
    """A list of names, separated by commas, as a cell of a Markdown table. A long one is
    broken into lines of CELL_WIDTH characters."""
    return "<br>".join(map(table_cell, folded(str(text), CELL_WIDTH)))


def without_gaps(text: str) -> str:
    """A page with one blank line at most between two others: empty parts of a template
    leave more."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
