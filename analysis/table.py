"""A table as text, and its forms: Markdown, LaTeX and CSV. Every table of this folder is one of these."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from runs.record.text import one_line


@dataclass(frozen=True)
class TableCell:
    """The text of a cell and, where it is a number of ours, the ids of the records behind it."""

    text: str
    ids: tuple[str, ...] = ()


def make_row(*cells: str | TableCell) -> list[TableCell]:
    """A row of a table. A plain text has no records behind it."""
    return [cell if isinstance(cell, TableCell) else TableCell(cell) for cell in cells]


def texts(rows: Iterable[Iterable[TableCell]]) -> list[list[str]]:
    """The texts of rows, without the records behind them."""
    return [[cell.text for cell in row] for row in rows]


@dataclass
class Table:
    """A table: a title, a header, rows of equal length, and notes under it.

    For the dashboard: its model ("" if it has none), the labels of its tasks by task, and the numbers of a
    run that it shows."""

    title: str
    header: list[str]
    rows: list[list[TableCell]]
    notes: list[str]
    model: str = ""
    tasks: dict[str, str] = field(default_factory=dict)
    shows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.title}: a row of {len(row)} cells under {len(self.header)} columns")

    @property
    def texts(self) -> list[list[str]]:
        """The texts of its rows."""
        return texts(self.rows)

    @property
    def runs(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """The run ids behind each cell, by its row and column."""
        return {(i, j): cell.ids for i, row in enumerate(self.rows) for j, cell in enumerate(row) if cell.ids}

    def render(self, form: str, runs: bool = False) -> str:
        """The table as md, latex or csv. runs: with the run ids of each cell below the table; csv always has
        a column of them."""
        flat = self.flat()
        text = {"md": _markdown, "latex": _latex, "csv": _csv}[form](flat)
        if not runs or not flat.runs or form == "csv":
            return text
        mark, name, lines = "% " if form == "latex" else "", "", [text] if form == "latex" else [text, ""]
        for row in flat.rows:
            name = row[0].text or name  # a row without a name belongs to the row above it
            whose = name if row[0].text else f"{name}, {row[1].text}"
            cells = zip(flat.header, row, strict=True)
            lines += [f"{mark}{whose} / {column}: {' '.join(cell.ids)}" for column, cell in cells if cell.ids]
        return "\n".join(lines)

    def flat(self) -> "Table":
        """The same table without line breaks in its texts, so that labels and deviations, which users write,
        stay in their cell or comment."""
        rows = [[TableCell(one_line(c.text), tuple(map(one_line, c.ids))) for c in row] for row in self.rows]
        header, notes = ([one_line(text) for text in of] for of in (self.header, self.notes))
        return replace(self, title=one_line(self.title), header=header, rows=rows, notes=notes)


# --- Markdown


def grid(table: Table) -> list[str]:
    """The lines of a Markdown table, without its title and notes."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in [table.header, *table.texts])
    first, *others = (max(map(len, column)) for column in zip(header, *rows, strict=True))

    def line(row: list[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], others, strict=True)]
        return f"| {' | '.join([row[0].ljust(first), *cells])} |"

    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    return [line(header), f"|{rule}|", *map(line, rows)]


def _markdown(table: Table) -> str:
    return "\n".join([table.title, "", *grid(table), "", *table.notes]).rstrip()


# --- LaTeX

#: Characters that LaTeX reads as its own (a [ after the end of a row begins an option), and +-.
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "+-": r"$\pm$"}
_LATEX |= {"<": "$<$", ">": "$>$", "[": "{[}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def escape(text: str) -> str:
    """A text as LaTeX."""
    return re.sub(r"\+-|[\\~^<>[&%$#_{}]", lambda match: _LATEX[match[0]], text)


def _latex(table: Table) -> str:
    spec = "l" + "r" * (len(table.header) - 1)
    begin = [f"% {table.title}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    header, *rows = (" & ".join(map(escape, row)) + r" \\" for row in [table.header, *table.texts])
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*begin, header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", *notes])


# --- CSV

#: A number of a table: -0.3, +0.2 +-1.1 (3/5), -8.0e-05. A spreadsheet finds no formula in it.
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?%?( \+-[\d.,]+)?( \(\d+(/\d+)?\))?\*?")


#: A number with its spread or its count of seeds, which have columns of their own.
_PARTS = re.compile(r"[+-]?[\d.,]+( \+-[\d.,]+| \(\d+(/\d+)?\))")
#: A count with commas between the thousands.
_THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?x?")


def spreadsheet(cell: str) -> str:
    """A cell of a CSV file. A text that a spreadsheet would run as a formula gets an apostrophe before it;
    numbers, and the dash of an empty cell, stay as they are."""
    is_formula = cell.lstrip()[:1] in ("=", "+", "-", "@") and cell != "-" and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def _csv(table: Table) -> str:
    """Numbers that a spreadsheet can compute with: a column with cells such as "94.6 +-0.1 (3/5)" becomes
    three. The table's title is the first column, the run ids are the last."""
    lines = [["table"], *([table.title] for _ in table.rows)]
    for name, *column in zip(table.header, *table.texts, strict=True):
        if any(_PARTS.match(cell) for cell in column):
            columns = [[name, f"{name} spread", f"{name} mark"], *map(_split, column)]
        else:
            columns = [[name], *([_plain(cell)] for cell in column)]
        lines = [[*line, *cells] for line, cells in zip(lines, columns, strict=True)]
    runs = ["runs"]
    for row in table.rows:
        cells = zip(table.header, row, strict=True)
        runs.append("; ".join(f"{name}: {' '.join(cell.ids)}" for name, cell in cells if cell.ids))
    text = io.StringIO()
    rows = ([spreadsheet(cell) for cell in [*line, run]] for line, run in zip(lines, runs, strict=True))
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().rstrip("\n")


def _split(text: str) -> list[str]:
    """A number, its spread and its mark, such as (3/5); a text is a mark."""
    number = re.fullmatch(r"([+-]?[\d.]+)(?: \+-([\d.]+))?(.*)", text)
    return [(part or "").strip() for part in (number.groups() if number else ("", "", text))]


def _plain(text: str) -> str:
    """Counts without commas between the thousands."""
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
