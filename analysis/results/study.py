"""The page of a study: its rows beside VeRA, and what is folded below: pictures, each row's cost and runs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import figures
from analysis.figures.figure import Part
from analysis.frame import chosen, every_variant, pairs, reported, reported_cells
from analysis.inference import Mean, TwoWay, holm, mean_of, two_way
from analysis.notes import odd
from analysis.render import NONE, Entry, Table, count, grid, number, of_runs
from analysis.results.findings import collapsed
from runs.record import LEVEL, Record
from runs.record.text import one_line

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
    shown, trials = shown[shown.left_out == ""], runs[runs.kind == "trial"]
    lines, means, pooled_over, ends = list[list[Entry]](), list[Mean](), dict[str, TwoWay](), False
    for (_, task), cells in found.groupby(["model", "task_label"], sort=False):
        here = shown[shown.id.isin({run for ids in cells.ids for run in ids})]
        both = pairs(here, "vera")
        if many := pooled(here):
            pooled_over[task] = many
        for cell in cells.sort_values("parameters", kind="stable").itertuples():
            mean = mean_of(-both[both.row_other == cell.row].difference)
            if many and mean.freedom > 0 and not here[here.row == cell.row].collapsed.any():
                mean = Mean(mean.mean, many.deviation * np.sqrt(2 / (mean.freedom + 1)), many.freedom)
            means.append(mean)
            rates = tried(trials, cell)
            at_end = len(rates) > 1 and rates[0] in (min(rates), max(rates))
            ends |= at_end
            points: Any = {"ids": cell.ids, "decimals": int(cell.digits), "sign": True}
            low, high = map(float, mean.interval())
            names = cell.label + "^" * at_end, cell.model_label, cell.task_label
            numbers = count(cell), number(cell, decimals=int(cell.digits)), of_runs(mean.mean, **points)
            lines.append([*names, *numbers, of_runs(low, high=high, **points)])
    p = holm([of.p() for of in means])
    for line, of, mean in zip(lines, p, means, strict=True):
        better = "better" if mean.mean > 0 else "worse"
        line.append(NONE if math.isnan(of) else better if of < 1 - LEVEL else "")
    header = ["method", "model", "task", "trained", "median", "less VeRA", "95%", "after Holm"]
    notes = {"pooled": pooled_over, "compared": int((~np.isnan(p)).sum()), "ends": ends, "odd": odd(found)}
    metrics = found.drop_duplicates(["task", "name"])[["task_label", "name"]]
    return Table("", header, lines), notes | {"metrics": metrics.itertuples(index=False, name=None)}


def pooled(runs: pd.DataFrame) -> TwoWay | None:
    """The variance of a run pooled over the rows of one task: those without a collapsed run that have the
    seeds of most; None where they are few."""
    whole = runs[~runs.groupby("row").collapsed.transform("any").astype(bool) & (runs.parameters > 0)]
    by_row = whole.pivot_table(index="row", columns="seed", values="number")
    seeds = by_row.columns[by_row.notna().sum() >= MANY]
    rows = by_row[seeds].dropna()
    return two_way(rows) if len(rows) >= MANY and len(seeds) > 1 else None


# --- what is folded


def tried(trials: pd.DataFrame, cell: Any) -> list[float]:
    """The rates of a cell's trials, from best to worst by their medians over seeds."""
    of = trials[
        (trials.conf_row == cell.conf_row) & (trials.task == cell.task) & (trials.model == cell.model)
    ]
    of = of[[f"{cell.label},".startswith(f"{label},") for label in of.label]]
    if of.empty:
        return []
    of = reported(of)
    better = of.number.where(~of.less, -of.number)
    order = better.groupby(of.lr_head if cell.method == "head" else of.lr).median()
    return [float(rate) for rate in order.sort_values(ascending=False, kind="stable").index]
