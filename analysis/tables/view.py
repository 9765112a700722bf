"""What a table is made from, and the rows that tables share: the paper's, ours, the difference."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis import beside
from analysis.frame import cells
from analysis.render import NONE, Cell, Entry, Number, count, number, of_runs


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

    @property
    def title(self) -> str:
        """What follows the title of its tables."""
        return "" if self.whose == "ours" else f" ({self.whose})"


def in_order(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """The names, those of `first` before the others."""
    names = list(names)
    return [name for name in dict.fromkeys([*first, *names]) if name in names]


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
