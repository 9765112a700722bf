"""Pieces of HTML: words, links to cells, and tables with the runs behind their numbers."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runs.record.text import one_line

#: The class and the sign of a verdict; the page's script has them from its data.
MARKS = {
    "reproduced": ("good", "✓"),
    "not reproduced": ("bad", "✗"),
    "incomplete": ("part", "…"),
    "consistent, wide": ("part", "≈"),
    "inside our interval": ("part", "≈"),
    "outside our interval": ("bad", "✗"),
}


def escape(text: object) -> str:
    """A text on one line, safe inside an element."""
    return html.escape(one_line(str(text)).replace("+-", "±"))


def marked(word: str) -> str:
    """A verdict with its sign and colour."""
    kind, mark = MARKS.get(word, ("part" if word.startswith("reproduced") else "none", ""))
    sign = f'<span aria-hidden="true">{mark} </span>' if mark else ""
    return f'<span class="v v-{kind}">{sign}{escape(word)}</span>'


def bullets(lines: Iterable[object]) -> str:
    """A list of notes; "" without any."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ""


def folded(title: str, inside: str, attributes: str = "") -> str:
    """A part of the page that opens on a click on its title; both are HTML."""
    return f"<details{attributes and f' {attributes}'}><summary>{title}</summary>{inside}</details>"


def link(text: str, ids: Sequence[str], position: Mapping[str, int]) -> str:
    """A number, leading to the cells that it is made of. position: that of its cell on the page, by run
    id."""
    cells = list(dict.fromkeys(position[name] for name in ids if name in position))
    if not cells:
        return escape(text)
    target = f"cell-{cells[0]}" if len(cells) == 1 else f"cells-{'.'.join(map(str, cells))}"
    return f'<a href="#{target}">{escape(text)}</a>'


#: Columns of words, which stand to the left.
WORDS = {"source", "status", "task", "model", "number", "metric", "judge", "device", "verdict", "deviations"}
WORDS |= {"tried on", "numbers"}


def grid(title: str, header: Sequence[str], rows: Iterable[str], titled: bool = True) -> str:
    """A table in a frame that scrolls by itself, also by keyboard. titled: a heading above it says the same
    already."""
    head = "".join(f'<th scope="col"{_class(name)}>{escape(name)}</th>' for name in header)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
        f"<caption{' class=unseen' if titled else ''}>{escape(title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def picture_html(title: str, svg: str, points: Iterable[tuple[float, float, str]]) -> str:
    """A figure's picture, whose points show their values to whoever points at them.

    The picture is an image of its own, whose ids cannot meet another's; over it lies a transparent one, with
    a circle and its title at each point."""
    image = base64.b64encode(svg.encode()).decode()
    circles = "".join(
        f'<circle cx="{100 * x:.1f}%" cy="{100 * y:.1f}%" r="7"><title>{escape(text)}</title></circle>'
        for x, y, text in points
    )
    return (
        f'<figure class="drawn"><img src="data:image/svg+xml;base64,{image}" alt="{escape(title)}. The'
        f' numbers are in the table below."><svg aria-hidden="true">{circles}</svg></figure>'
    )


def _class(column: str) -> str:
    wide = column in ("status", "deviations")
    return ' class="words"' if wide else ' class="text"' if column in WORDS else ""


def table_html(table: Any, position: Mapping[str, int]) -> str:
    """A table of analysis.tables, or the numbers of a figure, with the runs behind it."""
    header, rows = table.header, list[str]()
    behind, named = dict[str, None](), ""
    # A figure's last column holds the ids that its numbers lead to; of a measure of no run it stays.
    if header[-1] == "runs" and all(
        name in position for row in table.rows for cell in row for name in cell.ids
    ):
        header = header[:-1]
    for row in table.rows:
        cells = [
            f"<td{_class(column)}>{link(cell.text, cell.ids, position)}</td>"
            for cell, column in zip(row, header, strict=False)
        ]
        if row[0].text:
            cells[0] = f'<th scope="row">{link(row[0].text, row[0].ids, position)}</th>'
            named = row[0].text
        source = row[1].text if len(row) > 1 else ""
        ids = dict.fromkeys(name for cell in row for name in cell.ids if name in position)
        if ids and source != "difference":
            links = " ".join(f'<a href="#run-{escape(name)}">{escape(name)}</a>' for name in ids)
            task = f" on {escape(source)}" if table.header[1:2] == ["task"] else ""
            behind[f"<li>{escape(named)}{task}: {links}</li>"] = None
        rows.append(f"<tr{' class=paper' if source.startswith('paper') else ''}>{''.join(cells)}</tr>")
    runs = folded("Runs behind these numbers", f'<ul class="ids">{"".join(behind)}</ul>') if behind else ""
    return grid(table.title, header, rows) + bullets(table.notes) + runs
