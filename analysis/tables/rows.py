"""Rows x tasks: whatever has run, of any task, method and model, with its cost."""

import statistics
from collections import defaultdict

from analysis import compare
from analysis.cells import Cell, Key, cells, sample_deviation
from analysis.compare import of_cells
from analysis.series import series
from analysis.table import Table, TableCell, make_row
from runs.record import Ledger
from runs.record.text import megabytes, one_line


def rows_table(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """A table for each model, a row for each method and a column for each task."""
    found = cells(ledger, seeds or 1, select)
    return [_of_model(model, compare.of_model(found, model)) for model in sorted({key[0] for key in found})]


def _of_model(model: str, found: dict[Key, Cell]) -> Table:
    labels, numbers = dict[str, str](), defaultdict[str, set[str]](set)
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for (_, row, task), cell in sorted(found.items(), key=lambda item: (-item[1].parameters, item[0])):
        rows[row][task] = cell
        labels[task] = one_line(str(cell.records[0]["label"]["task"]))
        numbers[series(cell).name].add(task)
    tasks = sorted(labels)
    name = next(iter(found.values())).records[0]["label"]["model"]
    on_tasks = {what: ", ".join(labels[task] for task in sorted(on)) for what, on in numbers.items()}
    of = "; ".join(f"{what} ({on})" for what, on in on_tasks.items())
    notes = [
        f"Medians over seeds, +- sample standard deviation, and how many seeds: {of}.",
        "params: without the classification head. s/run: training and evaluation. adapter: the file that a"
        " run keeps. Both are medians over the row's runs.",
    ]
    header = ["method", "source", "params", *(labels[task] for task in tasks), "s/run", "adapter"]
    lines = [_row(cells_, tasks) for cells_ in rows.values()]
    return Table(str(name), header, lines, [*notes, *compare.about(found)], model, labels, ("best", "last"))


def _row(mine: dict[str, Cell], tasks: list[str]) -> list[TableCell]:
    first, of = next(iter(mine.values())), list(mine.values())
    whole = Cell([record for cell in of for record in cell.records], 1)
    seconds, size = whole.seconds, whole.cost("adapter_bytes")
    return make_row(
        first.label,
        "ours",
        compare.size_of(first),
        *(_number(mine[task]) if task in mine else "-" for task in tasks),
        of_cells(f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}", *of),
        of_cells(megabytes(size), *of) if size else "-",
    )


def _number(cell: Cell) -> TableCell:
    """Such as "76.0 +-1.0 (5)": the number that a table reports of the cell's task."""
    of = series(cell)
    values = list(of.values.values())
    if not values:
        return of_cells(f"nan ({cell.seeds})", cell)
    deviation = sample_deviation(values)
    spread = f" +-{deviation:.{of.decimals}f}" if deviation is not None else ""
    diverged = f" {cell.diverged}d" if cell.diverged else ""
    return of_cells(f"{statistics.median(values):.{of.decimals}f}{spread} ({len(values)}){diverged}", cell)
