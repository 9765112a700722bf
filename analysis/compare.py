"""What tables share: a cell as text, our rows beside the paper's, and the notes under a table."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from analysis.beside import Beside, same_size
from analysis.cells import Cell, Key
from analysis.paper import Printed
from analysis.table import TableCell, make_row
from runs.record import one_class, sample_deviation
from runs.record.text import plural

#: What cross-fitted selection is, in a sentence.
CROSSFIT = (
    "Cross-fitted: the epoch is chosen on one half of dev and reported on the other, both ways, weighted by"
    " rows."
)
#: Of tables that report the last epoch.
NO_SELECT = "select= changes nothing here: the last epoch is reported."
#: What the status of the paper's own rows means.
QUOTED_NOTE = "quoted: the paper's number, not run here."

# --- cells as text


def with_spread(values: Collection[float], decimals: int = 1, middle: Any = statistics.median) -> str:
    """Such as "94.6 +-0.3": the median (or mean) over seeds, and the sample standard deviation where there is
    one; "nan" where a value is not known."""
    deviation = sample_deviation(values)
    value = math.nan if any(map(math.isnan, values)) else middle(values)
    return f"{value:.{decimals}f}" + (f" +-{deviation:.{decimals}f}" if deviation is not None else "")


def shown(cell: Cell, middle: Any = statistics.median) -> TableCell:
    """A cell's median (or mean) and spread, with how many seeds it has where it is not complete, and how many
    diverged."""
    missing = f" ({cell.count})" if not cell.complete else ""
    return of_cells(f"{with_spread(cell.values(), 1, middle)}{missing}{diverged_mark(cell)}", cell)


def over_seeds(cell: Cell, values: Collection[float], decimals: int) -> TableCell:
    """The median and spread of another number of a cell's seeds, with how many have it where some lack it;
    "-" where all do."""
    if not values:
        return TableCell("-")
    missing = f" ({len(values)}/{cell.wanted})" if len(values) < cell.wanted else ""
    return of_cells(f"{with_spread(values, decimals)}{missing}", cell)


def diverged_mark(cell: Cell) -> str:
    """What follows a number whose seeds diverged, such as " 1d"."""
    return f" {cell.diverged}d" if cell.diverged else ""


def of_cells(text: str, *cells: Cell) -> TableCell:
    """A number that is made of these cells; "-", where there is none, has no records behind it."""
    return TableCell(text, tuple(run for cell in cells for run in cell.ids if text != "-"))


def size_of(cell: Cell) -> TableCell:
    """A cell's trained parameters."""
    return of_cells(f"{cell.parameters:,}", cell)


def gap(one: Beside | None) -> TableCell:
    """The difference to the paper's number; "-" where there is none."""
    return of_cells(one.gap(), one.cell) if one else TableCell("-")


# --- rows: the paper's, ours, the difference


def printed_text(printed: Printed, decimals: int = 1) -> str:
    """A number of the paper, with its spread where it has one."""
    spread = f" +-{printed.spread:.{decimals}f}" if printed.spread is not None else ""
    return f"{printed.value:.{decimals}f}{spread}"


def beside_paper(cell: Cell, printed: Printed, **how: Any) -> Beside:
    """A cell of ours beside the paper's number. how: the fields of Beside that say what is compared, where it
    is not the median of the number that the cell's table reports."""
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
    first = next(iter(ours.values()))
    numbers = [show(ours[task]) if task in ours else "missing" if task in wanted else "-" for task in columns]
    head = head or (first.label, "ours", size_of(first))
    return make_row(*head, *numbers, *average, status + count_diverged(ours.values()))


def difference_row(*gaps: str | TableCell, size: bool = True) -> list[TableCell]:
    """The line under our row. size: whether the table has a column of trained parameters."""
    return make_row("", "difference", *[""] * size, *gaps, "")


def count_diverged(cells: Iterable[Cell]) -> str:
    """How many seeds diverged, as the end of a status; "" where none did."""
    count = sum(cell.diverged for cell in cells)
    return f", {count} diverged" if count else ""


# --- the cells of a table


def of_model(cells: Mapping[Key, Cell], model: str) -> dict[Key, Cell]:
    """The cells of one model."""
    return {key: cell for key, cell in cells.items() if key[0] == model}


def models_of(cells: Iterable[Key], papers: Iterable[str]) -> list[str]:
    """The models of a table: the paper's, and then every other that has records."""
    return list(dict.fromkeys([*papers, *sorted(model for model, _, _ in cells)]))


def by_row(cells: Mapping[Key, Cell], model: str, tasks: Iterable[str]) -> dict[str, dict[str, Cell]]:
    """A model's cells of these tasks, by row and by task, in the order of names and of `tasks`."""
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for row, task in ((row, task) for row in sorted({key[1] for key in cells}) for task in tasks):
        if (model, row, task) in cells:
            rows[row][task] = cells[model, row, task]
    return rows


def other_rows(rows: Iterable[str], printed: Iterable[Sequence[Printed]], first: Sequence[str]) -> list[str]:
    """The rows that are not among the paper's, in the order of `first` and of their names."""
    rows, covered = list(rows), {row[0].row for row in printed}
    return [row for row in dict.fromkeys([*first, *rows]) if row in rows and row not in covered]


# --- titles and notes


def other_model(table: str, model: str) -> str:
    """The title of a table of the paper for a model of the user's."""
    return f"{table}'s protocol on {model}, a model that the paper does not use"


def left_out(cells: Mapping[Key, Cell]) -> list[str]:
    """Notes on the finished records of these cells' rows that are not in them."""
    notes = []
    if others := sum(cell.left_out for cell in cells.values()):
        subject = "record with other settings is" if others == 1 else "records with other settings are"
        notes.append(f"{others} {subject} left out: a row shows the settings nearest to its recipe.")
    notes += [problem for cell in cells.values() for problem in cell.problems]
    if again := ", ".join(run for cell in cells.values() for run in cell.again):
        why = "more than one record of the same settings and seed; not counted twice"
        notes.append(f"{why}, left out: {again}.")
    return notes


def about(cells: Mapping[Key, Cell]) -> list[str]:
    """Notes on what is not in a table's cells, and on what deviates in those that are."""
    notes = left_out(cells)
    if unknown := sum(cell.unknown for cell in cells.values()):
        notes.append(f"nan: {unknown} of the runs finished without that number.")
    if any(cell.diverged for cell in cells.values()):
        notes.append("1d: one of the seeds diverged, and counts like any other.")
    notes += _of_several_codes(cells)
    notes += of_one_class(cells)
    if any(_keeps_one_pair(cell) for cell in cells.values()):
        notes.append(
            "VeRA keeps one pair A, B for all seeds: its spread leaves out what another pair would change"
            " (see vera_redrawn)."
        )
    where: dict[str, set[str]] = defaultdict(set)  # by deviation, the cells that have it
    for (_, row, task), cell in cells.items():
        rank = f"rank {row.rpartition('_r')[2]} instead of"  # which the row's name says: lora_r64
        for deviation in (word for record in cell.records for word in record["deviations"]):
            if not deviation.startswith(rank):
                where[deviation].add(f"{row} on {task}")
    return [*notes, *(f"deviation: {word} ({', '.join(sorted(of))})" for word, of in sorted(where.items()))]


def of_one_class(cells: Mapping[Key, Cell]) -> list[str]:
    """A note for each task with runs that predict one class for every row, and what share of the rows it
    has."""
    found: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for (_, row, task), cell in cells.items():
        for record in cell.records:
            if (share := one_class(record)) is not None:
                found[task, share][row].append(record["cell"]["seed"])
    notes = []
    for (task, share), rows in found.items():
        runs = plural(sum(map(len, rows.values())), "run")
        which = "; ".join(
            f"{row}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
            for row, seeds in rows.items()
        )
        notes.append(f"predicts one class: {runs} on {task}{f' ({share})' if share else ''}: {which}.")
    return notes


def _of_several_codes(cells: Mapping[Key, Cell]) -> list[str]:
    """A note for each cell whose seeds were made with several versions of its method's or its task's file, or
    of what that imports, one of which at least is in no commit."""
    notes = []
    for (_, row, task), cell in cells.items():
        for part in ("method", "task"):
            made = [(r["cell"]["seed"], r.get("code", {}).get("sources", {}).get(part)) for r in cell.records]
            known = [(seed, source) for seed, source in made if source]
            if all(source["uncommitted"] is False for _, source in known):
                continue
            for key, what in (("sha256", ""), ("imports", "what is imported by ")):
                versions: dict[str, list[int]] = defaultdict(list)
                for seed, source in known:
                    if key in source:  # older records lack `imports`
                        versions[source[key]].append(seed)
                if len(versions) > 1:
                    seeds = " | ".join(", ".join(map(str, sorted(of))) for of in versions.values())
                    of = f"{len(versions)} versions of {what}{known[0][1]['file']}"
                    notes.append(f"{row} on {task}: seeds of {of}: {seeds}.")
                    break
    return notes


def _keeps_one_pair(cell: Cell) -> bool:
    """Whether the seeds of a cell share VeRA's random matrices."""
    method = cell.records[0]["config"]["method"]
    return cell.seeds > 1 and method["kind"] == "vera" and not method.get("redrawn")
