"""What tables share: a cell as text, ours beside the paper's, and the notes under a table."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from analysis.beside import Beside, same_size
from analysis.cells import Cell, Key, sample_deviation
from analysis.paper import Printed
from analysis.table import TableCell, make_row

#: What cross-fitted selection is, in a sentence.
CROSSFIT = (
    "Cross-fitted: the epoch is chosen on one half of dev and reported on the other, both ways, weighted by"
    " rows."
)
#: Of tables that report the last epoch.
NO_SELECT = "select= changes nothing here: the last epoch is reported."
#: What the status of the paper's own rows means.
QUOTED_NOTE = "quoted: the paper's number, not run here."


def shown(cell: Cell, middle: str = "median") -> TableCell:
    """A cell's median (or mean) and spread, with how many seeds it has where it is not complete, and how many
    diverged."""
    spread = cell.spread()
    value = cell.mean() if middle == "mean" else cell.median()
    text = f"{value:.1f}" + (f" +-{spread:.1f}" if spread is not None else "")
    text += f" ({cell.seeds - cell.unknown}/{cell.wanted})" if not cell.complete else ""
    return of_cells(text + (f" {cell.diverged}d" if cell.diverged else ""), cell)


def over_seeds(cell: Cell, values: Collection[float], decimals: int) -> TableCell:
    """The median and spread of a number of a cell's seeds, and how many have it where some lack it; "-" where
    all do."""
    if not values:
        return TableCell("-")
    deviation = sample_deviation(values)
    spread = f" +-{deviation:.{decimals}f}" if deviation is not None else ""
    part = f" ({len(values)}/{cell.wanted})" if len(values) < cell.wanted else ""
    return of_cells(f"{statistics.median(values):.{decimals}f}{spread}{part}", cell)


def of_cells(text: str, *found: Cell) -> TableCell:
    """A number that is made of these cells."""
    return TableCell(text, tuple(name for cell in found for name in cell.ids))


def size_of(cell: Cell) -> TableCell:
    """Its trained parameters."""
    return of_cells(f"{cell.parameters:,}", cell)


def gap(one: Beside | None) -> TableCell:
    """The difference to the paper's number, with its runs; "-" where there is none."""
    text = one.gap() if one else "-"
    return of_cells(text, one.cell) if one and text != "-" else TableCell(text)


# --- rows: the paper's, ours, the difference


def printed_text(printed: Printed, decimals: int = 1) -> str:
    """A number of the paper, with its spread where it has one."""
    spread = f" +-{printed.spread:.{decimals}f}" if printed.spread is not None else ""
    return f"{printed.value:.{decimals}f}{spread}"


def beside_paper(cell: Cell, printed: Printed, **how: Any) -> Beside:
    """A cell of ours beside the paper's number. how: for Beside, where a table reports no median of best
    epochs."""
    same = not printed.size or same_size(cell, printed.model, printed.row, printed.size)
    return Beside(cell, printed.value, printed.spread, same_size=same, **how)


def paper_row(row: Sequence[Printed], *texts: str, source: str = "paper") -> list[TableCell]:
    """A row of the paper: its method and size, its numbers as text, and that they are quoted."""
    return make_row(row[0].method, source, row[0].size, *texts, "quoted")


def our_row(
    ours: Mapping[str, Cell],
    columns: Iterable[str],
    wanted: Collection[str],
    status: str,
    show: Callable[[Cell], TableCell] = shown,
    head: Sequence[str | TableCell] | None = None,
    average: Sequence[str | TableCell] = (),
) -> list[TableCell]:
    """A row of ours, its cells by task.

    columns: the tasks that the table shows; wanted: those that the row should have. status: that of a
    complete row. head: what stands before its numbers, where that is not its label and size; average: what
    stands after them.
    """
    if not all(task in ours and ours[task].complete for task in wanted) and "another size" not in status:
        status = "ours, incomplete"
    status += told_diverged(ours.values())
    first = next(iter(ours.values()))
    numbers = [show(ours[task]) if task in ours else "missing" if task in wanted else "-" for task in columns]
    return make_row(*(head or (first.label, "ours", size_of(first))), *numbers, *average, status)


def difference_row(*gaps: str | TableCell, size: bool = True) -> list[TableCell]:
    """The line under our row. size: whether the table has a column of trained parameters."""
    return make_row("", "difference", *[""] * size, *gaps, "")


def told_diverged(found: Iterable[Cell]) -> str:
    """How many seeds diverged, as the end of a status; "" where none did."""
    count = sum(cell.diverged for cell in found)
    return f", {count} diverged" if count else ""


# --- titles and notes


def of_model(found: Mapping[Key, Cell], model: str) -> dict[Key, Cell]:
    """The cells of one model."""
    return {key: cell for key, cell in found.items() if key[0] == model}


def other_model(table: str, model: str) -> str:
    """The title of a table of the paper for a model of the user's."""
    return f"{table}'s protocol on {model}, a model that the paper does not use"


def about(found: dict[Key, Cell]) -> list[str]:
    """What is not in a table's cells, and what deviates in those that are."""
    notes = []
    left_out = sum(cell.left_out for cell in found.values())
    if left_out:
        one = (
            "1 record with other settings is"
            if left_out == 1
            else f"{left_out} records with other settings are"
        )
        notes.append(f"{one} left out: a row shows the settings that deviate least from its recipe.")
    notes += [problem for cell in found.values() for problem in cell.problems]
    again = [name for cell in found.values() for name in cell.again]
    if again:
        why = "more than one record of the same settings and seed; not counted twice"
        notes.append(f"{why}, left out: {', '.join(again)}.")
    unknown = sum(cell.unknown for cell in found.values())
    if unknown:
        notes.append(f"nan: {unknown} of the runs finished without that number.")
    for (_, row, task), cell in found.items():
        if cell.collapsed:
            which = f"seed{'s' * (len(cell.collapsed) > 1)} {', '.join(map(str, cell.collapsed))}"
            same = f"the same {_metric(cell)} at every epoch"
            notes.append(f"collapsed ({same}), and counted like any other: {row} on {task}, {which}.")
    if any(_keeps_one_pair(cell) for cell in found.values()):
        notes.append(
            "VeRA keeps one pair A, B for all seeds: its spread leaves out what another pair would change"
            " (see vera_redrawn)."
        )
    words: dict[str, set[str]] = defaultdict(set)  # a deviation, and the cells it belongs to
    for (_, row, task), cell in found.items():
        rank = f"rank {row.rpartition('_r')[2]} instead of"  # which the row's name says: lora_r64
        for word in (
            word for record in cell.records for word in record["deviations"] if not word.startswith(rank)
        ):
            words[word].add(f"{row} on {task}")
    return [
        *notes,
        *(f"deviation: {word} ({', '.join(sorted(where))})" for word, where in sorted(words.items())),
    ]


def _keeps_one_pair(cell: Cell) -> bool:
    """Whether the seeds of a cell share VeRA's random matrices."""
    method = cell.records[0]["config"]["method"]
    return cell.seeds > 1 and method["kind"] == "vera" and not method.get("redrawn")


def _metric(cell: Cell) -> str:
    return str(cell.records[0]["result"]["metric"])
