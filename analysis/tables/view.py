"""What a table is made from, and the rows that tables share: the paper's, ours, the difference."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis import beside
from analysis.frame import cells, reported
from analysis.render import NONE, Entry, Number

#: A row of `frame.cells`.
Cell = Any


@dataclass(frozen=True)
class View:
    """The runs that a table is made from, and how: the choice of the epoch (paper or crossfit), the seeds
    of a complete cell (None: the protocol's), the tasks that are shown (empty: all), and whose runs these
    are."""

    runs: pd.DataFrame
    select: str = "paper"
    seeds: int | None = None
    tasks: tuple[str, ...] = ()
    whose: str = "ours"
    trials: pd.DataFrame = field(default_factory=pd.DataFrame)
    models: tuple[str, ...] = ()

    def of(self, which: "pd.Series[bool]") -> "View":
        """The view of a part of the runs."""
        return replace(self, runs=self.runs[which])

    def cells(self, seeds: int, value: str | None = None) -> pd.DataFrame:
        """The cells of its runs. seeds: of a complete one, by the table's protocol."""
        value = value or ("crossfit" if self.select == "crossfit" else "value")
        return cells(self.runs, value, self.seeds or seeds)

    def numbers(self, seeds: int | None = None) -> pd.DataFrame:
        """The cells of the number that each task's table reports, with its name."""
        runs = reported(self.runs, self.select)
        made = cells(runs, "number", seeds or self.seeds)
        about = runs.drop_duplicates("cell").set_index("cell")[["name", "less", "digits"]]
        return made.join(about, on="cell")

    @property
    def title(self) -> str:
        """What follows the title of its tables."""
        return "" if self.whose == "ours" else f" ({self.whose})"


def by_row(cells: pd.DataFrame, column: str = "task") -> dict[str, dict[str, Cell]]:
    """Cells by row and by column."""
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells.itertuples(index=False):
        rows.setdefault(cell.row, {})[getattr(cell, column)] = cell
    return rows


def in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """The names, those of `first` before the others."""
    names = list(names)
    return [name for name in dict.fromkeys([*first, *names]) if name in names]


# --- entries


def number(cell: Cell | None, middle: str = "median", decimals: int = 1, verdict: str = "") -> Entry:
    """A cell's median (or mean) and spread, with how many seeds it has where it is not complete, and how many
    diverged."""
    if cell is None or (cell.n == 0 and cell.runs == 0):
        return NONE
    return Number(
        getattr(cell, middle),
        cell.spread,
        cell.n,
        cell.wanted,
        decimals,
        mark=diverged(cell),
        verdict=verdict,
        ids=cell.ids,
    )


def diverged(cell: Cell) -> str:
    """What follows a number whose seeds diverged, such as " 1d"."""
    return f" {cell.diverged}d" if cell.diverged else ""


def count(cell: Cell) -> Number:
    """A cell's trained parameters."""
    return Number(cell.parameters, form="count", ids=cell.ids)


def of_runs(value: float | None, ids: Iterable[str], **how: Any) -> Entry:
    """A number that comes from these runs; "-" where there is none."""
    return NONE if value is None or math.isnan(value) else Number(float(value), ids=tuple(ids), **how)


# --- rows


def printed(of: Any, decimals: int = 1, mark: str = "") -> Number:
    """A number of the paper with its spread."""
    return Number(of.value, of.spread, decimals=decimals, mark=mark)


def our_row(
    view: View,
    ours: Mapping[str, Cell],
    columns: Iterable[str],
    wanted: Iterable[str],
    status: str = "",
    **how: Any,
) -> list[Entry]:
    """A row of ours, its cells by column. wanted: the columns that the row should have. status: of a
    complete row, where it is more than whose it is. how: `head`, what stands before its numbers where that
    is not its label and size; `entries`, its numbers; `average`, what stands after them; `other_size`,
    whether it is not compared."""
    first, wanted = next(iter(ours.values())), list(wanted)
    entries = how.get("entries") or {column: number(cell) for column, cell in ours.items()}
    status = status or view.whose
    if how.get("other_size"):
        status = f"{view.whose}, another size: not compared"
    elif not all(column in ours and ours[column].complete for column in wanted):
        status = f"{view.whose}, incomplete"
    if total := sum(int(cell.diverged) for cell in ours.values()):
        status += f", {total} diverged"
    head = how.get("head") or [first.label, view.whose, count(first)]
    numbers = [entries.get(column, "missing" if column in wanted else NONE) for column in columns]
    return [*head, *numbers, *how.get("average", ()), status]


def gaps(rows: pd.DataFrame, columns: Iterable[str], decimals: int = 1) -> list[Entry]:
    """The differences to the paper's numbers, with half of their intervals where the seeds are enough for a
    verdict. rows: of `beside`, of one row of the paper."""
    read = ["column", "ran", "complete", "n", "difference", "half", "word", "ids"]
    of = {row.column: row for row in rows[read].itertuples(index=False) if row.ran and row.complete and row.n}
    return [gap(of[column], decimals) if column in of else NONE for column in columns]


def gap(row: Any, decimals: int = 1) -> Entry:
    """One difference."""
    half = row.half if row.n >= beside.SEEDS else math.nan
    return of_runs(row.difference, row.ids, spread=half, decimals=decimals, sign=True, verdict=row.word)
