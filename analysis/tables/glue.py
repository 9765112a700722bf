"""Table 2: GLUE."""

from collections.abc import Iterable, Mapping, Sequence

from analysis import beside, compare
from analysis.beside import Beside, about_counts, difference_text, mean, status
from analysis.cells import Cell, Key, cells, reported_epoch
from analysis.paper import FROM_MNLI, GLUE, ROBERTA, Printed, printed_rows
from analysis.table import Table, TableCell, texts
from runs.record import Ledger

Tasks = tuple[str, ...]


def table2(
    ledger: Ledger, select: str, seeds: int | None = None, tasks: Sequence[str] = tuple(GLUE)
) -> list[Table]:
    """GLUE: a table for each of the paper's models, and one for each other model that has records. tasks:
    the columns."""
    columns = tuple(task for task in GLUE if task in tasks)
    by_key = {key: cell for key, cell in cells(ledger, seeds or 5, select).items() if key[2] in columns}
    return [_of_model(model, by_key, select, columns) for model in compare.models_of(by_key, ROBERTA)]


def _of_model(model: str, by_key: Mapping[Key, Cell], select: str, columns: Tasks) -> Table:
    """The table of a model. Of another model than the paper's, its columns are the tasks that have run."""
    printed, by_key = printed_rows("table2", model), compare.of_model(by_key, model)
    if not printed:
        columns = tuple(task for task in columns if any(key[2] == task for key in by_key))
    ours, rows = compare.by_row(by_key, model, columns), list[list[TableCell]]()
    for row in printed:
        from_mnli = ours.pop(f"{row[0].row}_mnli", {}) if (model, row[0].row) in FROM_MNLI else {}
        rows += _paper_rows(row, ours.get(row[0].row, {}), from_mnli, columns)
    order, word = ((), "ours") if printed else (("full", "head", "bitfit", "lora", "vera"), "other model")
    for name in compare.other_rows(ours, printed, order):
        rows.append(_our_row(ours[name], ours[name], word, columns, columns))
    title = f"Table 2, {ROBERTA[model]}: GLUE dev sets" if printed else compare.other_model("Table 2", model)
    labels = {task: GLUE[task] for task in columns}
    average = ["Avg"] if len(columns) == len(GLUE) else []
    header = ["method", "source", "params", *labels.values(), *average, "status"]
    notes = _notes(rows, by_key, model, select)
    return Table(title, header, rows, [*notes, *compare.about(by_key)], model, labels, ("best",))


def _notes(
    rows: Sequence[Sequence[TableCell]], by_key: Mapping[Key, Cell], model: str, select: str
) -> list[str]:
    chosen = f"over seeds. {compare.CROSSFIT} The paper's numbers are not."
    if select == "paper":
        epochs = sorted({reported_epoch(r) for cell in by_key.values() for r in cell.records}) or ["best"]
        chosen = (
            f"over seeds of the {' or '.join(epochs)} epoch on dev, +- sample standard deviation. CoLA"
            " Matthews, STS-B Pearson, else accuracy"
        )
    notes = [f"Medians {chosen}"]
    if heads := sorted({r["parameters"]["head"] for cell in by_key.values() for r in cell.records}):
        sizes = " or ".join(map("{:,}".format, heads))
        notes.append(f"params: without the classification head, which every method trains ({sizes}).")
    notes += beside.notes(texts(rows))
    if any((model, row) in FROM_MNLI and (model, f"{row}_mnli", task) in by_key for _, row, task in by_key):
        notes.append(
            "The average of a row from MNLI takes the other tasks from the same method without that start."
        )
    if printed_rows("table2", model):
        notes.append(f"{compare.QUOTED_NOTE} (n/m): n of m seeds, which enters no average.")
        notes += about_counts(model)
    return notes


def _paper_rows(
    row: Sequence[Printed], plain: dict[str, Cell], from_mnli: dict[str, Cell], columns: Tasks
) -> list[list[TableCell]]:
    """The paper's row, ours, and the difference. plain: our cells of that row. Where the paper's row started
    from MNLI on some tasks, these are compared with our row that did so, too: from_mnli."""
    started = tuple(task for task in FROM_MNLI.get((row[0].model, row[0].row), ()) if task in columns)
    from_mnli = {task: cell for task, cell in from_mnli.items() if task in started}
    printed = {number.column: number for number in row}
    numbers = [
        compare.printed_text(printed[column]) + "*" * (column in started)
        for column in printed
        if column in columns or columns == tuple(GLUE)
    ]
    source = "paper, * from MNLI" if (row[0].model, row[0].row) in FROM_MNLI else "paper"
    rows = [compare.paper_row(row, *numbers, source=source)]

    def compared(ours: dict[str, Cell], like_for_like: Iterable[str]) -> dict[str, Beside]:
        return {
            task: compare.beside_paper(ours[task], printed[task]) for task in like_for_like if task in ours
        }

    unstarted = compared(plain, [task for task in columns if task not in started])
    if plain:
        rows.append(_our_row(plain, plain, status(list(unstarted.values())), columns, columns))
        rows += _difference(unstarted, {} if started else unstarted, printed["avg"].value, columns)
    if from_mnli:
        those = compared(from_mnli, started)
        # The paper's average is over both kinds of cells, and so is this one.
        both = unstarted | those
        averaged = {task: one.cell for task, one in both.items()}
        rows.append(_our_row(from_mnli, averaged, status(list(those.values())), started, columns))
        rows += _difference(those, both, printed["avg"].value, columns)
    return rows


def _difference(
    compared: dict[str, Beside], averaged: dict[str, Beside], printed: float, columns: Tasks
) -> list[list[TableCell]]:
    """The line under our row; none where it is of another size. averaged: what our average is over. printed:
    the paper's average."""
    if not all(one.same_size for one in compared.values()):
        return []
    gaps = [compare.gap(compared.get(task)) for task in columns]
    if columns == tuple(GLUE):
        ours = {task: one.cell for task, one in averaged.items()}
        average, whole = _average(ours), mean(list(averaged.values()))
        text = "-" if average is None else difference_text(whole) if whole else f"{average - printed:+.1f}"
        gaps.append(compare.of_cells(text, *ours.values()))
    return [compare.difference_row(*gaps)]


def _our_row(
    ours: dict[str, Cell], averaged: dict[str, Cell], word: str, wanted: Tasks, columns: Tasks
) -> list[TableCell]:
    """A row of ours, with an average where its columns are all tasks. averaged: what that is over."""
    average = _average(averaged)
    text = compare.of_cells(f"{average:.1f}" if average is not None else "-", *averaged.values())
    return compare.our_row(ours, columns, wanted, word, average=[text] if len(columns) == len(GLUE) else [])


def _average(ours: dict[str, Cell]) -> float | None:
    """The mean over tasks of the medians over seeds; None unless every task is there with all its seeds."""
    if set(ours) != set(GLUE) or not all(cell.complete for cell in ours.values()):
        return None
    return sum(cell.median() for cell in ours.values()) / len(GLUE)
