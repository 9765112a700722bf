"""The README's blocks: the rows of a study, and where VeRA is near LoRA, each between two marks."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.frame import cells
from analysis.paper import GLUE
from analysis.render import number
from analysis.results.sections import macros
from runs.errors import UserError

#: `make results` writes what stands between these lines of the README.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"


def headline(runs: pd.DataFrame) -> str:
    """A table of the README: the rows of a study of GLUE, those that train most first."""
    found = cells(runs).sort_values("parameters", ascending=False, kind="stable")
    tasks = {task: name for task, name in GLUE.items() if task in set(found.task)}
    lora = found[found.row == "lora"].parameters.max()
    rows = [
        {"label": of.label.iloc[0], "parameters": size, "ratio": size / lora if lora == lora else 0}
        | {"numbers": [number(next(of[of.task == task].itertuples(), None)) for task in tasks]}
        for (size, _), of in found.groupby(["parameters", "row"], sort=False)
    ]
    return str(macros("readme.md").headline(rows, list(tasks.values()))).strip()


def near_lora(made: Iterable[Mapping[str, Any]]) -> str:
    """The README's sentence on VeRA beside LoRA over all tasks. made: the summaries of findings."""
    near = [one for one in made if one["finding"] == "VeRA is near LoRA with fewer parameters"]
    return str(macros("readme.md").near_lora(near)).strip()


def readme(text: str, study: str, table: str) -> str:
    """The README with a study's table between its two marks. Raises UserError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"
