"""Table 5: few-shot image classification."""

from analysis import beside, compare
from analysis.beside import Beside, status
from analysis.cells import Cell, Key, cells
from analysis.paper import IMAGES, Printed, printed_rows
from analysis.series import series
from analysis.table import Table, TableCell, texts
from runs.record import Ledger, Record


def table5(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Few-shot images: a table for each of the paper's models, and for each other model that has records."""
    found = cells(few_shot(ledger), seeds or 5, select)
    tables = []
    for model, label in (("vit_base", "ViT-B/16"), ("vit_large", "ViT-L/16")):
        rows: list[list[TableCell]] = []
        used = set()
        more = _tasks(found, model, tuple(IMAGES))
        other = ["-"] * (len(more) - len(IMAGES))  # of tasks that the paper does not have
        for printed in printed_rows("table5", model):
            row = printed[0].row
            used.add(row)
            rows.append(compare.paper_row(printed, *map(compare.printed_text, printed), *other))
            ours = {task: found[model, row, task] for task in more if (model, row, task) in found}
            if ours:
                compared = {n.task: image_beside(ours[n.task], n) for n in printed if n.task in ours}
                rows.append(_image_row(ours, more, tuple(IMAGES), status(list(compared.values()))))
                if all(one.same_size for one in compared.values()):
                    rows.append(
                        compare.difference_row(*(compare.gap(compared.get(task)) for task in IMAGES), *other)
                    )
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            rows.append(
                _image_row(
                    {t: found[model, row, t] for t in more if (model, row, t) in found}, more, tuple(IMAGES)
                )
            )
        tables.append(
            _image_table(f"Table 5, {label}: 10 training images a class", rows, found, model, more, select)
        )
    for model in sorted({key[0] for key in found} - {"vit_base", "vit_large"}):
        more = _tasks(found, model, ())
        order = [*("head", "full", "lora", "vera"), *sorted(key[1] for key in found)]
        mine = [
            {t: found[model, row, t] for t in more if (model, row, t) in found}
            for row in dict.fromkeys(order)
        ]
        rows = [_image_row(ours, more, more, "other model") for ours in mine if ours]
        tables.append(_image_table(compare.other_model("Table 5", model), rows, found, model, more, select))
    return tables


def _tasks(found: dict[Key, Cell], model: str, first: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a model's table: the paper's, and whatever else has records."""
    return tuple(dict.fromkeys([*first, *sorted((key[2] for key in found if key[0] == model), key=_place)]))


def _place(task: str) -> tuple[int, str]:
    return (list(IMAGES).index(task) if task in IMAGES else len(IMAGES), task)


def few_shot(ledger: Ledger) -> list[Record]:
    """The records of image classification."""
    return [r for r in ledger if r["config"]["task"].get("family") == "images"]


def image_beside(cell: Cell, printed: Printed) -> Beside:
    """A cell's accuracy at the last epoch beside the paper's."""
    return compare.beside_paper(cell, printed, values=list(series(cell).values.values()))


def _image_row(
    ours: dict[str, Cell], tasks: tuple[str, ...], wanted: tuple[str, ...], word: str = "ours"
) -> list[TableCell]:
    return compare.our_row(ours, tasks, wanted, word, compare.shown)


def _image_table(
    title: str,
    rows: list[list[TableCell]],
    found: dict[Key, Cell],
    model: str,
    tasks: tuple[str, ...],
    select: str,
) -> Table:
    mine = compare.of_model(found, model)
    notes = [
        (
            "Accuracy. Medians over seeds of the last epoch, +- sample standard deviation. Each seed draws"
            " its own training images."
        ),
        "params: without the classification head, which every method trains.",
    ]
    if select == "crossfit":
        notes.append(compare.NO_SELECT)
    said = texts(rows)
    notes += beside.notes(said)
    if any("quoted" in row[-1] for row in said):
        notes.append(f"{compare.QUOTED_NOTE} (n/m): n of m seeds.")
    names = {r["cell"]["task"]: r["label"]["task"] for cell in mine.values() for r in cell.records}
    for task in tasks:
        shots = {
            r["config"]["task"].get("shots")
            for key, cell in mine.items()
            if key[2] == task
            for r in cell.records
        }
        if shots and shots != {10}:
            counts = " or ".join("all" if n is None else str(n) for n in sorted(shots, key=str))
            notes.append(f"{task}: {counts} images a class")
    labels = {task: IMAGES.get(task) or names.get(task, task) for task in tasks}
    header = ["method", "source", "params", *labels.values(), "status"]
    return Table(title, header, rows, [*notes, *compare.about(mine)], model, labels, ("last",))
