"""The demo: every method on a small task, with what it costs."""

from analysis.cells import Cell, cells
from analysis.compare import CROSSFIT, about, of_cells, size_of
from analysis.table import Table, TableCell, make_row
from runs.record import Ledger
from runs.record.text import megabytes


def demo_table(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Every method on the demo's task, with what it costs."""
    records = [r for r in ledger if r["cell"]["task"] == "reviews"]
    found = cells(records, seeds or 3, select)
    tables = []
    for model in sorted({key[0] for key in found}):
        mine = {key[1]: cell for key, cell in found.items() if key[0] == model}
        best_first = sorted(mine.values(), key=lambda cell: (cell.unknown, -cell.median()))
        rows = [_row(cell, mine.get("lora")) for cell in best_first]
        first = next(iter(mine.values())).records[0]
        header = [
            "method",
            "trainable",
            "vs LoRA",
            "best ep.",
            "spread",
            "last ep.",
            "s/run",
            "adapter",
            "head",
        ]
        names, data = first["label"], first["data"]
        over = (
            f"median of {seeds or 3} seeds"
            if all(cell.complete for cell in mine.values())
            else "median over the seeds there are"
        )
        title = f"{names['task']} ({names['model']}, {over}): dev {first['result']['metric']}"
        chosen = "The best epoch is chosen on the rows reported."
        if select == "crossfit":
            chosen = CROSSFIT
        notes = [
            (
                "trainable: without the classification head, which every method trains. spread: sample"
                " standard deviation."
            ),
            "adapter, head: the size of the two files that a run keeps (full keeps none, unless keep=best).",
            f"{data['train_rows']} training and {data['dev_rows']} dev rows. {chosen}",
        ]
        notes += about({key: cell for key, cell in found.items() if key[0] == model})
        tables.append(Table(title, header, rows, notes, model, {"reviews": names["task"]}, ("best",)))
    return tables


def _row(cell: Cell, lora: Cell | None) -> list[TableCell]:
    ratio = "" if not lora or not lora.parameters else f"{cell.parameters / lora.parameters:.2f}x"
    spread = cell.spread()
    return make_row(
        cell.label + (f" ({cell.seeds - cell.unknown}/{cell.wanted} seeds)" if not cell.complete else ""),
        size_of(cell),
        of_cells(ratio, cell, lora) if lora and ratio and cell.parameters else "-",
        of_cells(f"{cell.median():.1f}" + (f" {cell.diverged}d" if cell.diverged else ""), cell),
        of_cells(f"{spread:.1f}", cell) if spread is not None else "-",
        of_cells(f"{cell.median('last'):.1f}", cell),
        of_cells(f"{cell.seconds:.0f}", cell),
        of_cells(megabytes(cell.cost("adapter_bytes")), cell) if cell.parameters else "-",
        of_cells(megabytes(4 * cell.records[0]["parameters"]["head"]), cell),
    )
