"""The README's blocks: the rows of a study, and where VeRA is near LoRA, each between two marks."""

from collections.abc import Iterable

import pandas as pd

from analysis.frame import by_row, cells
from analysis.paper import GLUE, SCORES
from analysis.render import Entry, number, of_runs
from analysis.results.finding import Finding
from analysis.results.sections import macros
from runs.errors import UserError

#: `make results` writes what stands between these lines of the README.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"


def headline(runs: pd.DataFrame) -> str:
    """A table of the README: the rows of a study, those that train most first."""
    found = cells(runs).sort_values("parameters", ascending=False, kind="stable")
    labels = found.sort_values("task").drop_duplicates("task").set_index("task").task_label.to_dict()
    tasks = {task: name for task, name in GLUE.items() if task in labels}
    tasks |= {task: name for task, name in labels.items() if task not in GLUE}
    lora, rows, numbers = found[found.row == "lora"].parameters, [], dict[str, Entry]()
    for row, by_task in by_row(found).items():
        first = next(iter(by_task.values()))
        numbers = {
            name: number(by_task[task]) if task in by_task else "missing" for task, name in tasks.items()
        }
        if first.family == "e2e":
            numbers = {name: _score(runs, row, key, digits) for key, (name, digits) in SCORES.items()}
        elif first.family == "instruct":
            size = of_runs(first.adapter_bytes or None, first.ids, form="bytes")
            numbers = {"adapter": size, "held-out perplexity": _score(runs, row, "value", 2)}
        ratio = first.parameters / int(lora.iloc[0]) if len(lora) else 0
        about = {"label": first.label, "parameters": first.parameters, "ratio": ratio}
        rows.append(about | {"numbers": numbers.values()})
    return str(macros("readme.md").headline(rows, list(numbers))).strip()


def _score(runs: pd.DataFrame, row: str, key: str, decimals: int) -> Entry:
    """The median and spread of a number of a row's seeds, of those that have it."""
    had = runs[(runs.row == row) & runs[key].notna()]
    cell = next(cells(had, key).itertuples(), None)
    return number(cell, decimals=decimals)


def near_lora(found: Iterable[Finding]) -> str:
    """The README's sentence on the models and tasks where VeRA was held against LoRA, by the verdict."""
    near = [one for one in found if one["finding"] == "VeRA is near LoRA with fewer parameters"]
    groups = ([one for one in near if one["verdict"] is of] for of in (True, False, None))
    return str(macros("readme.md").near_lora(*groups)).strip()


def readme(text: str, study: str, table: str) -> str:
    """The README with a study's table between its two marks. Raises UserError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"
