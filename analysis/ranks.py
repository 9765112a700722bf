"""All rows of a task at once: their mean ranks over seeds, Friedman's test, and the critical difference."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.cells import Cell, measured_on
from analysis.compare import of_cells, size_of
from analysis.inference import Ranks, friedman
from analysis.series import Series, series
from analysis.statistics import cell_facts
from analysis.table import Table, make_row
from analysis.wanted import all_cells
from runs.record import Ledger, interval_name
from runs.record.text import plural

#: A test of ranks needs as many rows, and as many seeds.
ROWS, SEEDS = 3, 2


def ranks(ledger: Ledger) -> list[Table]:
    """For each model and task the rows from the best mean rank to the worst, where three of them or more
    share two seeds or more, measured on the same."""
    by_task: dict[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for (model, row, task), cell in sorted(all_cells(ledger).items()):
        by_task[model, task][row] = cell
    tables = [_of_task(*pair, by_row) for pair, by_row in by_task.items()]
    return [table for table in tables if table]


def _of_task(model: str, task: str, by_row: Mapping[str, Cell]) -> Table | None:
    numbers = {row: series(cell) for row, cell in by_row.items()}
    blocks = {row: _blocks(cell, numbers[row]) for row, cell in by_row.items()}

    def having(seeds: frozenset[Any]) -> list[str]:
        return [row for row, of in blocks.items() if seeds <= of]

    # The seeds of one of the rows, and the rows that have all of these: as many of both as there are
    enough = [of for of in blocks.values() if len(of) >= SEEDS and len(having(of)) >= ROWS]
    if not enough:
        return None
    most = max(enough, key=lambda of: (len(of) * len(having(of)), len(of)))
    ranked, seeds = having(most), sorted(block[0] for block in most)
    found = friedman([_values(numbers[row], seeds) for row in ranked])
    order = sorted(zip(found.mean, ranked, strict=True))
    lines = []
    for mean, row in order:
        records = [record for record in by_row[row].records if record["cell"]["seed"] in seeds]
        cell = replace(by_row[row], records=records)
        facts = cell_facts(cell)
        near = "not told apart" if mean - order[0][0] < found.critical else "told apart"
        texts = [f"{cell.parameters + cell.head_parameters:,}", facts["median"], facts["interval"]]
        shown = [of_cells(text, cell) for text in (*texts, f"{mean:.1f}")]
        lines.append(make_row(cell.label, size_of(cell), *shown, "-" if row == order[0][1] else near))
    name = numbers[ranked[0]].name
    header = ["method", "params", "with the head", name, interval_name([len(seeds)]), "mean rank"]
    header += ["from the first"]
    notes = _notes(found, len(ranked), len(seeds), [by_row[row].label for row in by_row if row not in ranked])
    return Table(f"{model}: {task}, ranks over {plural(len(seeds), 'seed')}", header, lines, notes)


def _blocks(cell: Cell, of: Series) -> frozenset[Any]:
    """The seeds of a row that have a value, and what each was measured on: rows are ranked where all of it is
    the same."""
    return frozenset(
        (record["cell"]["seed"], of.name, measured_on(record))
        for record in cell.records
        if record["cell"]["seed"] in of.values
    )


def _values(of: Series, seeds: Sequence[int]) -> list[float]:
    """The values in the order of the seeds, such that more is better."""
    return [-of.values[seed] if of.less else of.values[seed] for seed in seeds]


def _notes(found: Ranks, rows: int, seeds: int, others: list[str]) -> list[str]:
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    notes = [
        f"Friedman's test of {rows} rows, whose blocks are the {seeds} seeds: {p}. It is of this"
        " model and task alone.",
        f"Critical difference (Nemenyi, 5%): {found.critical:.1f} ranks. not told apart: the mean rank is"
        " within it of the first one's.",
    ]
    if others:
        notes.append(f"Not ranked, as they lack one of these seeds on the same data: {', '.join(others)}.")
    return notes
