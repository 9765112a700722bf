"""The demo: every method on a small task, with what it costs."""

from collections import defaultdict
from collections.abc import Iterable

from analysis.cells import Cell, Key, by_rows, cells, is_of_demo, row_of
from analysis.compare import CROSSFIT, about, diverged_mark, of_cells, of_model, size_of
from analysis.table import Table, TableCell, make_row
from analysis.wanted import with_wanted
from runs.record import Ledger, Record
from runs.record.text import megabytes, plural


def demo_table(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """Every method on the demo's task, with what it costs: a table for each model and number of rows."""
    by_size = by_rows(record for record in ledger if is_of_demo(record))
    tables = []
    for records in by_size.values():
        by_key = cells(records, seeds or 3, select)
        by_key = by_key if seeds else with_wanted(by_key)
        models = sorted({model for model, _, _ in by_key})
        tables += [_of_model(of_model(by_key, model), select, len(by_size) > 1, ledger) for model in models]
    return tables


def _of_model(by_key: dict[Key, Cell], select: str, with_size: bool, ledger: Iterable[Record]) -> Table:
    """with_size: whether its title has the number of rows, as there are tables of others. ledger: with the
    trials."""
    ours = {row: cell for (_, row, _), cell in by_key.items()}
    best_first = sorted(ours.values(), key=lambda cell: (cell.unknown, -cell.median()))
    ends = _at_an_end(by_key, ledger)
    rows = [_row(cell, ours.get("lora"), END * (cell.ids in ends)) for cell in best_first]
    first = best_first[0].records[0]
    label, data = first["label"], first["data"]
    counts = {cell.seeds for cell in ours.values()}
    one_count = all(cell.complete for cell in ours.values()) and len(counts) == 1
    over = f"median of {plural(max(counts), 'seed')}" if one_count else "median over the seeds there are"
    size = f", {data['train_rows']:,} training and {data['dev_rows']:,} dev rows" if with_size else ""
    title = f"{label['task']} ({label['model']}, {over}{size}): dev {first['result']['metric']}"
    header = ["method", "trainable", "vs LoRA", "best ep.", "spread", "last ep.", "s/run", "adapter", "head"]
    chosen = CROSSFIT if select == "crossfit" else "The best epoch is chosen on the rows reported."
    if all(len(r["curve"]["epoch"]) == 1 for cell in ours.values() for r in cell.records):
        chosen = "The last epoch alone is evaluated: nothing is chosen on the rows reported."
    notes = [
        (
            "trainable: without the classification head, which every method trains. spread: sample standard"
            " deviation."
        ),
        "adapter, head: the size of the two files that a run keeps (full keeps none, unless keep=best).",
        f"{data['train_rows']:,} training and {data['dev_rows']:,} dev rows. {chosen}",
        *[f"{END.strip()}: its rate is at an end of the grid that was tried: a rate beyond could be better."]
        * bool(ends),
        *about(by_key),
    ]
    model = first["cell"]["model"]
    return Table(title, header, rows, notes, model, {"reviews": label["task"]}, ("best",))


#: Marks a row whose rate is at an end of its grid.
END = " ^"


def _at_an_end(by_key: dict[Key, Cell], ledger: Iterable[Record]) -> set[tuple[str, ...]]:
    """The ids of cells with a rate that is the lowest or highest of those that trials on held-out rows
    tried."""
    tried: dict[tuple[Key, str], set[float]] = defaultdict(set)
    for record in ledger:
        if record["config"]["task"].get("holdout") is not None:
            key = record["cell"]["model"], row_of(record), record["cell"]["task"]
            for name in ("lr", "lr_head"):
                tried[key, name].add(record["config"]["train"].get(name) or 0.0)
    grids = {of: (min(rates), max(rates)) for of, rates in tried.items() if len(rates) > 1}
    return {
        by_key[key].ids
        for (key, name), ends in grids.items()
        if key in by_key and by_key[key].records[0]["config"]["train"].get(name) in ends
    }


def _row(cell: Cell, lora: Cell | None, mark: str) -> list[TableCell]:
    spread = cell.spread()
    ratio = of_cells("-")
    if lora and lora.parameters and cell.parameters:
        ratio = of_cells(f"{cell.parameters / lora.parameters:.2f}x", cell, lora)
    return make_row(
        cell.label + mark + ("" if cell.complete else f" ({cell.count} seeds)"),
        size_of(cell),
        ratio,
        of_cells(f"{cell.median():.1f}{diverged_mark(cell)}", cell),
        of_cells(f"{spread:.1f}" if spread is not None else "-", cell),
        of_cells(f"{cell.median('last'):.1f}", cell),
        of_cells(f"{cell.seconds:.0f}", cell),
        of_cells(megabytes(cell.cost("adapter_bytes")) if cell.parameters else "-", cell),
        of_cells(megabytes(4 * cell.records[0]["parameters"]["head"]), cell),
    )
