"""A table as text, and its forms: Markdown, LaTeX and CSV. Every table of this folder is one of these."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from runs.record.text import one_line


@dataclass(frozen=True)
class TableCell:
    """The text of a cell and, where it is a number of ours, the ids of the records behind it."""

    text: str
    ids: tuple[str, ...] = ()

    def flat(self) -> "TableCell":
        return TableCell(one_line(self.text), tuple(map(one_line, self.ids)))


def make_row(*cells: str | TableCell) -> list[TableCell]:
    """A row of a table. A plain text has no records behind it."""
    return [cell if isinstance(cell, TableCell) else TableCell(cell) for cell in cells]


def texts(rows: Iterable[Iterable[TableCell]]) -> list[list[str]]:
    """What rows say, without the records behind it."""
    return [[cell.text for cell in row] for row in rows]


@dataclass
class Table:
    """A table: a title, a header, rows of equal length, and notes under it.

    For the dashboard, what it is made of: a model, tasks with their labels, and the numbers of a run that it
    shows."""

    title: str
    header: list[str]
    rows: list[list[TableCell]]
    notes: list[str]
    model: str
    tasks: dict[str, str]
    shows: tuple[str, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.title}: a row of {len(row)} cells under {len(self.header)} columns")

    @property
    def texts(self) -> list[list[str]]:
        """Its cells without the records behind them, row by row."""
        return texts(self.rows)

    @property
    def runs(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """The run ids behind each cell, by its row and column."""
        return {(i, j): cell.ids for i, row in enumerate(self.rows) for j, cell in enumerate(row) if cell.ids}

    def render(self, form: str, runs: bool = False) -> str:
        """As md, latex or csv. runs: with the run ids of each cell under it (csv has a column of them
        anyway)."""
        flat = self.flat()
        text = {"md": _markdown, "latex": _latex, "csv": _csv}[form](flat)
        if not runs or form == "csv":
            return text
        mark = "% " if form == "latex" else ""
        lines = [
            f"{mark}{flat._of_row(i)} / {flat.header[j]}: {' '.join(found)}"
            for (i, j), found in flat.runs.items()
        ]
        return "\n".join([text, *([] if form == "latex" else [""]), *lines]) if lines else text

    def flat(self) -> "Table":
        """The same without line breaks: a label or deviation is a stranger's text, and stays in its cell or
        comment."""
        rows = [[cell.flat() for cell in row] for row in self.rows]
        header, notes = ([one_line(text) for text in of] for of in (self.header, self.notes))
        return replace(self, title=one_line(self.title), header=header, rows=rows, notes=notes)

    def _of_row(self, i: int) -> str:
        """A row's name for the list of runs: a row without one is of the row above it."""
        rows = self.texts
        named = next((row[0] for row in reversed(rows[: i + 1]) if row[0]), "")
        return f"{named}, {rows[i][1]}" if len(rows[i]) > 1 and not rows[i][0] else named


# --- Markdown


def grid(table: Table) -> list[str]:
    """The lines of a Markdown table, without its title and notes."""
    rows = table.texts
    widths = [max(len(row[i]) for row in [table.header, *rows]) for i in range(len(table.header))]

    def row_of(row: list[str]) -> str:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(cells) + " |"

    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return [row_of(table.header), rule, *map(row_of, rows)]


def _markdown(table: Table) -> str:
    return "\n".join([table.title, "", *grid(table), "", *table.notes]).rstrip()


# --- LaTeX

#: What LaTeX takes for its own.
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "+-": r"$\pm$"}
_LATEX |= {"<": "$<$", ">": "$>$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def escape(text: str) -> str:
    """A text as LaTeX."""
    return re.sub(r"\+-|[\\~^<>&%$#_{}]", lambda found: _LATEX[found[0]], text)


def _latex(table: Table) -> str:
    def row_of(row: list[str]) -> str:
        return " & ".join(escape(cell) for cell in row) + r" \\"

    spec = "l" + "r" * (len(table.header) - 1)
    begin = [f"% {table.title}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    body = [row_of(table.header), r"\midrule", *map(row_of, table.texts)]
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}", *notes])


# --- CSV

#: A number of a table: -0.3, +0.2 +-1.1 (3/5), -8.0e-05. None of its signs can call or name anything.
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?%?( \+-[\d.,]+)?( \(\d+(/\d+)?\))?\*?")


def spreadsheet(cell: str) -> str:
    """A cell of a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe before it;
    numbers, and the dash that stands for none, stay."""
    runs = cell.lstrip()[:1] in ("=", "+", "-", "@") and cell != "-" and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if runs else cell


def _csv(table: Table) -> str:
    """Numbers that a spreadsheet can count with: "94.6 +-0.1 (3/5)" becomes three columns, with (3), too; the
    title is the first."""
    rows = table.texts
    wide = [any(re.search(r"\+-| \(\d+(/\d+)?\)$", row[i]) for row in rows) for i in range(len(table.header))]
    header = ["table"]
    for name, splits in zip(table.header, wide, strict=True):
        header += [name, f"{name} spread", f"{name} mark"] if splits else [name]
    lines = [[*header, "runs"]]
    for row in table.rows:
        parts = [table.title]
        for cell, splits in zip(row, wide, strict=True):
            parts += _split(cell.text) if splits else [_plain(cell.text)]
        found = [
            f"{name}: {' '.join(cell.ids)}" for name, cell in zip(table.header, row, strict=True) if cell.ids
        ]
        lines.append([*parts, "; ".join(found)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[spreadsheet(cell) for cell in line] for line in lines])
    return text.getvalue().rstrip("\n")


def _split(text: str) -> list[str]:
    """A number, its spread and its mark; a text is a mark."""
    number = re.fullmatch(r"([+-]?[\d.]+)(?: \+-([\d.]+))?(.*)", text)
    return [(part or "").strip() for part in (number.groups() if number else ("", "", text))]


def _plain(text: str) -> str:
    return text.replace(",", "") if text[:1].isdigit() else text
