"""Table 3: E2E NLG."""

from collections.abc import Sequence
from typing import Any

from analysis import beside, compare
from analysis.beside import MARGIN, MARGIN_OF_10, Beside, off_formula, status
from analysis.cells import Cell, Key, cells
from analysis.paper import SCORES, Printed, printed_rows
from analysis.table import Table, TableCell, make_row, texts
from runs.record import Ledger, Record


def table3(ledger: Ledger, select: str, seeds: int | None = None) -> list[Table]:
    """E2E NLG: a table for each of the paper's models, and one for each other model that has records."""
    found = cells(decoded(ledger), seeds or 3, select)
    tables = []
    for model, label in (("gpt2_medium", "GPT-2 medium"), ("gpt2_large", "GPT-2 large")):
        rows: list[list[TableCell]] = []
        used = set()
        for printed in printed_rows("table3", model):
            row = printed[0].row
            used.add(row)
            rows.append(
                compare.paper_row(printed, *(compare.printed_text(n, SCORES[n.column][1]) for n in printed))
            )
            if (model, row, "e2e") in found:
                rows += _score_rows(found[model, row, "e2e"], printed)
        for row in sorted({key[1] for key in found if key[0] == model} - used):
            rows += _score_rows(found[model, row, "e2e"])
        tables.append(_score_table(f"Table 3, {label}: E2E NLG", rows, found, model, select))
    for model in sorted({key[0] for key in found} - {"gpt2_medium", "gpt2_large"}):
        order = [*("full", "lora", "vera"), *sorted(key[1] for key in found)]
        ours = [found[model, row, "e2e"] for row in dict.fromkeys(order) if (model, row, "e2e") in found]
        rows = [line for cell in ours for line in _score_rows(cell)]
        tables.append(_score_table(compare.other_model("Table 3", model), rows, found, model, select))
    return tables


def decoded(ledger: Ledger) -> list[Record]:
    """The records of E2E that have texts, or diverged before they had any."""
    return [r for r in ledger if r["cell"]["task"] == "e2e" and (r.get("texts") or r["status"] == "diverged")]


def _score_rows(cell: Cell, printed: Sequence[Printed] = ()) -> list[list[TableCell]]:
    """Our row, the difference, and the other ways of counting: another length penalty, the best epoch."""
    variants = next(
        (
            list(dict.fromkeys(e["variant"] for e in r["texts"]["scores"]))
            for r in cell.records
            if r.get("texts")
        ),
        [""],
    )
    lines = [_score_row(cell, "ours", "last", variants[0])]
    if printed and cell.complete:
        compared = [score_beside(cell, number) for number in printed]
        words = status(compared).partition(";")[0]  # five scores of one set of texts have no mean
        lines[0][-1] = TableCell(lines[0][-1].text.replace("ours", words, 1))
        if all(one.same_size for one in compared):
            lines.append(
                compare.difference_row(
                    *(compare.gap(one if len(one.seeds) >= cell.wanted else None) for one in compared)
                )
            )
    lines += [_score_row(cell, f"ours, length penalty {v}", "last", v, again=True) for v in variants[1:]]
    if any(
        e["which"] == "best" and e["epoch"] != r["curve"]["epoch"][-1]
        for r in cell.records
        for e in _entries(r)
    ):
        lines.append(_score_row(cell, "ours, best epoch", "best", variants[0], again=True))
    return lines


def score_beside(cell: Cell, printed: Printed) -> Beside:
    """A score of a cell's texts beside the paper's."""
    decimals = SCORES[printed.column][1]
    margin = MARGIN if decimals == 1 else MARGIN_OF_10
    return compare.beside_paper(
        cell, printed, values=list(cell.scores(printed.column).values()), margin=margin, decimals=decimals
    )


def _entries(record: dict[str, Any]) -> list[dict[str, Any]]:
    return (record.get("texts") or {}).get("scores", [])


def _score_row(cell: Cell, source: str, which: str, variant: str, again: bool = False) -> list[TableCell]:
    scores = {key: cell.scores(key, which, variant or None) for key in SCORES}
    numbers = [
        compare.over_seeds(cell, scores[key].values(), decimals) for key, (_, decimals) in SCORES.items()
    ]
    status = "ours" if cell.complete else f"ours, {cell.seeds - cell.unknown} of {cell.wanted} seeds"
    status = "" if again else status + compare.count_diverged([cell])
    name, size = ("", "") if again else (cell.label, compare.size_of(cell))
    return make_row(name, source, size, *numbers, status)


def _score_table(
    title: str, rows: list[list[TableCell]], found: dict[Key, Cell], model: str, select: str
) -> Table:
    mine = compare.of_model(found, model)
    notes = [
        "Medians over seeds of the last epoch, +- sample standard deviation. BLEU, METEOR and ROUGE-L times"
        " 100."
    ]
    said = texts(rows)
    if any("/" in cell for row in said for cell in row[3:-1]):
        notes.append("(n/m): n of m seeds.")
    notes += beside.notes(said)
    if select == "crossfit":
        notes.append(compare.NO_SELECT)
    if any("quoted" in row[-1] for row in said):
        notes.append(compare.QUOTED_NOTE)
    notes += off_formula(model)
    empty = [
        cell.label
        for cell in mine.values()
        if not cell.parameters and max(cell.scores("bleu").values(), default=1.0) < 0.05
    ]
    if empty:
        notes.append(
            f"{', '.join(empty)}: BLEU 0.0 of an untrained model: its texts end at once, or share no 4 tokens"
            " in a row with a reference."
        )
    for cell in mine.values():
        reasons = {
            why for r in cell.records for e in _entries(r) for why in (e.get("unavailable") or {}).values()
        }
        notes += [f"- for {cell.label}: {why}" for why in sorted(reasons)]
    header = ["method", "source", "params", *(name for name, _ in SCORES.values()), "status"]
    return Table(title, header, rows, [*notes, *compare.about(mine)], model, {"e2e": "E2E"}, tuple(SCORES))
