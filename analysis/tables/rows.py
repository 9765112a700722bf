"""Rows x tasks: whatever has run, of any task, method and model, with its cost."""

from collections import defaultdict

from analysis import compare
from analysis.cells import Cell, Key, cells
from analysis.compare import of_cells
from analysis.series import series
from analysis.table import Table, TableCell, make_row
from runs.record import Ledger
from runs.record.text import megabytes, one_line


def rows_table(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """A table for each model, a row for each method and a column for each task."""
    by_key = cells(ledger, seeds or 1, select)
    return [_of_model(model, compare.of_model(by_key, model)) for model in sorted({key[0] for key in by_key})]


def _of_model(model: str, by_key: dict[Key, Cell]) -> Table:
    labels, numbers = dict[str, str](), defaultdict[str, set[str]](set)
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for (_, row, task), cell in sorted(by_key.items(), key=lambda item: (-item[1].parameters, item[0])):
        rows[row][task] = cell
        labels[task] = one_line(str(cell.records[0]["label"]["task"]))
        numbers[series(cell).name].add(task)
    tasks = sorted(labels)
    name = next(iter(by_key.values())).records[0]["label"]["model"]
    on_tasks = {what: ", ".join(labels[task] for task in sorted(on)) for what, on in numbers.items()}
    of = "; ".join(f"{what} ({on})" for what, on in on_tasks.items())
    notes = [
        f"Medians over seeds, +- sample standard deviation, and how many seeds: {of}.",
        "params: without the classification head. s/run: training and evaluation. adapter: the file that a"
        " run keeps. Both are medians over the row's runs.",
    ]
    header = ["method", "source", "params", *(labels[task] for task in tasks), "s/run", "adapter"]
    lines = [_row(cells_, tasks) for cells_ in rows.values()]
    return Table(str(name), header, lines, [*notes, *compare.about(by_key)], model, labels, ("best", "last"))


def _row(ours: dict[str, Cell], tasks: list[str]) -> list[TableCell]:
    """ours: the cells of a row by task. Its cost is over the runs of all of them."""
    first, *_ = ours.values()
    whole = Cell([record for cell in ours.values() for record in cell.records], 1)
    seconds, size = whole.seconds, whole.cost("adapter_bytes")
    return make_row(
        first.label,
        "ours",
        compare.size_of(first),
        *(_number(ours[task]) if task in ours else "-" for task in tasks),
        of_cells(f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}", whole),
        of_cells(megabytes(size) if size else "-", whole),
    )


def _number(cell: Cell) -> TableCell:
    """The number that the task's table reports, with how many seeds have it: "76.0 +-1.0 (5)"."""
    of = series(cell)
    if not of.values:
        return of_cells(f"nan ({cell.seeds})", cell)
    number = compare.with_spread(of.values.values(), of.decimals)
    return of_cells(f"{number} ({len(of.values)}){compare.diverged_mark(cell)}", cell)
