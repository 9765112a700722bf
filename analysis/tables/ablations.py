"""Tables 6 and 7: ablations."""

import statistics
from collections.abc import Sequence

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


def table6(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """A table for each of the paper's three ablations on RoBERTa-large, and for each other model with such
    runs."""
    found = cells(ledger, seeds or 5, select)
    tables = []
    for part, (title, names) in PARTS.items():
        tables += _ablation(f"Table 6, {title}", printed_rows("table6", part=part), names, found, select)
    return tables


def table7(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Shared or unique random matrices, on RoBERTa-large, and on each other model that has such runs."""
    names, found = {"shared": "shared A, B", "unique": "unique A, B"}, cells(ledger, seeds or 5, select)
    return _ablation("Table 7, random matrices", printed_rows("table7"), names, found, select)


def _ablation(
    title: str,
    printed: Sequence[Sequence[Printed]],
    names: dict[str, str],
    found: dict[Key, Cell],
    select: str,
) -> list[Table]:
    wanted = {row[0].row for row in printed}
    found = {key: cell for key, cell in found.items() if key[1] in wanted and key[2] in GLUE}
    varied = {(key[0], key[2]) for key in found if key[1] != "vera"}
    tables = []
    for model in [OF_PAPER, *sorted({model for model, _ in varied} - {OF_PAPER})]:
        # The paper's model on the paper's tasks; another one on those that it was tried on.
        tasks = (
            tuple(n.task for n in printed[0])
            if model == OF_PAPER
            else tuple(t for t in GLUE if (model, t) in varied)
        )
        mine = {key: cell for key, cell in found.items() if key[0] == model and key[2] in tasks}
        rows = _rows(printed, names, tasks, model, mine)
        notes = [*_notes(title, rows, model, select), *_of_unlike_seeds(printed, names, tasks, model, mine)]
        if title.startswith("Table 7"):
            notes.append("The paper's shared row is not its table 6's row of the same settings.")
        if model != OF_PAPER:
            notes.append(f"{model} is a model that the paper does not use.")
        whose = "RoBERTa-large" if model == OF_PAPER else model
        labels = {task: GLUE[task] for task in tasks}
        header = ["setting", "source", *labels.values(), "status"]
        tables.append(
            Table(f"{title}, {whose}", header, rows, [*notes, *compare.about(mine)], model, labels, ("best",))
        )
    return tables


def _rows(
    printed: Sequence[Sequence[Printed]],
    names: dict[str, str],
    tasks: tuple[str, ...],
    model: str,
    found: dict[Key, Cell],
) -> list[list[TableCell]]:
    rows: list[list[TableCell]] = []
    for row in printed:
        name = names[row[0].method]
        ours = {task: found[model, row[0].row, task] for task in tasks if (model, row[0].row, task) in found}
        if model != OF_PAPER:
            rows += (
                [compare.our_row(ours, tasks, tasks, "other model", _mean, (name, "ours"))] if ours else []
            )
            continue
        rows.append(make_row(name, "paper", *map(compare.printed_text, row), "quoted"))
        if ours:
            compared = {n.task: mean_beside(ours[n.task], n) for n in row if n.task in ours}
            rows.append(
                compare.our_row(ours, tasks, tasks, status(list(compared.values())), _mean, ("", "ours"))
            )
            rows.append(
                compare.difference_row(*(compare.gap(compared.get(task)) for task in tasks), size=False)
            )
    return rows


def mean_beside(cell: Cell, printed: Printed) -> Beside:
    """A cell's mean beside the paper's: tables 6 and 7 print means."""
    return compare.beside_paper(cell, printed, middle=statistics.fmean)


def _mean(cell: Cell) -> TableCell:
    return compare.shown(cell, statistics.fmean)


def _notes(title: str, rows: list[list[TableCell]], model: str, select: str) -> list[str]:
    means = "Means over seeds of the best epoch on dev, +- sample standard deviation"
    notes = [f"{means}, as the paper's table {title[6]}."]
    if select == "crossfit":
        notes[0] = f"Means over seeds. {compare.CROSSFIT}"
    notes += beside.notes(texts(rows))
    if model == OF_PAPER:
        notes.append(f"{compare.QUOTED_NOTE} (n/m): n of m seeds. 1d: one diverged.")
    return notes


def _of_unlike_seeds(
    printed: Sequence[Sequence[Printed]],
    names: dict[str, str],
    tasks: tuple[str, ...],
    model: str,
    found: dict[Key, Cell],
) -> list[str]:
    notes = []
    for task in tasks:
        of_task = {names[row[0].method]: found.get((model, row[0].row, task)) for row in printed}
        notes += _over_the_same_seeds({name: cell for name, cell in of_task.items() if cell}, GLUE[task])
    return notes


def _over_the_same_seeds(rows: dict[str, Cell], task: str) -> list[str]:
    """A note with the means over the seeds that all rows have, where rows have unlike seeds: theirs do not
    compare."""
    alike = over_shared_seeds(rows.values()) if rows else []
    if (
        not alike
        or not alike[0].records
        or all(a.seeds == b.seeds for a, b in zip(alike, rows.values(), strict=True))
    ):
        return []
    means = ", ".join(f"{name} {cell.mean():.1f}" for name, cell in zip(rows, alike, strict=True))
    return [
        f"{task}: rows have unlike seeds. Over the {plural(alike[0].seeds, 'seed')} that all have: {means}."
    ]
