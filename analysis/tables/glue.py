"""Table 2: GLUE."""

from collections.abc import Iterable, Sequence

from analysis import beside, compare
from analysis.beside import Beside, mean, off_formula, status, told
from analysis.cells import Cell, Key, cells
from analysis.paper import FROM_MNLI, GLUE, Printed, printed_rows
from analysis.table import Table, TableCell, texts
from runs.record import Ledger


def table2(
    ledger: Ledger, select: str, seeds: int | None = None, tasks: Sequence[str] = tuple(GLUE)
) -> list[Table]:
    """GLUE: a table for each of the paper's models, and one for each other model that has records. tasks:
    the columns."""
    shown = tuple(task for task in GLUE if task in tasks)
    found = {key: cell for key, cell in cells(ledger, seeds or 5, select).items() if key[2] in shown}
    tables = []
    for model, label in (("roberta_base", "RoBERTa-base"), ("roberta_large", "RoBERTa-large")):
        rows: list[list[TableCell]] = []
        used = {f"{row}_mnli" for of, row in FROM_MNLI if of == model}
        for printed in printed_rows("table2", model):
            used.add(printed[0].row)
            rows += _paper_rows(printed, found, shown)
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            ours = {t: found[model, row, t] for t in shown if (model, row, t) in found}
            rows.append(_our_row(ours, wanted=shown, columns=shown))
        tables.append(_glue_table(f"Table 2, {label}: GLUE dev sets", rows, found, model, select, shown))
    for model in sorted({key[0] for key in found} - {"roberta_base", "roberta_large"}):
        rows = []
        ran = tuple(task for task in shown if any(key[0] == model and key[2] == task for key in found))
        for row in dict.fromkeys(
            [*("full", "head", "bitfit", "lora", "vera"), *sorted(key[1] for key in found)]
        ):
            ours = {task: found[model, row, task] for task in ran if (model, row, task) in found}
            if ours:
                rows.append(_our_row(ours, "other model", ran, columns=ran))
        tables.append(_glue_table(compare.other_model("Table 2", model), rows, found, model, select, ran))
    return tables


def _glue_table(
    title: str,
    rows: list[list[TableCell]],
    found: dict[Key, Cell],
    model: str,
    select: str,
    tasks: tuple[str, ...],
) -> Table:
    notes = [
        "Medians over seeds of the best epoch on dev, +- sample standard deviation. CoLA Matthews, STS-B"
        " Pearson, else accuracy"
    ]
    heads = sorted(
        {r["parameters"]["head"] for cell in compare.of_model(found, model).values() for r in cell.records}
    )
    if heads:
        sizes = " or ".join(map("{:,}".format, heads))
        notes.append(f"params: without the classification head, which every method trains ({sizes}).")
    if select == "crossfit":
        notes[0] = f"Medians over seeds. {compare.CROSSFIT} The paper's numbers are not."
    said = texts(rows)
    notes += beside.notes(said)
    if any((model, row) in FROM_MNLI and (model, f"{row}_mnli", task) in found for _, row, task in found):
        notes.append(
            "The average of a row from MNLI takes the other tasks from the same method without that start."
        )
    if any("quoted" in row[-1] for row in said):
        notes.append(f"{compare.QUOTED_NOTE} (n/m): n of m seeds, which enters no average.")
        notes += off_formula(model)
    notes += compare.about(compare.of_model(found, model))
    labels = {task: GLUE[task] for task in tasks}
    average = ["Avg"] if len(tasks) == len(GLUE) else []
    header = ["method", "source", "params", *labels.values(), *average, "status"]
    return Table(title, header, rows, notes, model, labels, ("best",))


def _paper_rows(
    row: Sequence[Printed], found: dict[Key, Cell], shown: tuple[str, ...]
) -> list[list[TableCell]]:
    """The paper's row, ours, and the difference; where the paper's started from MNLI, our row that did so
    too. shown: the tasks that the table has."""
    model, name = row[0].model, row[0].row
    started: tuple[str, ...] = FROM_MNLI.get((model, name), ())
    printed = {number.column: number for number in row}
    source = "paper, * from MNLI" if started else "paper"
    texts_ = [
        compare.printed_text(n) + ("*" if n.task in started else "")
        for n in row
        if n.column in shown or shown == tuple(GLUE)
    ]
    rows = [compare.paper_row(row, *texts_, source=source)]
    started = tuple(task for task in started if task in shown)

    def like_for_like(ours: dict[str, Cell], tasks: Iterable[str]) -> dict[str, Beside]:
        return {
            task: compare.beside_paper(cell, printed[task]) for task, cell in ours.items() if task in tasks
        }

    plain = {task: found[model, name, task] for task in shown if (model, name, task) in found}
    from_mnli = {
        task: found[model, f"{name}_mnli", task] for task in started if (model, f"{name}_mnli", task) in found
    }
    if plain:
        # Only what is like for like
        compared = like_for_like(plain, [task for task in shown if task not in started])
        rows.append(_our_row(plain, status(list(compared.values())), shown, columns=shown))
        rows += _difference(compared, compared if not started else {}, printed["avg"].value, shown)
    if from_mnli:
        compared = like_for_like(from_mnli, started)
        # The paper's average is over both kinds of cells, and so is this one.
        both = {**like_for_like(plain, [task for task in shown if task not in started]), **compared}
        averaged = {task: one.cell for task, one in both.items()}
        rows.append(_our_row(from_mnli, status(list(compared.values())), started, averaged, shown))
        rows += _difference(compared, both, printed["avg"].value, shown)
    return rows


def _difference(
    compared: dict[str, Beside], averaged: dict[str, Beside], printed: float, shown: tuple[str, ...]
) -> list[list[TableCell]]:
    """The line under our row; none where it is of another size. averaged, printed: what our average is over,
    and the paper's average."""
    if not all(one.same_size for one in compared.values()):
        return []
    gaps = [compare.gap(compared.get(task)) for task in shown]
    cells_ = {task: one.cell for task, one in averaged.items()}
    average, whole = _average(cells_), mean(list(averaged.values()))
    text = told(whole) if whole else f"{average - printed:+.1f}" if average is not None else "-"
    if shown == tuple(GLUE):
        gaps.append(compare.of_cells(text, *cells_.values()) if average is not None else TableCell("-"))
    return [compare.difference_row(*gaps)]


def _our_row(
    ours: dict[str, Cell],
    word: str = "ours",
    wanted: tuple[str, ...] = tuple(GLUE),
    averaged: dict[str, Cell] | None = None,
    columns: tuple[str, ...] = tuple(GLUE),
) -> list[TableCell]:
    """A row of ours, with an average where its columns are all tasks. averaged: what it is over, if not
    `ours`."""
    averaged = ours if averaged is None else averaged
    average = _average(averaged)
    text = compare.of_cells(f"{average:.1f}", *averaged.values()) if average is not None else "-"
    return compare.our_row(ours, columns, wanted, word, average=[text] if len(columns) == len(GLUE) else [])


def _average(ours: dict[str, Cell]) -> float | None:
    """The mean over tasks of the medians over seeds; None unless every task is there with all its seeds."""
    if set(ours) != set(GLUE) or not all(cell.complete for cell in ours.values()):
        return None
    return sum(cell.median() for cell in ours.values()) / len(GLUE)
