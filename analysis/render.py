"""A table: rows of numbers and names, and its text as Markdown, LaTeX and CSV."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from runs.record.spreadsheet import csv_text
from runs.record.text import megabytes, one_line


def _decimal(number: "Number") -> str:
    """The value with the number's decimals, and with + if it shows its sign: +1,234.5."""
    sign = "+" if number.sign else ""
    return f"{number.value:{sign},.{number.decimals}f}"


def _seconds(number: "Number") -> str:
    """The value in whole seconds; below 10 with one decimal."""
    return f"{number.value:,.0f}" if number.value >= 10 else f"{number.value:.1f}"


def p_value(p: float) -> str:
    """A p value as text: 0.035, or <0.001."""
    return "<0.001" if p < SMALLEST_P else f"{p:.3f}"


#: Below this a p is not written in digits.
SMALLEST_P = 0.001
#: How a number is written, by the name of the form.
FORMS: dict[str, Callable[["Number"], str]] = {
    "number": _decimal,
    "count": lambda number: f"{number.value:,.0f}",
    "ratio": lambda number: f"{number.value:.2f}x",
    "general": lambda number: f"{number.value:.4g}",
    "bytes": lambda number: megabytes(number.value),
    "seconds": _seconds,
    "p": lambda number: p_value(number.value),
}


@dataclass(frozen=True)
class Number:
    """A number of a table, in the unit that its column's name says.

    spread: what stands behind +-, a standard deviation or half the width of an interval;
    NaN for none. n: how many seeds have the number. wanted: how many should; if it is
    more than n, the text says "(3/5)". counted: whether the text says n in any case.
    form: how the value is written, a key of FORMS; decimals and sign (whether a + is
    written) are of the form "number". mark: what follows the text, such as " 1d".
    verdict: the verdict on it beside the paper's number; CSV has it, the text does not.
    ids: the runs that it comes from. high: the upper end of an interval, whose lower end
    is the value; NaN for a single number. An interval has no spread, n or mark."""

    value: float
    spread: float = math.nan
    n: int | None = None
    wanted: int | None = None
    decimals: int = 1
    sign: bool = False
    counted: bool = False
    form: str = "number"
    mark: str = ""
    verdict: str = ""
    ids: tuple[str, ...] = ()
    high: float = math.nan

    def __str__(self) -> str:
        text = self._value_text()
        if not math.isnan(self.high):
            text += f" to {replace(self, value=self.high, high=math.nan)}"
        if not math.isnan(self.spread):
            text += f" +-{self.spread:.{self.decimals}f}"
        return f"{text}{self._count_text()}{self.mark}"

    def _value_text(self) -> str:
        """The value; "nan" if seeds lack it, and NONE if no seeds are counted."""
        if math.isnan(self.value):
            return NONE if self.n is None else "nan"
        return FORMS[self.form](self)

    def _count_text(self) -> str:
        """How many seeds have the number: " (3/5)" where some lack it, " (5)" where the
        table counts them in every cell, otherwise ""."""
        if self.n is not None and self.wanted is not None and self.n < self.wanted:
            return f" ({self.n}/{self.wanted})"
        return f" ({self.n})" if self.counted else ""


#: Where there is no number.
NONE = "-"
Entry = Number | str
Row = Sequence[Entry]
#: A row of `frame.cells`, as itertuples gives it.
Cell = Any


# --- numbers of cells


def cell_entry(
    cell: Cell | None,
    middle: str = "median",
    decimals: int = 1,
    verdict: str = "",
    skips_missing: bool = False,
) -> Entry:
    """A cell as an entry: its median or mean and spread, how many seeds it has if it is not
    complete, and how many diverged; "-" for no cell.

    middle: "median" or "mean". verdict: as in `Number`. skips_missing: whether seeds
    without the number are left out of the median, which is NaN otherwise; the entry then
    does not say how many diverged, and is "-" where no seed has the number."""
    if cell is None:
        return NONE
    if skips_missing:
        return _number_of_scored_seeds(cell, decimals, verdict)
    if cell.n == 0 and cell.runs == 0:
        return NONE
    return Number(
        getattr(cell, middle),
        cell.spread,
        cell.n,
        cell.wanted,
        decimals,
        mark=diverged_mark(cell),
        verdict=verdict,
        ids=cell.ids,
    )


def _number_of_scored_seeds(cell: Cell, decimals: int, verdict: str) -> Entry:
    """A cell's median over the seeds that have a score, as an entry; "-" where none
    has."""
    scores = pd.Series(cell.values, cell.ids, dtype=float).dropna()
    if scores.empty:
        return NONE
    return Number(
        float(scores.median()),
        float(scores.std()),
        len(scores),
        cell.wanted,
        decimals,
        verdict=verdict,
        ids=(*scores.index,),
    )


def diverged_mark(cell: Cell) -> str:
    """The mark after a number that says how many of its seeds diverged: " 1d"; "" if none
    did."""
    return f" {cell.diverged}d" if cell.diverged else ""


def trained_count(cell: Cell) -> Number:
    """A cell's trained parameters."""
    return Number(cell.parameters, form="count", ids=cell.ids)


def entry_of_runs(value: float | None, ids: Iterable[str], **settings: Any) -> Entry:
    """A number that comes from the runs with these ids, as an entry; "-" if it is None or
    NaN. settings: further fields of `Number`."""
    if value is None or math.isnan(value):
        return NONE
    return Number(float(value), ids=tuple(ids), **settings)


# --- tables


@dataclass
class Table:
    """A title, a header, rows of equal length, and notes under it. The first column
    names a row; a row without a name belongs to the one above it.

    model: whose results it has; "" if it is of no one model. tasks: by the header of each
    column that is a task, the task's name in conf/."""

    title: str
    header: list[str]
    rows: list[list[Entry]]
    notes: list[str] = field(default_factory=list)
    model: str = ""
    tasks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, title: str, lines: Sequence[dict[str, Entry]], *fields: Any) -> "Table":
        """A table of lines, each with its entries by column: all lines have the same
        columns in the same order. fields: those of Table that follow `rows`, in their
        order."""
        header = [*lines[0]]
        rows = [[*line.values()] for line in lines]
        return cls(title, header, rows, *fields)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the runs behind its numbers, each once."""
        ids = dict[str, None]()
        for row in self.rows:
            for entry in row:
                if isinstance(entry, Number):
                    ids |= dict.fromkeys(entry.ids)
        return tuple(ids)

    @property
    def texts(self) -> list[list[str]]:
        """Its entries as texts without line breaks, which users' labels may have."""
        return [[one_line(str(entry)) for entry in row] for row in self.rows]

    def tidy(self) -> pd.DataFrame:
        """A frame (TIDY) with a row for each number and text of the table. The name of a
        table's row, its source and its status are not rows of their own: they are
        repeated in each."""
        lines = list[dict[str, Any]]()
        name = ""
        for line_number, row in enumerate(self.rows, 1):
            name = str(row[0]) or name  # a row without one belongs to the one above it
            columns_and_entries = [*zip(self.header, row, strict=True)]
            entries = dict(columns_and_entries)
            row_facts = {
                "table": self.title,
                "model": self.model,
                "line": line_number,
                "row": name,
                "source": str(entries.get("source", "")),
                "status": str(entries.get("status", "")),
            }
            for column, entry in columns_and_entries[1:]:
                if column not in ("source", "status") and entry not in ("", NONE):
                    task = self.tasks.get(column, "")
                    line = {"column": column, "task": task, **_tidy_entry(entry)}
                    lines.append(row_facts | line)
        return pd.DataFrame(lines, columns=TIDY)


def _tidy_entry(entry: Entry) -> dict[str, Any]:
    """The columns of TIDY that come from an entry, and further fields of a number, which
    `Table.tidy` drops."""
    if isinstance(entry, str):
        return {"text": entry}
    texts = {"mark": entry.mark.strip(), "ids": " ".join(entry.ids)}
    return vars(entry) | texts


#: The columns of CSV.
TIDY = [
    "table",
    "model",
    "line",
    "row",
    "source",
    "column",
    "task",
    "value",
    "spread",
    "high",
    "n",
    "wanted",
    "mark",
    "verdict",
    "status",
    "text",
    "ids",
]


def render(tables: Iterable[Table], form: str = "md") -> str:
    """Tables as text. form: md, latex, or csv, which has all of their numbers as one list
    (`Table.tidy`)."""
    if form == "csv":
        joined = pd.concat([table.tidy() for table in tables], ignore_index=True)
        # whole numbers although some are missing, which makes them floats in pandas
        return to_csv(joined.astype({"n": "Int64", "wanted": "Int64"})).rstrip("\n")
    write = {"md": markdown, "latex": latex}[form]
    return "\n\n".join(map(write, tables))


def to_csv(data: pd.DataFrame, number_format: str | None = None) -> str:
    """A frame as CSV, in which a missing value is empty. The parts of a tuple are joined
    by spaces, and a text stands on one line. number_format: such as %.10g; None writes
    every digit."""

    def plain(value: Any) -> Any:
        # a number as it is, unless number_format makes a text of it
        if isinstance(value, tuple):
            return " ".join(str(plain(part)) for part in value)
        if isinstance(value, str):
            return one_line(value)
        if number_format and isinstance(value, float):
            return number_format % value
        return value

    joined = data.astype(object)
    rows = joined.where(data.notna(), None).map(plain)
    header = [plain(name) for name in data.columns]
    return csv_text([header, *rows.itertuples(index=False, name=None)])


def markdown_grid(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True
) -> list[str]:
    """The lines of a Markdown table. right: whether all columns but the first are aligned
    to the right, otherwise all to the left."""
    cells = [
        [one_line(str(text)).replace("|", "\\|") for text in row]
        for row in [header, *rows]
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    pad_further_columns = str.rjust if right else str.ljust
    paddings = [str.ljust, *[pad_further_columns] * (len(header) - 1)]
    lines = list[str]()
    for row in cells:
        padded = [
            pad(text, width)
            for pad, text, width in zip(paddings, row, widths, strict=True)
        ]
        lines.append(f"| {' | '.join(padded)} |")
    # the rule below the header; a colon at the end aligns a column to the right
    end = ":" if right else "-"
    rules = ["-" * (width + 1) + end for width in widths]
    rules[0] = "-" * (widths[0] + 2)
    header_line, *row_lines = lines
    return [header_line, f"|{'|'.join(rules)}|", *row_lines]


def markdown(table: Table) -> str:
    """A table as Markdown with its title and notes."""
    notes = [one_line(note) for note in table.notes]
    grid = markdown_grid(table.header, table.texts)
    return "\n".join([one_line(table.title), "", *grid, "", *notes]).rstrip()


#: What is replaced in LaTeX, and by what. After the end of a row [ and * would be
#: options, and without T1 fonts < and > are printed as other signs.
LATEX_SIGNS = {
    "+-": r"$\pm$",
    "[": "{[}",
    "\n*": "\n{*}",
    "<": "$<$",
    ">": "$>$",
}


def latex(table: Table) -> str:
    """A table as LaTeX for booktabs, its title and notes as comments."""
    header = [one_line(name) for name in table.header]
    columns = f"l{'r' * (len(header) - 1)}"
    text = pd.DataFrame(table.texts, columns=header).to_latex(
        index=False, escape=True, column_format=columns
    )
    for sign, written in LATEX_SIGNS.items():
        text = text.replace(sign, written)
    comments = [f"% {one_line(note)}" for note in table.notes]
    return "\n".join([f"% {one_line(table.title)}", text.rstrip(), *comments])
