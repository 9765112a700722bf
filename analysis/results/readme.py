"""The README's tables: the rows of a study, between two marks."""

from collections import defaultdict

from analysis.cells import Cell
from analysis.compare import over_seeds, shown
from analysis.paper import GLUE, SCORES
from analysis.results.claim import table_of
from analysis.series import series
from analysis.verdicts import all_cells
from runs.errors import UserError
from runs.record import Ledger
from runs.record.text import megabytes

#: What stands between these lines of the README is written here.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"


def headline(ledger: Ledger) -> str:
    """A table of the README: the rows of a study, those that train most first."""
    found = all_cells(ledger)
    labels = {r["cell"]["task"]: r["label"]["task"] for cell in found.values() for r in cell.records}
    tasks = {
        task: GLUE.get(task, labels[task])
        for task in [*GLUE, *sorted(set(labels) - set(GLUE))]
        if task in labels
    }
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for (_, row, task), cell in sorted(found.items(), key=lambda item: -item[1].parameters):
        rows[row][task] = cell
    lora = next((cell.parameters for key, cell in found.items() if key[1] == "lora"), None)
    lines = []
    for mine in rows.values():
        first = next(iter(mine.values()))
        ratio = f"{first.parameters / lora:.2f}x" if lora and first.parameters else "-"
        numbers = _numbers(mine, tasks)
        lines.append(f"| {first.label} | {first.parameters:,} | {ratio} | {' | '.join(numbers.values())} |")
    return "\n".join(
        [
            f"| | trainable | vs LoRA | {' | '.join(numbers)} |",
            f"| --- |{' ---: |' * (len(numbers) + 2)}",
            *lines,
        ]
    )


def _numbers(mine: dict[str, Cell], tasks: dict[str, str]) -> dict[str, str]:
    """What a row's table shows of it, by column."""
    cell = next(iter(mine.values()))
    protocol = table_of(cell.records[0])
    if protocol == "e2e":
        return {
            name: over_seeds(cell, cell.scores(key).values(), decimals).text
            for key, (name, decimals) in SCORES.items()
        }
    if protocol == "instruct":
        size = cell.cost("adapter_bytes")
        perplexity = over_seeds(cell, series(cell).values.values(), 2).text
        return {"adapter": megabytes(size) if size else "-", "held-out perplexity": perplexity}
    return {label: shown(mine[task]).text if task in mine else "missing" for task, label in tasks.items()}


def readme(text: str, study: str, table: str) -> str:
    """The README with a study's table between its two marks. Raises UserError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"
