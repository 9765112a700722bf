"""The page of a study: its rows beside VeRA, and what is folded below: pictures, each row's cost and runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import figures
from analysis.figures.figure import Part
from analysis.frame import chosen, every_variant, in_cells, pairs, reported, reported_cells
from analysis.inference import Mean, TwoWay, holm, mean_of, two_way
from analysis.notes import odd
from analysis.render import NONE, Entry, Table, count, grid, number, of_runs
from analysis.results.findings import collapsed
from runs.record import LEVEL, Record, one_line

#: Rows without a collapsed run from which on the variance is pooled over them.
MANY = 10


def gaps(
    folder: Path, runs: pd.DataFrame, measures: Sequence[Record]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What study.md shows, and the pictures by their paths in docs/."""
    path, finished = folder / "NOTES.md", runs[runs.kind != "failed"]
    answer, _, rest = path.read_text().strip().partition("\n\n") if path.is_file() else ("", "", "")
    change, _, details = rest.partition("\n## Details\n")
    every = every_variant(finished, paper=True)
    # A study may compare settings of one row, such as epochs. A figure, where they would stand on top of each
    # other, has one of them
    made = [of for make in figures.FIGURES.values() for of in make(Part(finished, [*measures])) if of.ids]
    files = {f"{folder.name}_{figure.name}.svg": figure for figure in made}
    table, page = rows_table(every)
    # Columns that say nothing are left out, and what is the same of every row is said once
    columns = [(name, {*of}) for name, of in zip(table.header, zip(*table.texts, strict=True), strict=True)]
    kept = [i for i, (_, of) in enumerate(columns) if len(of) > 1 or i == 0]
    page["alike"] = {name: next(iter(of)) for name, of in columns[1:] if len(of) == 1 and not of & {NONE, ""}}
    rows = [[row[i] for i in kept] for row in table.texts]
    page["lines"] = grid([table.header[i] for i in kept], rows) if rows else []
    page |= {"name": folder.name, "answer": answer, "change": change, "details": details}
    page |= {"figures": [(one_line(of.title), file) for file, of in files.items()]}
    pictures = {f"results/{file}": figures.svg(of) for file, of in files.items()}
    cells = reported_cells(every)
    page["several"] = [name for name in ("model_label", "task_label") if cells[name].nunique() > 1]
    return page | {"cells": cells.to_dict("records")}, pictures


# --- its rows


def rows_table(runs: pd.DataFrame) -> tuple[Table, dict[str, Any]]:
    """Each row of a study on each task: its number, and what it has more or less than VeRA in pairs of one
    seed, with the 95% interval and the word that Holm's correction over the whole table leaves. runs: every
    variant as a row. With what its notes say: the analysis of variance by task where it is pooled, the count
    of comparisons, whether a row's best rate is at an end (^), the metrics, what counts all the same."""
    found, shown = reported_cells(runs), collapsed(reported(chosen(runs)))
    trials = reported(runs[runs.kind == "trial"])
    lines, means, pooled_over = list[dict[str, Entry]](), list[Mean](), dict[str, TwoWay]()
    for (_, task), cells in found.groupby(["model", "task_label"], sort=False):
        here = in_cells(shown, cells)
        both = pairs(here, "vera")
        if many := pooled(here):
            pooled_over[task] = many
        for cell in cells.sort_values("parameters", kind="stable").itertuples():
            mean = mean_of(-both[both.row_other == cell.row].difference)
            if many and mean.freedom > 0 and not here[here.row == cell.row].collapsed.any():
                mean = Mean(mean.mean, many.deviation * np.sqrt(2 / (mean.freedom + 1)), many.freedom)
            means.append(mean)
            points: Any = {"ids": cell.ids, "decimals": int(cell.digits), "sign": True}
            low, high = map(float, mean.interval())
            line = {"method": cell.label + "^" * at_end(cell, trials), "model": cell.model_label}
            line |= {"task": cell.task_label, "trained": count(cell)}
            line |= {"median": number(cell, decimals=int(cell.digits))}
            lines.append(
                line | {"less VeRA": of_runs(mean.mean, **points), "95%": of_runs(low, high=high, **points)}
            )
    p = holm([of.p() for of in means])
    for line, of, mean in zip(lines, p, means, strict=True):
        better = "better" if mean.mean > 0 else "worse"
        line["after Holm"] = NONE if math.isnan(of) else better if of < 1 - LEVEL else ""
    notes = {"pooled": pooled_over, "compared": int((~np.isnan(p)).sum()), "odd": odd(found)}
    notes["ends"] = any("^" in str(line["method"]) for line in lines)
    metrics = found.drop_duplicates(["task", "name"])[["task_label", "name"]]
    notes["metrics"] = metrics.itertuples(index=False, name=None)
    return Table.of("", lines) if lines else Table("", [], []), notes


def at_end(cell: Any, trials: pd.DataFrame) -> bool:
    """Whether the best of the rates that trials tried for a cell, by their medians over seeds, is the lowest
    or the highest of them."""
    of = trials[
        (trials.conf_row == cell.conf_row) & (trials.task == cell.task) & (trials.model == cell.model)
    ]
    of = of[of.label.map(lambda label: f"{cell.label},".startswith(f"{label},")).astype(bool)]
    better = of.number.where(~of.less.astype(bool), -of.number)
    rates = better.groupby(of.lr_head if cell.method == "head" else of.lr).median().sort_index()
    best = rates.sort_values(ascending=False, kind="stable").index
    return len(rates) > 1 and best[0] in (rates.index[0], rates.index[-1])


def pooled(runs: pd.DataFrame) -> TwoWay | None:
    """The variance of a run pooled over the rows of one task: those without a collapsed run that have the
    seeds of most; None where they are few."""
    whole = runs[~runs.groupby("row").collapsed.transform("any").astype(bool) & (runs.parameters > 0)]
    by_row = whole.pivot_table(index="row", columns="seed", values="number")
    seeds = by_row.columns[by_row.notna().sum() >= MANY]
    rows = by_row[seeds].dropna()
    return two_way(rows) if len(rows) >= MANY and len(seeds) > 1 else None
