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
from tqdm import tqdm

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


class ParameterCount(NamedTuple):
    """How many parameters a method trains.

    Attributes:
        rank: or the bottleneck; "-" for a method without either.
        exact: as counted in a model without weights.
        formula: as the method's own `count` says.
    """

    rank: int | str
    exact: int
    formula: int


def count_of_entry(entry: dict[str, Any]) -> ParameterCount:
    """How many parameters the method of an entry of conf/counts.yaml trains on its
    model."""
    import vera

    model_config, settings = model_and_method(entry["model"], entry["method"])
    method = vera.make_method(**settings | entry["settings"])
    model = skeleton(model_config, num_labels=2)  # the head is not counted
    method.adapt(model)
    trained = method.adapter_parameters(model).values()
    return ParameterCount(
        rank=getattr(method, "rank", getattr(method, "bottleneck", "-")),
        exact=sum(parameter.numel() for parameter in trained),
        formula=method.count(model),
    )


def budget_table(overrides: Sequence[str], files: Files) -> str:
    """A table of what budget=N means for each row on a model: the nearest setting and
    its count, or why there is none. Raises UserError for any mistake."""
    from runs.config.budget import build_ladder, read_budget, rows_with_ladder
    from runs.config.compose import Composer
    from runs.config.grid import split_classes_of_peft, split_override

    # for each key one override for each of its values, such as ["model=smollm2"]
    lists = dict(split_override(override, files) for override in overrides)
    if "budget" not in lists or "model" not in lists:
        raise UserError("a budget needs a model: budget=100,1000 model=smollm2")
    budgets = [read_budget(Override(text).value) for text in lists.pop("budget")]
    methods = lists.pop("method", [])
    if not methods:
        methods = [f"method={name}" for name in rows_with_ladder()]
    # of all other keys the first value counts
    shared = [values[0] for values in lists.values()]
    ladders = []
    with Composer(files) as composer:
        for method in tqdm(methods, "counting", leave=False, disable=None, delay=2):
            row_overrides = split_classes_of_peft([*shared, method])
            ladders.append(build_ladder(row_overrides, composer))
    rows = []
    for ladder in ladders:
        for budget in budgets:
            rows.append([ladder.row, budget, *_cells_of_budget(ladder, budget)])
    columns = ["row", "budget", "parameters", "setting"]
    return pd.DataFrame(rows, columns=columns).to_string(
        index=False, formatters={"budget": "{:,}".format}
    )


def _cells_of_budget(ladder: "Ladder", budget: int) -> tuple[str, str]:
    """What the table's columns "parameters" and "setting" have for a row and a budget.
    ladder: the row's."""
    rung = ladder.nearest(budget)
    if ladder.misfit(budget):
        return "-", f"none is near: the nearest trains {rung.parameters:,}"
    return f"{rung.parameters:,}", rung.label


def main(arguments: list[str]) -> int:
    line = read_command_line(
        arguments,
        CommonSettings,
        overrides_help="a budget=, a model= and rows (method=)",
        options=COMPOSING_OPTIONS,
        module=__name__,
    )
    if line.overrides:
        print(budget_table(line.overrides, Files(line.config_dir)))
        return 0
    entries = in_conf("counts.yaml")
    frame = pd.DataFrame(entries).rename(columns={"count": "expected"})
    frame[["rank", "exact", "formula"]] = [count_of_entry(entry) for entry in entries]
    is_wrong = (frame.exact != frame.formula) | (frame.exact != frame.expected)
    frame["verdict"] = frame.note.fillna("").mask(is_wrong, "DIFFERS")
    count_columns = ["exact", "formula", "expected"]
    columns = ["model", "method", "rank", *count_columns, "printed", "verdict"]
    print(
        frame.to_string(
            columns=columns,
            index=False,
            formatters=dict.fromkeys(count_columns, "{:,}".format),
        )
    )
    print(f"{len(frame)} counts, {is_wrong.sum()} wrong")
    return 1 if is_wrong.any() else 0


if __name__ == "__main__":
    entry_point(main)
