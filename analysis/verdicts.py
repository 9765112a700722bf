"""A verdict for each cell that the paper prints, from the records of a ledger.

Beside.verdict in analysis/beside.py has the rule. Tables 2, 3, 4, 5, 6, 7 and 13 have cells; the others print
formulas, figures and the cost on the authors' device."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from analysis.beside import VERDICT_SEEDS, WITH_SPREAD, WITHOUT_SPREAD, Beside, Verdict
from analysis.cells import Cell, Key, cells
from analysis.compare import beside_paper
from analysis.paper import (
    BENCHES,
    FROM_MNLI,
    GLUE,
    GPT2,
    IMAGES,
    LLAMAS,
    ROBERTA,
    SCORES,
    VIT,
    Printed,
    numbers,
)
from analysis.tables.ablations import mean_beside
from analysis.tables.e2e import decoded, score_beside
from analysis.tables.images import few_shot
from analysis.tables.instruct import instructed, is_gpt_4, judged_beside, of_table_13
from runs.record import Ledger, Record

#: Words of a verdict, in the order of the page.
WORDS = (
    *WITH_SPREAD,
    *WITHOUT_SPREAD,
    "incomplete",
    "other size",
    "other model",
    "not in the paper",
    "not run",
    "quoted",
)
MODELS: dict[str, str] = {**ROBERTA, **GPT2, **VIT, **LLAMAS}


@dataclass(frozen=True)
class Finding:
    """A number of the paper, the cell that it belongs to, and the verdict. `column`: what the number is."""

    table: str
    model: str
    row: str
    task: str
    method: str
    column: str
    decimals: int
    spread: float | None
    verdict: Verdict


#: The tables whose numbers have a verdict, in the order of the page.
JUDGED = ("table2", "table3", "table4", "table13", "table5", "table6", "table7")


def verdicts(ledger: Ledger) -> list[Finding]:
    """One for each number that the paper prints of a trained and judged model, by its table."""
    records: dict[str, Iterable[Record]] = {
        "table3": decoded(ledger),
        "table4": [r for r in instructed(ledger) if not of_table_13(r)],
        "table5": few_shot(ledger),
        "table13": [r for r in instructed(ledger) if of_table_13(r)],
    }
    by_table = {table: cells(of_table, VERDICT_SEEDS) for table, of_table in records.items()}
    glue = cells([r for r in ledger if r["cell"]["task"] in GLUE], VERDICT_SEEDS)
    by_table |= dict.fromkeys(("table2", "table6", "table7"), glue)
    judged = (n for table in JUDGED for n in numbers() if n.table == table and n.task)
    return [_finding(number, by_table[number.table]) for number in judged]


def _finding(printed: Printed, by_key: dict[Key, Cell]) -> Finding:
    row = printed.row
    if printed.table == "table2" and printed.task in FROM_MNLI.get((printed.model, row), ()):
        row = f"{row}_mnli"  # only a run that started from MNLI, too, is like for like
    cell = by_key.get((printed.model, row, printed.task))
    one = _beside(cell, printed) if cell else None
    verdict = Verdict("quoted" if printed.quoted else "not run", printed=printed.value)
    if one:
        verdict = one.verdict
    elif row != printed.row and (printed.model, printed.row, printed.task) in by_key:
        other_start = "our runs did not start from MNLI, as the paper's: not compared"
        verdict = replace(verdict, deviations=(other_start,))
    column, decimals = _column(printed)
    return Finding(
        printed.table,
        printed.model,
        row,
        printed.task,
        _method(printed),
        column,
        decimals,
        printed.spread,
        verdict,
    )


def _beside(cell: Cell, printed: Printed) -> Beside | None:
    """Our cell beside the paper's number, by what its table reports; None for a score that the paper has from
    elsewhere."""
    if printed.table in BENCH:
        scores = [score for record in cell.records for score in _scores(record, BENCH[printed.table])]
        return None if printed.quoted else judged_beside(cell, printed, scores)
    of = {"table3": score_beside, "table6": mean_beside, "table7": mean_beside}
    return of.get(printed.table, beside_paper)(cell, printed)


BENCH = {"table4": "mt_bench", "table13": "vicuna_bench"}


def _column(printed: Printed) -> tuple[str, int]:
    """What a number is, in words, and its decimals."""
    if printed.table == "table3":
        return SCORES[printed.column]
    if printed.table in BENCH:
        return BENCHES[BENCH[printed.table]], 2
    mean = ", mean" if printed.table in ("table6", "table7") else ""
    return (GLUE | IMAGES)[printed.column] + mean, 1


def _method(printed: Printed) -> str:
    """The paper's row in words."""
    if printed.table in ("table6", "table7"):
        return f"VeRA {printed.method}"
    return printed.method if printed.row == "none" else f"{printed.method} {printed.size.partition(' ')[0]}"


def _scores(record: Record, bench: str) -> list[float]:
    """What a GPT-4 gave a run's answers; other judges have scales of their own."""
    judged = [j for j in record.get("judged", []) if j["bench"] == bench and is_gpt_4(j["judge"])]
    return [float(j["mean"]) for j in judged[:1] if j["mean"] is not None]
