"""Prints the number of trainable parameters of each method: counted in a model without
weights, by the method's formula, and in the paper.

vera-bench counts
vera-bench counts budget=100,1000,10000 model=smollm2
    the setting of each row that comes nearest to each budget
vera-bench counts budget=100,1000,10000 model=minilm method=vera,lora
    the same for some rows
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from runs.command.errors import UserError
from runs.command.parser import (
    COMPOSING_OPTIONS,
    CommonSettings,
    entry_point,
    read_command_line,
)
from runs.config import Files, model_and_method
from runs.models import skeleton
from runs.record.ledger import in_conf
from runs.record.override import Override

if TYPE_CHECKING:
    from runs.config.budget import Ladder


class Count(NamedTuple):
    """How many parameters a method trains.

    Attributes:
        rank: or the bottleneck; "-" for a method without either.
        exact: counted in a model.
        formula: the method's own count.
    """

    rank: int | str
    exact: int
    formula: int


def count_of_entry(entry: dict[str, Any]) -> Count:
    """The parameters of an entry of conf/counts.yaml."""
    import vera

    model_config, settings = model_and_method(entry["model"], entry["method"])
    method = vera.make_method(**settings | entry["settings"])
    model = skeleton(model_config, num_labels=2)
    method.adapt(model)
    trained = method.adapter_parameters(model).values()
    return Count(
        rank=getattr(method, "rank", getattr(method, "bottleneck", "-")),
        exact=sum(parameter.numel() for parameter in trained),
        formula=method.count(model),
    )


def budget_table(overrides: Sequence[str], files: Files) -> str:
    """What budget=N means for each row on a model: its nearest setting and the count,
    or why it has none. Raises UserError for any mistake."""
    from runs.config.budget import build_ladder, read_budget, rows_with_ladder
    from runs.config.compose import Composer
    from runs.config.grid import split_classes_of_peft, split_override

    values = dict(split_override(word, files) for word in overrides)
    if "budget" not in values or "model" not in values:
        raise UserError("a budget needs a model: budget=100,1000 model=smollm2")
    budgets = [read_budget(Override(line).value) for line in values.pop("budget")]
    rows = values.pop("method", [])
    if not rows:
        rows = [f"method={name}" for name in rows_with_ladder()]
    fixed = [lines[0] for lines in values.values()]
    ladders = []
    with Composer(files) as composer:
        for row in rows:
            ladders.append(build_ladder(split_classes_of_peft([*fixed, row]), composer))
    lines = []
    for ladder in ladders:
        for budget in budgets:
            lines.append([ladder.row, budget, *_cells_of_budget(ladder, budget)])
    names = ["row", "budget", "parameters", "setting"]
    return pd.DataFrame(lines, columns=names).to_string(
        index=False, formatters={"budget": "{:,}".format}
    )


def _cells_of_budget(ladder: "Ladder", budget: int) -> tuple[str, str]:
    """The count and the setting that a ladder has for a budget."""
    rung = ladder.nearest(budget)
    if ladder.misfit(budget):
        return "-", f"none is near: the nearest trains {rung.parameters:,}"
    return f"{rung.parameters:,}", rung.label


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments,
        CommonSettings,
        overrides="a budget=, a model= and rows (method=)",
        options=COMPOSING_OPTIONS,
        module=__name__,
    )
    if line.overrides:
        print(budget_table(line.overrides, Files(line.config_dir)))
        return 0
    entries = in_conf("counts.yaml")
    frame = pd.DataFrame(entries).rename(columns={"count": "expected"})
    frame[["rank", "exact", "formula"]] = [count_of_entry(entry) for entry in entries]
    wrong = (frame.exact != frame.formula) | (frame.exact != frame.expected)
    frame["verdict"] = frame.note.fillna("").mask(wrong, "DIFFERS")
    numbers = ["exact", "formula", "expected"]
    columns = ["model", "method", "rank", *numbers, "printed", "verdict"]
    print(
        frame.to_string(
            columns=columns,
            index=False,
            formatters=dict.fromkeys(numbers, "{:,}".format),
        )
    )
    print(f"{len(frame)} counts, {wrong.sum()} wrong")
    return 1 if wrong.any() else 0


if __name__ == "__main__":
    entry_point(main)
