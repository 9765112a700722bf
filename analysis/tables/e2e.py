"""Table 3: E2E NLG."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis import beside, compare
from analysis.beside import MARGIN, MARGIN_OF_10, Beside, about_counts, status
from analysis.cells import Cell, Key, cells
from analysis.forgetting import with_forgetting
from analysis.paper import GPT2, SCORES, Printed, printed_rows
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger, Record


def table3(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """E2E NLG: a table for each of the paper's models, and one for each other model that has records."""
    by_key = cells(decoded(ledger), seeds or 3, select)
    return [_of_model(model, by_key, select) for model in compare.models_of(by_key, GPT2)]


def decoded(ledger: Ledger) -> list[Record]:
    """The records of E2E that have texts, or diverged before they had any."""
    return [r for r in ledger if r["cell"]["task"] == "e2e" and (r.get("texts") or r["status"] == "diverged")]


def _of_model(model: str, by_key: Mapping[Key, Cell], select: str) -> Table:
    printed, by_key = printed_rows("table3", model), compare.of_model(by_key, model)
    ours = {row: cell for (_, row, _), cell in sorted(by_key.items())}
    rows: list[list[TableCell]] = []
    for row in printed:
        rows.append(compare.paper_row(row, *(compare.printed_text(n, SCORES[n.column][1]) for n in row)))
        if row[0].row in ours:
            rows += _score_rows(ours[row[0].row], row)
    for name in compare.other_rows(ours, printed, () if printed else ("full", "lora", "vera")):
        rows += _score_rows(ours[name])
    title = f"Table 3, {GPT2[model]}: E2E NLG" if printed else compare.other_model("Table 3", model)
    header = ["method", "source", "params", *(name for name, _ in SCORES.values()), "status"]
    notes = [*_notes(rows, list(ours.values()), model, select), *compare.about(by_key)]
    table = Table(title, header, rows, notes, model, {"e2e": "E2E"}, tuple(SCORES))
    return with_forgetting(table, by_key.values())


def _score_rows(cell: Cell, printed: Sequence[Printed] = ()) -> list[list[TableCell]]:
    """Our row, the difference, and the numbers by another length penalty and of the best epoch."""
    entries = [(record, entry) for record in cell.records for entry in _entries(record)]
    usual, *others = dict.fromkeys(entry["variant"] for _, entry in entries) or [None]
    rows = [_score_row(cell, "ours", "last", usual)]
    if printed and cell.complete:
        compared = [score_beside(cell, number) for number in printed]
        words = status(compared).partition(";")[0]  # five scores of one set of texts have no mean
        rows[0][-1] = TableCell(rows[0][-1].text.replace("ours", words, 1))
        if all(one.same_size for one in compared):
            gaps = [compare.gap(one if len(one.seeds) >= cell.wanted else None) for one in compared]
            rows.append(compare.difference_row(*gaps))
    rows += [_score_row(cell, f"ours, length penalty {other}", "last", other) for other in others]
    if any(e["which"] == "best" and e["epoch"] != record["curve"]["epoch"][-1] for record, e in entries):
        rows.append(_score_row(cell, "ours, best epoch", "best", usual))
    return rows


def score_beside(cell: Cell, printed: Printed) -> Beside:
    """A score of a cell's texts beside the paper's."""
    decimals = SCORES[printed.column][1]
    values = list(cell.scores(printed.column).values())
    margin = MARGIN if decimals == 1 else MARGIN_OF_10
    return compare.beside_paper(cell, printed, values=values, margin=margin, decimals=decimals)


def _entries(record: Record) -> list[dict[str, Any]]:
    return (record.get("texts") or {}).get("scores", [])


def _score_row(cell: Cell, source: str, which: str, variant: str | None) -> list[TableCell]:
    """The scores of an epoch and a variant of decoding. A row whose source is not just "ours" belongs to the
    row above it."""
    numbers = [
        compare.over_seeds(cell, cell.scores(key, which, variant).values(), decimals)
        for key, (_, decimals) in SCORES.items()
    ]
    if source != "ours":
        return make_row("", source, "", *numbers, "")
    word = "ours" if cell.complete else f"ours, {cell.seeds - cell.unknown} of {cell.wanted} seeds"
    return make_row(
        cell.label, source, compare.size_of(cell), *numbers, word + compare.count_diverged([cell])
    )


def _notes(rows: Sequence[Sequence[TableCell]], ours: Sequence[Cell], model: str, select: str) -> list[str]:
    notes = [
        "Medians over seeds of the last epoch, +- sample standard deviation. BLEU, METEOR and ROUGE-L times"
        " 100."
    ]
    if any("/" in cell.text for row in rows for cell in row[3:-1]):
        notes.append("(n/m): n of m seeds.")
    notes += beside.notes(texts(rows))
    if select == "crossfit":
        notes.append(compare.NO_SELECT)
    if any(row[-1].text == "quoted" for row in rows):
        notes.append(compare.QUOTED_NOTE)
    notes += about_counts(model)
    untrained = (cell for cell in ours if not cell.parameters)
    if empty := [cell.label for cell in untrained if max(cell.scores("bleu").values(), default=1.0) < 0.05]:
        notes.append(
            f"{', '.join(empty)}: BLEU 0.0 of an untrained model: its texts end at once, or share no 4 tokens"
            " in a row with a reference."
        )
    for cell in ours:
        entries = (entry for record in cell.records for entry in _entries(record))
        reasons = {why for entry in entries for why in (entry.get("unavailable") or {}).values()}
        notes += [f"- for {cell.label}: {why}" for why in sorted(reasons)]
    return notes
