"""The README's table: the rows of a study, between two marks."""

from collections import defaultdict
from collections.abc import Iterable

from analysis.cells import Cell
from analysis.compare import over_seeds, shown
from analysis.paper import GLUE, SCORES
from analysis.results.claim import WORDS, Claim, table_of
from analysis.series import series
from analysis.wanted import all_cells
from runs.errors import UserError
from runs.record import Ledger
from runs.record.text import megabytes, plural

#: `make results` writes what stands between these lines of the README.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"


def headline(ledger: Ledger) -> str:
    """A table of the README: the rows of a study, those that train most first."""
    cells = all_cells(ledger)
    labels = {r["cell"]["task"]: r["label"]["task"] for cell in cells.values() for r in cell.records}
    tasks = {task: name for task, name in GLUE.items() if task in labels}
    tasks |= {task: labels[task] for task in sorted(set(labels) - set(GLUE))}
    rows: dict[str, dict[str, Cell]] = defaultdict(dict)
    for (_, row, task), cell in sorted(cells.items(), key=lambda item: -item[1].parameters):
        rows[row][task] = cell
    lora = next((cell.parameters for key, cell in cells.items() if key[1] == "lora"), None)
    lines = []
    for by_task in rows.values():
        first = next(iter(by_task.values()))
        ratio = f"{first.parameters / lora:.2f}x" if lora and first.parameters else "-"
        numbers = _numbers(by_task, tasks)
        lines.append(f"| {first.label} | {first.parameters:,} | {ratio} | {' | '.join(numbers.values())} |")
    header = f"| | trainable | vs LoRA | {' | '.join(numbers)} |"
    return "\n".join([header, f"| --- |{' ---: |' * (len(numbers) + 2)}", *lines])


def _numbers(by_task: dict[str, Cell], tasks: dict[str, str]) -> dict[str, str]:
    """The numbers of a row, by column."""
    cell = next(iter(by_task.values()))
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
    return {
        label: shown(by_task[task]).text if task in by_task else "missing" for task, label in tasks.items()
    }


def near_lora(comparisons: Iterable[Claim]) -> str:
    """The README's sentence on the models and tasks where VeRA was held against LoRA, by the verdict."""
    by_word: dict[str, list[str]] = defaultdict(list)
    for claim in comparisons:
        if claim.claim == "VeRA is near LoRA with fewer parameters":
            model, task, *_, seeds = claim.where.split(", ")
            by_word[WORDS[claim.verdict]].append(f"{model}, {task} ({seeds})")
    agrees, differs, undecided = (by_word[WORDS[agrees]] for agrees in (True, False, None))
    near = "VeRA is [near LoRA](docs/results.md#how-a-finding-is-decided) if it loses less than a point."
    if undecided and not agrees and not differs:
        tried = plural(len(undecided), "pair")
        return f"{near}\nOur seeds decide that on none of {tried} of model and task."
    shown, refuted = ("; ".join(of) or "none" for of in (agrees, differs))
    return f"{near}\nFor: {shown}. Against: {refuted}. Undecided: {len(undecided)}."


def readme(text: str, study: str, table: str) -> str:
    """The README with a study's table between its two marks. Raises UserError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"
