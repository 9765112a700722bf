"""Tables 6 and 7: ablations."""

import statistics
from typing import Any

from analysis import beside
from analysis.beside import Beside, status
from analysis.cells import Cell, cells, over_shared_seeds
from analysis.compare import CROSSFIT, about, gap, printed_text, shown
from analysis.paper import GLUE, SETTINGS, paper, split
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger
from runs.record.text import plural

#: The rows of conf/method, in the order of the paper's.
ABLATIONS: dict[str, tuple[str, dict[Any, str]]] = {
    "scaling_vectors": ("scaling vectors", {"vera": "d and b", "only_d": "only d", "only_b": "only b"}),
    "matrix_init": ("matrix initialisation", {"kaiming_uniform": "Kaiming uniform", "kaiming_normal": "Kaiming normal"}),
    "d_init": ("initial d", {0.1: "0.1", 1e-7: "1e-7", 1.0: "1.0"}),
}
ABLATIONS["matrix_init"][1]["uniform_0_0.1"] = "uniform [0, 0.1]"


def table6(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Ablations: a table for each of the paper's three on RoBERTa-large, and for each other model that has such runs."""
    tables = []
    for key, (title, names) in ABLATIONS.items():
        tables += _ablation(f"Table 6, {title}", paper()["table6"][key], names, ("mrpc", "rte"), ledger, select, seeds)
    return tables


def table7(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Shared or unique random matrices, on RoBERTa-large, and on each other model that has such runs."""
    names = {"shared": "shared A, B", "unique": "unique A, B"}
    rows = paper()["table7"]["rows"]
    return _ablation("Table 7, random matrices", rows, names, ("mrpc", "rte", "cola", "stsb"), ledger, select, seeds)


def _ablation(
    title: str,
    printed: list[list[Any]],
    names: dict[Any, str],
    tasks: tuple[str, ...],
    ledger: Ledger,
    select: str,
    seeds: int | None,
) -> list[Table]:
    wanted, printed_tasks = {SETTINGS[setting] for setting, *_ in printed}, tasks
    rows_of = {key: cell for key, cell in cells(ledger, seeds or 5, select).items() if key[1] in wanted and key[2] in GLUE}
    varied = {(key[0], key[2]) for key in rows_of if key[1] != "vera"}
    tables = []
    for model in ["roberta_large", *sorted({model for model, _ in varied} - {"roberta_large"})]:
        # The paper's model on the paper's tasks; another one on those that it was tried on.
        tasks = printed_tasks if model == "roberta_large" else tuple(task for task in GLUE if (model, task) in varied)
        found = {key: cell for key, cell in rows_of.items() if key[0] == model and key[2] in tasks}
        rows: list[list[TableCell]] = []
        for setting, *values in printed:
            ours = {task: found[model, SETTINGS[setting], task] for task in tasks if (model, SETTINGS[setting], task) in found}
            if model == "roberta_large":
                rows.append(make_row(names[setting], "paper", *map(printed_text, values), "quoted"))
            if not ours:
                continue
            whole = all(task in ours and ours[task].complete for task in tasks)
            word, compared = "other model", dict[str, Beside]()
            if model == "roberta_large":
                compared = {
                    task: Beside(ours[task], *split(value), middle=statistics.fmean)
                    for task, value in zip(tasks, values, strict=True)
                    if task in ours
                }
                word = status(list(compared.values()))
            diverged = sum(cell.diverged for cell in ours.values())
            word = (word if whole else "ours, incomplete") + (f", {diverged} diverged" if diverged else "")
            name = names[setting] if model != "roberta_large" else ""
            rows.append(
                make_row(name, "ours", *(shown(ours[t], middle="mean") if t in ours else "missing" for t in tasks), word)
            )
            if model == "roberta_large":
                gaps = [gap(compared.get(task)) for task in tasks]
                rows.append(make_row("", "difference", *gaps, ""))
        notes = [f"Means over seeds of the best epoch on dev, +- sample standard deviation, as the paper's table {title[6]}."]
        if select == "crossfit":
            notes[0] = f"Means over seeds. {CROSSFIT}"
        notes += beside.notes(texts(rows))
        if model == "roberta_large":
            notes.append("quoted: the paper's number, not run here. (n/m): n of m seeds. 1d: one diverged.")
        for task in tasks:
            of_task = {name: found.get((model, SETTINGS[setting], task)) for setting, name in names.items()}
            notes += _over_the_same_seeds({name: cell for name, cell in of_task.items() if cell}, GLUE[task])
        if title.startswith("Table 7"):
            notes.append("The paper's shared row is not its table 6's row of the same settings.")
        if model != "roberta_large":
            notes.append(f"{model} is a model that the paper does not use.")
        whose = "RoBERTa-large" if model == "roberta_large" else model
        header = ["setting", "source", *(GLUE[task] for task in tasks), "status"]
        tables.append(
            Table(f"{title}, {whose}", header, rows, [*notes, *about(found)], model, {t: GLUE[t] for t in tasks}, ("best",))
        )
    return tables


def _over_the_same_seeds(rows: dict[str, Cell], task: str) -> list[str]:
    """Rows of unlike seeds are not to be compared by their means: a note with those over the seeds that all of them have."""
    alike = over_shared_seeds(rows.values()) if rows else []
    if not alike or not alike[0].records or all(a.seeds == b.seeds for a, b in zip(alike, rows.values(), strict=True)):
        return []
    means = ", ".join(f"{name} {cell.mean():.1f}" for name, cell in zip(rows, alike, strict=True))
    return [f"{task}: rows have unlike seeds. Over the {plural(alike[0].seeds, 'seed')} that all have: {means}."]
