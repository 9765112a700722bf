"""Table 5: few-shot image classification."""

from analysis import beside
from analysis.beside import Beside, same_size, status
from analysis.cells import Cell, Key, cells
from analysis.compare import about, gap, shown, size_of
from analysis.paper import IMAGES, NAMES, paper
from analysis.stats import series
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger


def table5(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Few-shot images: a table for each of the paper's models, and one for each other model that has records."""
    records = [r for r in ledger if r["config"]["task"].get("family") == "images"]
    found = cells(records, seeds or 5, select)
    tables = []
    for name, label in (("vit-base", "ViT-B/16"), ("vit-large", "ViT-L/16")):
        model, rows, used = name.replace("-", "_"), [], set()
        more = _tasks(found, model, tuple(IMAGES))
        for row, size, *values in paper()["table5"][name]:
            used.add(row)
            printed = [f"{value:.1f}" for value in values] + ["-"] * (len(more) - len(values))
            rows.append(make_row(NAMES[row], "paper", str(size), *printed, "quoted"))
            ours = {task: found[model, row, task] for task in more if (model, row, task) in found}
            if ours:
                compared = {
                    task: image_beside(ours[task], value, same_size(ours[task], model, row, size))
                    for task, value in zip(IMAGES, values, strict=True)
                    if task in ours
                }
                rows.append(_image_row(ours, more, tuple(IMAGES), status(list(compared.values()))))
                if all(one.same_size for one in compared.values()):
                    gaps = [gap(compared.get(task)) for task in IMAGES]
                    rows.append(make_row("", "difference", "", *gaps, *["-"] * (len(more) - len(gaps)), ""))
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            rows.append(_image_row({t: found[model, row, t] for t in more if (model, row, t) in found}, more, tuple(IMAGES)))
        tables.append(_image_table(f"Table 5, {label}: 10 training images a class", rows, found, model, more, select))
    for model in sorted({key[0] for key in found} - {"vit_base", "vit_large"}):
        more = _tasks(found, model, ())
        order = [*("head", "full", "lora", "vera"), *sorted(key[1] for key in found)]
        mine = [{t: found[model, row, t] for t in more if (model, row, t) in found} for row in dict.fromkeys(order)]
        rows = [_image_row(ours, more, more, "other model") for ours in mine if ours]
        title = f"Table 5's protocol on {model}, a model that the paper does not use"
        tables.append(_image_table(title, rows, found, model, more, select))
    return tables


def _tasks(found: dict[Key, Cell], model: str, first: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a model's table: the paper's, and whatever else has records."""
    return tuple(dict.fromkeys([*first, *sorted((key[2] for key in found if key[0] == model), key=_place)]))


def _place(task: str) -> tuple[int, str]:
    return (list(IMAGES).index(task) if task in IMAGES else len(IMAGES), task)


def image_beside(cell: Cell, printed: float, same_size: bool) -> Beside:
    """A cell's accuracy at the last epoch beside the paper's."""
    return Beside(cell, printed, None, list(series(cell, "last").values.values()), same_size=same_size)


def _image_row(ours: dict[str, Cell], tasks: tuple[str, ...], wanted: tuple[str, ...], word: str = "ours") -> list[TableCell]:
    first = next(iter(ours.values()))
    shown_ = [shown(ours[task], "last") if task in ours else "missing" if task in wanted else "-" for task in tasks]
    whole = all(task in ours and ours[task].complete for task in wanted)
    diverged = sum(cell.diverged for cell in ours.values())
    word = (word if whole or "another size" in word else "ours, incomplete") + (f", {diverged} diverged" if diverged else "")
    return make_row(first.label, "ours", size_of(first), *shown_, word)


def _image_table(
    title: str, rows: list[list[TableCell]], found: dict[Key, Cell], model: str, tasks: tuple[str, ...], select: str
) -> Table:
    mine = {key: cell for key, cell in found.items() if key[0] == model}
    notes = [
        "Accuracy. Medians over seeds of the last epoch, +- sample standard deviation. Each seed draws its own training images."
    ]
    notes.append("params: without the classification head, which every method trains.")
    if select == "crossfit":
        notes.append("--select changes nothing here: the last epoch is reported.")
    said = texts(rows)
    notes += beside.notes(said)
    if any("quoted" in row[-1] for row in said):
        notes.append("quoted: the paper's number, not run here. (n/m): n of m seeds.")
    names = {r["cell"]["task"]: r["label"]["task"] for cell in mine.values() for r in cell.records}
    for task in tasks:
        shots = {r["config"]["task"].get("shots") for key, cell in mine.items() if key[2] == task for r in cell.records}
        if shots and shots != {10}:
            notes.append(
                f"{task}: {' or '.join('all' if n is None else str(n) for n in sorted(shots, key=str))} images a class"
            )
    labels = {task: IMAGES.get(task) or names.get(task, task) for task in tasks}
    header = ["method", "source", "params", *labels.values(), "status"]
    return Table(title, header, rows, [*notes, *about(mine)], model, labels, ("last",))
