"""Tables 6 and 7: ablations."""

import statistics
from collections.abc import Mapping, Sequence

from analysis import beside, compare
from analysis.beside import Beside, status
from analysis.cells import Cell, Key, cells, over_shared_seeds
from analysis.paper import GLUE, Printed, printed_rows
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger
from runs.record.text import plural

#: Table 6's parts, and how their settings are named here.
PARTS = {
    "scaling_vectors": ("scaling vectors", {"vera": "d and b", "only_d": "only d", "only_b": "only b"}),
    "matrix_init": (
        "matrix initialisation",
        {
            "kaiming_uniform": "Kaiming uniform",
            "kaiming_normal": "Kaiming normal",
            "uniform_0_0.1": "uniform [0, 0.1]",
        },
    ),
    "d_init": ("initial d", {"0.1": "0.1", "1e-07": "1e-7", "1.0": "1.0"}),
}
OF_PAPER = "roberta_large"
Rows = Sequence[Sequence[Printed]]


def table6(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """A table for each of the paper's three ablations on RoBERTa-large, and for each other model with such
    runs."""
    by_key = cells(ledger, seeds or 5, select)
    tables = []
    for part, (title, names) in PARTS.items():
        tables += _ablation(6, title, printed_rows("table6", part=part), names, by_key, select)
    return tables


def table7(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Shared or unique random matrices, on RoBERTa-large, and on each other model that has such runs."""
    names, by_key = {"shared": "shared A, B", "unique": "unique A, B"}, cells(ledger, seeds or 5, select)
    return _ablation(7, "random matrices", printed_rows("table7"), names, by_key, select)


def _ablation(
    number: int, title: str, printed: Rows, names: dict[str, str], by_key: Mapping[Key, Cell], select: str
) -> list[Table]:
    """number: of the paper's table. names: how the table calls the paper's settings."""
    wanted = {row[0].row for row in printed}
    by_key = {key: cell for key, cell in by_key.items() if key[1] in wanted and key[2] in GLUE}
    varied = [key for key in by_key if key[1] != "vera"]
    tables = []
    for model in compare.models_of(varied, [OF_PAPER]):
        # The paper's model on the paper's tasks; another one on those that it was tried on.
        ran = {key[2] for key in varied if key[0] == model}
        tasks = [n.task for n in printed[0]] if model == OF_PAPER else [task for task in GLUE if task in ran]
        ours = compare.by_row(by_key, model, tasks)
        rows = _rows(printed, names, tasks, ours, of_paper=model == OF_PAPER)
        notes = [*_notes(number, rows, model, select), *_over_the_same_seeds(printed, names, tasks, ours)]
        if number == 7:
            notes.append("The paper's shared row is not its table 6's row of the same settings.")
        if model != OF_PAPER:
            notes.append(f"{model} is a model that the paper does not use.")
        notes += compare.about({key: c for key, c in by_key.items() if key[0] == model and key[2] in tasks})
        whose = "RoBERTa-large" if model == OF_PAPER else model
        labels = {task: GLUE[task] for task in tasks}
        header = ["setting", "source", *labels.values(), "status"]
        tables.append(
            Table(f"Table {number}, {title}, {whose}", header, rows, notes, model, labels, ("best",))
        )
    return tables


def _rows(
    printed: Rows,
    names: dict[str, str],
    tasks: Sequence[str],
    ours: Mapping[str, dict[str, Cell]],
    of_paper: bool,
) -> list[list[TableCell]]:
    """of_paper: whether the model is the paper's, so that our rows stand beside its numbers."""
    rows: list[list[TableCell]] = []
    for row in printed:
        name, of_row = names[row[0].method], ours.get(row[0].row)
        if of_paper:
            rows.append(make_row(name, "paper", *map(compare.printed_text, row), "quoted"))
        if of_row and of_paper:
            compared = {n.task: mean_beside(of_row[n.task], n) for n in row if n.task in of_row}
            word = status(list(compared.values()))
            rows.append(compare.our_row(of_row, tasks, tasks, word, _mean, ("", "ours")))
            gaps = [compare.gap(compared.get(task)) for task in tasks]
            rows.append(compare.difference_row(*gaps, size=False))
        elif of_row:
            rows.append(compare.our_row(of_row, tasks, tasks, "other model", _mean, (name, "ours")))
    return rows


def mean_beside(cell: Cell, printed: Printed) -> Beside:
    """A cell's mean beside the paper's: tables 6 and 7 print means."""
    return compare.beside_paper(cell, printed, middle=statistics.fmean)


def _mean(cell: Cell) -> TableCell:
    return compare.shown(cell, statistics.fmean)


def _notes(number: int, rows: list[list[TableCell]], model: str, select: str) -> list[str]:
    means = "Means over seeds of the best epoch on dev, +- sample standard deviation"
    notes = [f"{means}, as the paper's table {number}."]
    if select == "crossfit":
        notes[0] = f"Means over seeds. {compare.CROSSFIT}"
    notes += beside.notes(texts(rows))
    if model == OF_PAPER:
        notes.append(f"{compare.QUOTED_NOTE} (n/m): n of m seeds.")
    return notes


def _over_the_same_seeds(
    printed: Rows, names: dict[str, str], tasks: Sequence[str], ours: Mapping[str, dict[str, Cell]]
) -> list[str]:
    """For each task whose rows have unlike seeds, and so do not compare, a note with the means over the seeds
    that all rows have."""
    notes = []
    for task in tasks:
        rows = {names[row[0].method]: ours.get(row[0].row, {}).get(task) for row in printed}
        whole = {name: cell for name, cell in rows.items() if cell}
        shared = over_shared_seeds(whole.values()) if whole else []
        if shared and shared[0].records and any(cell.seeds > shared[0].seeds for cell in whole.values()):
            means = ", ".join(f"{name} {cell.mean():.1f}" for name, cell in zip(whole, shared, strict=True))
            seeds = plural(shared[0].seeds, "seed")
            notes.append(f"{GLUE[task]}: rows have unlike seeds. Over the {seeds} that all have: {means}.")
    return notes
