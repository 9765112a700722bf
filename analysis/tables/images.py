"""Table 5: few-shot image classification."""

from collections.abc import Mapping, Sequence

from analysis import beside, compare
from analysis.beside import status
from analysis.cells import Cell, Key, cells
from analysis.paper import IMAGES, VIT, printed_rows
from analysis.table import Table, TableCell, texts
from runs.record import Ledger, Record


def table5(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Few-shot images: a table for each of the paper's models, and for each other model that has records."""
    by_key = cells(few_shot(ledger), seeds or 5, select)
    return [_of_model(model, by_key, select) for model in compare.models_of(by_key, VIT)]


def few_shot(ledger: Ledger) -> list[Record]:
    """The records of image classification."""
    return [r for r in ledger if r["config"]["task"].get("family") == "images"]


def _of_model(model: str, by_key: Mapping[Key, Cell], select: str) -> Table:
    """The table of a model: the paper's tasks, where the paper has the model, and others that have run."""
    printed, by_key = printed_rows("table5", model), compare.of_model(by_key, model)
    ran = {task for _, _, task in by_key}
    papers = [task for task in IMAGES if printed or task in ran]
    columns = (*papers, *sorted(ran - set(IMAGES)))
    wanted = papers if printed else columns
    others = ["-"] * (len(columns) - len(papers))  # the paper's numbers of tasks that it does not have
    ours, rows = compare.by_row(by_key, model, columns), list[list[TableCell]]()
    for row in printed:
        rows.append(compare.paper_row(row, *map(compare.printed_text, row), *others))
        if of_row := ours.get(row[0].row):
            compared = {n.task: compare.beside_paper(of_row[n.task], n) for n in row if n.task in of_row}
            rows.append(compare.our_row(of_row, columns, wanted, status(list(compared.values()))))
            if all(one.same_size for one in compared.values()):
                gaps = [compare.gap(compared.get(task)) for task in papers]
                rows.append(compare.difference_row(*gaps, *others))
    order, word = ((), "ours") if printed else (("head", "full", "lora", "vera"), "other model")
    for name in compare.other_rows(ours, printed, order):
        rows.append(compare.our_row(ours[name], columns, wanted, word))
    title = compare.other_model("Table 5", model)
    if printed:
        title = f"Table 5, {VIT[model]}: 10 training images a class"
    names = {r["cell"]["task"]: r["label"]["task"] for cell in by_key.values() for r in cell.records}
    labels = {task: IMAGES.get(task) or names.get(task, task) for task in columns}
    header = ["method", "source", "params", *labels.values(), "status"]
    notes = [*_notes(rows, by_key, columns, select), *compare.about(by_key)]
    return Table(title, header, rows, notes, model, labels, ("last",))


def _notes(
    rows: Sequence[Sequence[TableCell]], by_key: Mapping[Key, Cell], tasks: Sequence[str], select: str
) -> list[str]:
    notes = [
        (
            "Accuracy. Medians over seeds of the last epoch, +- sample standard deviation. Each seed draws"
            " its own training images."
        ),
        "params: without the classification head, which every method trains.",
    ]
    if select == "crossfit":
        notes.append(compare.NO_SELECT)
    notes += beside.notes(texts(rows))
    if any(row[-1].text == "quoted" for row in rows):
        notes.append(f"{compare.QUOTED_NOTE} (n/m): n of m seeds.")
    for task in tasks:
        of_task = (r for key, cell in by_key.items() if key[2] == task for r in cell.records)
        shots = {r["config"]["task"].get("shots") for r in of_task}
        if shots and shots != {10}:
            counts = " or ".join("all" if n is None else str(n) for n in sorted(shots, key=str))
            notes.append(f"{task}: {counts} images a class")
    return notes
