"""The statistics of some runs as tables: their cells, a row against the others, and what each cell cost."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.beside import summary
from analysis.frame import KEY, cells, chosen, pairs, reported
from analysis.inference import improvement, improvement_interval, sign_test, smallest_p
from analysis.notes import CROSSFIT, left_out, odd
from analysis.paper import GPT2, LLAMAS, ROBERTA, VIT
from analysis.render import NONE, Entry, Number, Table
from analysis.tables import verdicts
from analysis.tables.view import Cell, View, count, diverged, of_runs
from runs.record import INTERVAL_SEEDS, interval_name, median_interval

#: The models of the paper.
MODELS = {**ROBERTA, **GPT2, **VIT, **LLAMAS}


def statistics_tables(
    runs: pd.DataFrame, row: str = "vera", judged: pd.DataFrame | None = None
) -> list[Table]:
    """For each model its cells (interval, best against last epoch, what choosing it adds), and a row against
    the others. judged: their verdicts, where they are at hand."""
    found, compared, words = View(runs).numbers(), comparisons(runs, row), cell_words(runs, judged)
    tables = []
    for model, of in found.groupby("model"):
        tables.append(cells_table(of, runs[runs.model == model], words))
        if len(lines := compared[compared.model == model]):
            tables.append(comparisons_table(lines, of, row))
    return tables


def interval(values: Iterable[float], ids: Iterable[str], decimals: int, sign: bool = False) -> Entry:
    """The interval of the median of the known values; "-" for fewer than two."""
    bounds = median_interval([value for value in values if not math.isnan(value)])
    low, high = bounds or (None, math.nan)
    return of_runs(low, ids, high=high, decimals=decimals, sign=sign)


def middle(values: Iterable[float]) -> float:
    """The median of the known values; NaN of none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


# --- cells


def cell_words(runs: pd.DataFrame, judged: pd.DataFrame | None = None) -> dict[tuple[str, ...], str]:
    """The verdict on each cell that the paper has, by its run ids, or how many of its numbers are
    reproduced."""
    found, words = verdicts(runs) if judged is None else judged, defaultdict[tuple[str, ...], list[str]](list)
    for ids, word in found.loc[found.ran, ["ids", "word"]].itertuples(index=False):
        words[ids].append(word)
    return {
        ids: of[0] if len(set(of)) == 1 else summary(of) or ", ".join(dict.fromkeys(of))
        for ids, of in words.items()
    }


def cells_table(
    found: pd.DataFrame, runs: pd.DataFrame, words: dict[tuple[str, ...], str] | None = None
) -> Table:
    """The cells of a model (`View.numbers`). runs: all of the model, among which they are. words: their
    verdicts by run ids."""
    words = cell_words(runs) if words is None else words
    model, name = found.model.iloc[0], interval_name(found.n)
    whose = "not in the paper" if model in MODELS else "other model"
    rows = [
        _cell_row(cell, words.get(cell.ids, whose))
        for cell in found.sort_values(["task", "row"]).itertuples()
    ]
    header = [*("method", "task", "metric", "seeds", "median", name, "best", "last", "best-last")]
    header += ["cross-fitted", "optimism", "verdict"]
    return Table(
        f"{model}: cells",
        header,
        rows,
        _cells_notes(found, runs, name),
        model,
        {task: task for task in found.task},
    )


def _cell_row(cell: Cell, verdict: str) -> list[Entry]:
    main, curve = int(cell.digits), int(cell.decimals)
    # Where the last epoch is reported, none is chosen
    fitted, optimism = (cell.crossfit, cell.optimism) if cell.reported == "best" else (None, None)
    return [
        cell.label,
        cell.task,
        cell.name,
        Number(cell.n, form="count", mark=f"/{cell.wanted}{diverged(cell)}"),
        of_runs(middle(cell.values), cell.ids, decimals=main),
        interval(cell.values, cell.ids, main),
        of_runs(cell.best, cell.ids, decimals=curve),
        of_runs(cell.last, cell.ids, decimals=curve),
        of_runs(cell.best - cell.last, cell.ids, decimals=curve, sign=True),
        of_runs(fitted, cell.ids, decimals=curve),
        of_runs(optimism, cell.ids, decimals=curve, sign=True),
        verdict,
    ]


def _cells_notes(found: pd.DataFrame, runs: pd.DataFrame, name: str) -> list[str]:
    few = sorted({n for n in found.n if 1 < n <= 5}, reverse=True)
    covers = " or ".join(f"{100 * (1 - smallest_p(n)):.0f}% ({n} seeds)" for n in few)
    of_few = f" With 5 seeds or fewer it is their range, which covers the true median in {covers} of cases."
    notes = [
        f"{name}: percentile bootstrap of the median over seeds.{of_few if few else ''}",
        "best, last: the median at the best and the last epoch.",
    ]
    if (found.reported == "best").any():
        notes[-1] += f" {CROSSFIT.lower()}"
        notes.append(
            "optimism: by that mean, what choosing the epoch on the rows reported adds to a run, the median"
            " over seeds (best and cross-fitted are medians of their own). An upper estimate: halves choose"
            " worse."
        )
    texts = found[found["name"] != found.metric + ", " + found.reported + " epoch"]
    for task, metric in dict(zip(texts.task, texts.metric, strict=True)).items():
        which = f"{task}: best to optimism are of the dev set's {metric}"
        notes.append(f"{which}; texts are written once, at the end.")
    for cell in found[found.n < found.runs].itertuples():
        seeds = (str(seed) for seed, of in zip(cell.seeds, cell.values, strict=True) if math.isnan(of))
        which = f"{cell.label} on {cell.task}: seed {', '.join(seeds)}"
        notes.append(f"{which} has no number and is in no statistic.")
    notes += [f"Counted like any other: {'; '.join(of)}." for of in [odd(found)] if of]
    return [*notes, *(f"Left out: {word}." for word in left_out(runs[runs.kind == "result"], found))]


# --- a row against the others

COMPARED = [
    "model",
    "other",
    "task",
    "label",
    "other_label",
    "x",
    "y",
    "differences",
    "pairs",
    "wins",
    "losses",
]
COMPARED += ["difference", "low", "high", "p", "better", "better_low", "better_high", "digits", "ids"]


def comparisons(runs: pd.DataFrame, row: str = "vera") -> pd.DataFrame:
    """A row against every other of the same model: on each task where both have runs, and over these tasks
    together (task "all"). A positive difference means that the row is better, also of metrics of which less
    is better.

    Differences are paired by task and seed; a seed that one side lacks, or that was measured on other data,
    counts nowhere. Tasks are pooled where each row has one size on them, and their metrics one direction.
    The pooled sign test takes the pairs of all tasks as independent: runs of one seed on two tasks share no
    draw but the seed's number.

    Columns: x, y and differences, tuples by task and seed; pairs, wins, losses; the median difference with
    its interval (low, high); p of the sign test; better, P(better) with its interval; digits; ids."""
    lines = []
    for (model, other), both in pairs(reported(chosen(runs)), row).groupby(["model", "row_other"]):
        lines += [_compared(model, other, task, of) for task, of in both.groupby("task", sort=False)]
        alike = both.groupby(["label", "label_other", "less"], sort=False)
        lines += [_compared(model, other, "all", of) for _, of in alike if of.task.nunique() > 1]
    return pd.DataFrame(lines, columns=COMPARED)


def _compared(model: str, other: str, task: str, of: pd.DataFrame) -> dict[str, Any]:
    """One comparison. of: its pairs."""
    parts = [part.sort_values("seed") for _, part in of.groupby("task", sort=False)]
    of, sides = pd.concat(parts), [(part.x.tolist(), part.y.tolist()) for part in parts]
    differences = of.difference.tolist()
    low, high = median_interval(differences) or (math.nan, math.nan)
    better_low, better_high = improvement_interval(sides) or (math.nan, math.nan)
    values: Any = (
        *(model, other, task, of.label.iloc[0], of.label_other.iloc[0], tuple(of.x), tuple(of.y)),
        *(tuple(differences), len(of), int((of.difference > 0).sum()), int((of.difference < 0).sum())),
        *(statistics.median(differences), low, high, sign_test(differences)),
        *(improvement(sides), better_low, better_high, int(of.digits.min()), (*of.id, *of.id_other)),
    )
    return dict(zip(COMPARED, values, strict=True))


def comparisons_table(lines: pd.DataFrame, found: pd.DataFrame, row: str) -> Table:
    """The comparisons of a model as a table. found: all of its cells."""
    model = lines.model.iloc[0]
    sizes = lines[lines.task != "all"].set_index("task").label.to_dict()
    whose = " and ".join(f"{label} on {task}" for task, label in sizes.items())
    if len(set(sizes.values())) == 1:
        whose = lines.label.iloc[0]
    notes = [
        f"Positive: {whose} is better. Pairs are of one task and seed: won, lost, equal, and their median.",
        f"p: sign test, two-sided. With 5 pairs it is at least {smallest_p(5):.2f}, so 5 seeds alone never"
        " show p < 0.05. (smallest): all pairs say the same, and more are needed for a smaller p.",
        "P(better): the chance that a run of the one is above one of the other, the mean over tasks (Agarwal"
        f" et al. 2021); over the seeds that both have; from {INTERVAL_SEEDS} on with an interval.",
    ]
    if (lines.task == "all").any():
        notes.append(
            "all tasks: pools points of different metrics, and takes runs of one seed, and of one dev set, as"
            " independent: its p is too small."
        )
    notes.append("No p is corrected for the number of comparisons.")
    compared = set(zip(lines.other, lines.task, strict=True))
    others = found[found.task.isin(found[found.row == row].task) & (found.row != row)].itertuples()
    if alone := [f"{of.label} on {of.task}" for of in others if (of.row, of.task) not in compared]:
        same = "no seed of theirs was measured on the same data, by the same protocol"
        notes.append(f"Not compared, as {same}: {', '.join(alone)}.")
    title, name = f"{model}: {whose} against the other methods", interval_name(lines.pairs, "pairs")
    header = ["against", "task", "won", "lost", "equal", "difference", name, "p", "P(better)", "95% "]
    rows = [_comparison_row(line) for line in lines.itertuples()]
    return Table(title, header, rows, notes, model, {task: task for task in sizes})


def _comparison_row(line: Any) -> list[Entry]:
    smallest = line.p <= smallest_p(line.pairs) and line.p > 0.05
    # Where every pair says the same, so does every resample, and few pairs have few: no interval
    known = line.better_low < line.better_high and line.pairs >= INTERVAL_SEEDS
    counts = (line.wins, line.losses, line.pairs - line.wins - line.losses)
    return [
        line.other_label,
        "all tasks" if line.task == "all" else line.task,
        *(Number(of, form="count", ids=line.ids) for of in counts),
        of_runs(line.difference, line.ids, decimals=line.digits, sign=True),
        interval(line.differences, line.ids, line.digits, sign=True),
        Number(line.p, decimals=3, mark=" (smallest)" * smallest, ids=line.ids),
        Number(line.better, decimals=2, ids=line.ids),
        Number(line.better_low, high=line.better_high, decimals=2, ids=line.ids) if known else NONE,
    ]


# --- costs


def costs(runs: pd.DataFrame) -> Table:
    """What each cell cost: medians over seeds."""
    runs = chosen(runs)
    devices = (
        runs[runs.left_out == ""].groupby(KEY).device.agg(lambda of: " or ".join(sorted({*map(str, of)})))
    )
    rows: list[list[Entry]] = [
        [
            *(cell.label, cell.model, cell.task, Number(cell.runs, form="count", mark=diverged(cell))),
            count(cell),
            *(
                of_runs(getattr(cell, f"{part}_seconds"), cell.ids)
                for part in ("train", "evaluate", "decode")
            ),
            *(of_runs(size, cell.ids, form="bytes") for size in (cell.peak_memory_bytes, cell.adapter_bytes)),
            devices[cell.model, cell.row, cell.task],
        ]
        for cell in cells(runs).itertuples()
    ]
    header = ["method", "model", "task", "seeds", "params", "train s", "evaluate s", "decode s"]
    header += ["memory", "adapter", "device"]
    notes = [
        "Medians over the seeds that did not diverge. Memory: the device's largest, on a CPU the process's."
        " Compare runs of one device only."
    ]
    return Table("Cost of each cell", header, rows, notes)
