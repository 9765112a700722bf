"""Which measures a figure shows, and their bands by layer."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.figures.figure import finite
from analysis.figures.points import LARGE, RTE, paper_first
from runs.record import Record


@dataclass
class Measured:
    """What a figure shows of a model and a task: the measures, one for each run, and notes on what is left
    out. The paper's model and task are always there, maybe without measures."""

    model: str
    task: str
    measures: list[Record]
    notes: list[str]

    @property
    def of_the_paper(self) -> bool:
        """Whether it is of the model and task that the paper's figure shows."""
        return (self.model, self.task) == (LARGE, RTE)

    @property
    def where(self) -> str:
        """The model and task by their labels."""
        label = (
            self.measures[0]["of"][0]["label"] if self.measures else {"model": "RoBERTa-large", "task": "RTE"}
        )
        return f"{label['model']} on {label['task']}"


def measured(
    runs: pd.DataFrame, measures: Iterable[Record], kind: str, keep: Callable[[Record], bool] = lambda _: True
) -> Iterator[Measured]:
    """The measures of a kind by model and task, the paper's first; none of trials, which are in no figure. keep:
    which measures."""
    by_id = runs.set_index("id")
    trials = set(runs.id[runs.kind.isin(["trial", "stopped"])])
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for measure in measures:
        if measure["kind"] == kind and keep(measure) and not trials & {run["id"] for run in measure["of"]}:
            cell = measure["of"][0]["cell"]
            groups[cell["model"], cell["task"]].append(measure)
    for model, task in paper_first(groups):
        yield Measured(model, task, *_one_each(groups.get((model, task), []), by_id))


def _one_each(measures: list[Record], by_id: pd.DataFrame) -> tuple[list[Record], list[str]]:
    """The measures of runs of one setting, one for each run, in order of seeds; and notes on what that leaves
    out.

    Of several settings: the paper's rank 64 in figure 5, then what deviates least from its recipe, then the
    most runs."""
    lines: list[str] = []
    groups: dict[str, list[Record]] = defaultdict(list)
    for measure in sorted(measures, key=lambda m: [run["cell"]["seed"] for run in m["of"]]):
        ids = [run["id"] for run in measure["of"]]
        if unknown := [run for run in ids if run not in by_id.index]:
            lines.append(f"measure {measure['id']}: no record of run {', '.join(unknown)} is here: left out.")
            continue
        groups[" ".join([str(measure["settings"]), *by_id.cell[ids]])].append(measure)
    if not groups:
        return [], lines

    def rank(group: list[Record]) -> tuple[bool, int, int]:
        deviations = sum(len(by_id.deviations[run["id"]]) for run in group[0]["of"])
        return group[0]["settings"].get("ranks") == [64, 64], -deviations, len(group)

    chosen = max(groups.values(), key=rank)
    if others := sum(map(len, groups.values())) - len(chosen):
        lines.append(f"{others} measures of other settings are left out.")
    by_runs = {tuple(run["id"] for run in measure["of"]): measure for measure in chosen}
    if len(by_runs) < len(chosen):
        lines.append(f"{len(chosen) - len(by_runs)} measures of a run that is measured twice are left out.")
    return list(by_runs.values()), lines


def by_layer(measures: Sequence[Record], columns: Sequence[str]) -> pd.DataFrame:
    """The values of measures, a row for each measure, site and layer: these columns (NaN where a value is not
    finite), and the ids of its runs."""
    rows = [
        {"site": site, "layer": layer, "ids": tuple(run["id"] for run in measure["of"])}
        | {name: finite(value) for name, value in zip(columns, values, strict=True)}
        for measure in measures
        for site, layer, *values in zip(
            *(measure["values"][key] for key in ("site", "layer", *columns)), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["site", "layer", "ids", *columns])


def bands(values: pd.DataFrame, by: list[str], column: str) -> pd.DataFrame:
    """The median, the lowest and the highest of a column in each group, with how many values there are (n), of how
    many (of), and the ids of the runs."""
    return (
        values.groupby(by)
        .agg(
            **{name: (column, how) for name, how in (("median", "median"), ("low", "min"), ("high", "max"))},
            n=(column, "count"),
            of=(column, "size"),
            runs=("ids", lambda ids: tuple(dict.fromkeys(run for of in ids for run in of))),
        )
        .reset_index()
    )


def draw_band(
    axes: Any, x: str, data: pd.DataFrame, look: tuple[str, str, str], label: str, middle: str = "median"
) -> None:
    """A column as a line by x, and a band from `low` to `high`. look: a colour, a dash and a marker."""
    tint, dash, marker = look
    data = data.dropna(subset=middle).sort_values(x)
    axes.fill_between(data[x], data.low, data.high, color=tint, alpha=0.15, linewidth=0)
    axes.plot(data[x], data[middle], dash, marker=marker, markersize=4, color=tint, label=label)
