"""Pieces of HTML: words, links to cells, and tables with the runs behind their numbers."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runs.record.text import one_line

MARKS = {"reproduced": ("good", "✓"), "not reproduced": ("bad", "✗"), "incomplete": ("part", "…")}
MARKS |= {
    "consistent, wide": ("part", "≈"),
    "inside our interval": ("part", "≈"),
    "outside our interval": ("bad", "✗"),
}


def escape(text: object) -> str:
    """A text on one line, safe inside an element."""
    return html.escape(one_line(str(text)).replace("+-", "±"))


def marked(word: str) -> str:
    """A verdict with its sign and colour."""
    kind, mark = MARKS.get(word, ("part" if word.startswith("reproduced") else "none", "-"))
    return f'<span class="v v-{kind}"><span aria-hidden="true">{mark} </span>{escape(word)}</span>'


def link(text: str, ids: Sequence[str], place: Mapping[str, int]) -> str:
    """A number, leading to the cells that it is made of."""
    found = list(dict.fromkeys(place[name] for name in ids if name in place))
    if not found:
        return escape(text)
    target = f"cell-{found[0]}" if len(found) == 1 else f"cells-{'.'.join(map(str, found))}"
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


def table_html(table: Any, place: Mapping[str, int]) -> str:
    """A table of analysis.tables, or the numbers of a figure, with the runs behind it."""
    rows: list[str] = []
    behind: dict[str, None] = {}
    named = ""
    # A figure's last column are the ids that its numbers lead to; of a measure that is of no run it stays.
    known = [name for row in table.rows for cell in row for name in cell.ids]
    header = (
        table.header[:-1]
        if table.header[-1] == "runs" and all(name in place for name in known)
        else table.header
    )
    for row in table.rows:
        cells = []
        for i, (cell, column) in enumerate(zip(row, header, strict=False)):
            shown = link(cell.text, cell.ids, place)
            cells.append(
                f'<th scope="row">{shown}</th>'
                if i == 0 and cell.text
                else f"<td{_class(column)}>{shown}</td>"
            )
        ids = list(dict.fromkeys(name for cell in row for name in cell.ids if name in place))
        named = row[0].text or named
        source = row[1].text if len(row) > 1 else ""
        if ids and source != "difference":
            links = " ".join(f'<a href="#run-{escape(name)}">{escape(name)}</a>' for name in ids)
            task = f" on {escape(source)}" if table.header[1:2] == ["task"] else ""
            behind[f"<li>{escape(named)}{task}: {links}</li>"] = None
        rows.append(f"<tr{' class=paper' if source.startswith('paper') else ''}>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    made = grid(table.title, header, rows) + (f'<ul class="notes">{notes}</ul>' if notes else "")
    if behind:
        made += (
            "<details><summary>Runs behind these numbers</summary><ul"
            f' class="ids">{"".join(behind)}</ul></details>'
        )
    return made
