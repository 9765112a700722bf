"""A table: rows of numbers and names, and its forms. Words are made here, once:
Markdown, LaTeX and CSV."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from runs.record import csv_text, megabytes, one_line

#: How a number is written: with its decimals and sign; as a count; as a size in bytes.
FORMS: dict[str, Callable[["Number"], str]] = {
    "number": lambda of: f"{of.value:{'+' if of.sign else ''},.{of.decimals}f}",
    "count": lambda of: f"{of.value:,.0f}",
    "ratio": lambda of: f"{of.value:.2f}x",
    "general": lambda of: f"{of.value:.4g}",
    "bytes": lambda of: megabytes(of.value),
    "seconds": lambda of: f"{of.value:,.{0 if of.value >= 10 else 1}f}",
}


@dataclass(frozen=True)
class Number:
    """A number of a table, in the unit that its column's name says.

    spread: what stands behind +-, a standard deviation, or half of an interval. n,
    wanted: how many seeds have it, of how many; shown where some lack it, or if
    `counted`. mark: what follows it, such as "1d". verdict: of the number beside the
    paper's. ids: the runs that it comes from. high: of an interval, whose lower end is
    the value."""

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
        missing = NONE if self.n is None else "nan"
        text = missing if math.isnan(self.value) else FORMS[self.form](self)
        if not math.isnan(self.high):
            text += f" to {replace(self, value=self.high, high=math.nan)}"
        spread = (
            "" if math.isnan(self.spread) else f" +-{self.spread:.{self.decimals}f}"
        )
        count = f" ({self.n})" if self.counted else ""
        if self.n is not None and self.wanted is not None and self.n < self.wanted:
            count = f" ({self.n}/{self.wanted})"
        return f"{text}{spread}{count}{self.mark}"


#: Where there is no number.
NONE = "-"
Entry = Number | str
Row = Sequence[Entry]
#: A row of `frame.cells`.
Cell = Any


# --- numbers of cells


def number(
    cell: Cell | None,
    middle: str = "median",
    decimals: int = 1,
    verdict: str = "",
    known: bool = False,
) -> Entry:
    """A cell's median (or mean) and spread, with how many seeds it has where it is not
    complete, and how many diverged; "-" of no cell. known: the median of the seeds that
    have a number, "-" where none has."""
    if cell is None:
        return NONE
    value, spread, n, mark, ids = (
        getattr(cell, middle),
        cell.spread,
        cell.n,
        diverged(cell),
        cell.ids,
    )
    if known:
        of = pd.Series(cell.values, ids, dtype=float).dropna()
        value, spread, n, mark, ids = (
            float(of.median()),
            float(of.std()),
            len(of),
            "",
            (*of.index,),
        )
    if n == 0 and (known or cell.runs == 0):
        return NONE
    return Number(
        value, spread, n, cell.wanted, decimals, mark=mark, verdict=verdict, ids=ids
    )


def diverged(cell: Cell) -> str:
    """What follows a number whose seeds diverged, such as " 1d"."""
    return f" {cell.diverged}d" if cell.diverged else ""


def count(cell: Cell) -> Number:
    """A cell's trained parameters."""
    return Number(cell.parameters, form="count", ids=cell.ids)


def of_runs(value: float | None, ids: Iterable[str], **how: Any) -> Entry:
    """A number that comes from these runs; "-" where there is none."""
    return (
        NONE
        if value is None or math.isnan(value)
        else Number(float(value), ids=tuple(ids), **how)
    )


# --- tables


@dataclass
class Table:
    """A title, a header, rows of equal length, and notes under it. The first column
    names a row; a row without a name belongs to the one above it.

    model: "" if it has none. tasks: the task of each column that is one, by its
    name."""

    title: str
    header: list[str]
    rows: list[list[Entry]]
    notes: list[str] = field(default_factory=list)
    model: str = ""
    tasks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, title: str, lines: Sequence[dict[str, Entry]], *about: Any) -> "Table":
        """A table of lines, an entry by column each. about: what follows the rows."""
        return cls(title, [*lines[0]], [[*line.values()] for line in lines], *about)

    @property
    def ids(self) -> tuple[str, ...]:
        """The runs behind its numbers, each once."""
        numbers = (
            entry for row in self.rows for entry in row if isinstance(entry, Number)
        )
        return tuple(dict.fromkeys(run for number in numbers for run in number.ids))

    @property
    def texts(self) -> list[list[str]]:
        """Its entries as text, each on one line: labels and deviations are users'
        words."""
        return [[one_line(str(entry)) for entry in row] for row in self.rows]

    def tidy(self) -> pd.DataFrame:
        """A row for each of its numbers, and for each text that is not a name."""
        lines, name = list[dict[str, Any]](), ""
        for number, row in enumerate(self.rows, 1):
            name = str(row[0]) or name
            of_row = dict(zip(self.header, row, strict=True))
            about = {
                "table": self.title,
                "model": self.model,
                "line": number,
                "row": name,
            }
            about |= {key: str(of_row.get(key, "")) for key in ("source", "status")}
            for column, entry in [*zip(self.header, row, strict=True)][1:]:
                if column in ("source", "status") or entry in ("", NONE):
                    continue
                line = about | {"column": column, "task": self.tasks.get(column, "")}
                if isinstance(entry, Number):
                    line |= vars(entry) | {
                        "mark": entry.mark.strip(),
                        "ids": " ".join(entry.ids),
                    }
                else:
                    line["text"] = str(entry)
                lines.append(line)
        return pd.DataFrame(lines, columns=TIDY)


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
]
TIDY += ["mark", "verdict", "status", "text", "ids"]


def render(tables: Iterable[Table], form: str = "md") -> str:
    """Tables as md, latex or csv, which is one frame of all of their numbers with the
    run ids of each."""
    if form == "csv":
        whole = pd.concat([table.tidy() for table in tables], ignore_index=True)
        return to_csv(whole.astype({"n": "Int64", "wanted": "Int64"})).rstrip("\n")
    return "\n\n".join(
        {"md": markdown, "latex": latex}[form](table) for table in tables
    )


def to_csv(data: pd.DataFrame, digits: str | None = None) -> str:
    """A frame as CSV: a tuple with spaces, a text on one line. digits: of its numbers,
    such as %.10g (None: all)."""

    def cell(value: Any) -> Any:
        if isinstance(value, tuple):
            return " ".join(str(cell(part)) for part in value)
        if isinstance(value, str):
            return one_line(value)
        if digits and isinstance(value, float):
            return digits % value
        return value

    whole = data.astype(object)
    rows = whole.where(data.notna(), None).map(cell)
    header = [cell(name) for name in data.columns]
    return csv_text([header, *rows.itertuples(index=False, name=None)])


def grid(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True
) -> list[str]:
    """The lines of a Markdown table, its first column to the left."""
    lines = [
        [one_line(str(cell)).replace("|", "\\|") for cell in row]
        for row in [header, *rows]
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust, *([str.rjust if right else str.ljust] * (len(header) - 1))]
    texts = [
        [
            side(cell, width)
            for side, cell, width in zip(sides, row, widths, strict=True)
        ]
        for row in lines
    ]
    end = ":" if right else "-"
    rule = "|".join(
        ["-" * (widths[0] + 2), *("-" * (width + 1) + end for width in widths[1:])]
    )
    first, *others = (f"| {' | '.join(row)} |" for row in texts)
    return [first, f"|{rule}|", *others]


def markdown(table: Table) -> str:
    """A table as Markdown with its title and notes."""
    notes = [one_line(note) for note in table.notes]
    return "\n".join(
        [one_line(table.title), "", *grid(table.header, table.texts), "", *notes]
    ).rstrip()


def latex(table: Table) -> str:
    """A table as LaTeX for booktabs, its title and notes as comments."""
    header = [one_line(name) for name in table.header]
    columns = f"l{'r' * (len(header) - 1)}"
    text = pd.DataFrame(table.texts, columns=header).to_latex(
        index=False, escape=True, column_format=columns
    )
    # After the end of a row [ and * would be options; without T1 fonts < and > are
    # other signs
    for sign, written in {
        "+-": r"$\pm$",
        "[": "{[}",
        "\n*": "\n{*}",
        "<": "$<$",
        ">": "$>$",
    }.items():
        text = text.replace(sign, written)
    comments = [f"% {one_line(note)}" for note in table.notes]
    return "\n".join([f"% {one_line(table.title)}", text.rstrip(), *comments])
