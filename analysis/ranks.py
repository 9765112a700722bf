"""All rows of a task at once: their mean ranks over seeds, Friedman's test, and the critical difference."""

from collections import defaultdict
from collections.abc import Mapping

from analysis.cells import Cell
from analysis.compare import of_cells, size_of
from analysis.inference import Ranks, friedman
from analysis.series import Series, series
from analysis.statistics import cell_facts
from analysis.table import Table, make_row
from analysis.verdicts import all_cells
from runs.record import Ledger
from runs.record.text import plural

#: A test of ranks needs as many rows, and as many seeds.
ROWS, SEEDS = 3, 2


def ranks(ledger: Ledger) -> list[Table]:
    """For each model and task the rows from the best mean rank to the worst, where three of them or more
    share two seeds or more."""
    by_task: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for (model, row, task), cell in sorted(all_cells(ledger).items()):
        by_task[model, task][row] = cell
    tables = [_of_task(*pair, by_row) for pair, by_row in by_task.items()]
    return [table for table in tables if table]


def _of_task(model: str, task: str, by_row: Mapping[str, Cell]) -> Table | None:
    numbers = {row: series(cell) for row, cell in by_row.items()}
    # The seeds and the number of the rows that have most seeds; other rows would leave few blocks, or none.
    most = max(numbers.values(), key=lambda of: len(of.values))
    ranked = [row for row, of in numbers.items() if of.name == most.name and {*most.values} <= {*of.values}]
    if len(ranked) < ROWS or len(most.values) < SEEDS:
        return None
    found = friedman([_values(numbers[row], most) for row in ranked])
    order = sorted(zip(found.mean, ranked, strict=True))
    lines = []
    for mean, row in order:
        cell, facts = by_row[row], cell_facts(by_row[row])
        near = "yes" if mean - order[0][0] < found.critical else "no"
        texts = [f"{cell.parameters + cell.head_parameters:,}", facts["median"], facts["interval"]]
        shown = [of_cells(text, cell) for text in (*texts, f"{mean:.1f}")]
        lines.append(make_row(cell.label, size_of(cell), *shown, near))
    header = ["method", "params", "with the head", most.name, "95%", "mean rank", "near the first"]
    notes = _notes(found, len(ranked), most, [by_row[row].label for row in by_row if row not in ranked])
    return Table(f"{model}: {task}, ranks over {plural(len(most.values), 'seed')}", header, lines, notes)


def _values(of: Series, most: Series) -> list[float]:
    """The values in the order of the seeds, such that more is better."""
    return [-of.values[seed] if of.less else of.values[seed] for seed in sorted(most.values)]


def _notes(found: Ranks, rows: int, most: Series, others: list[str]) -> list[str]:
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    notes = [
        f"Friedman's test of {rows} rows, whose blocks are the {len(most.values)} seeds: {p}. It is of this"
        " model and task alone.",
        f"Critical difference (Nemenyi, 5%): {found.critical:.1f} ranks. near the first: the mean rank is"
        " within it of the first one's, so the test does not tell them apart.",
    ]
    if others:
        notes.append(f"Without all of these seeds, and not ranked: {', '.join(others)}.")
    return notes
