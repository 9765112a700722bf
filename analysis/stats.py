"""Statistics beside the paper's own: intervals over seeds, paired differences, probability of improvement,
verdicts, and all rows of a task by ranks (Friedman's test).

    python -m analysis.stats                        every cell of the ledger
    python -m analysis.stats table2                 the cells of one table
    python -m analysis.stats experiment=table2_base      the runs of a preset
    python -m analysis.stats sweep=last             the runs of a sweep (task=, model=, method=: of these)

What each number is, and where it is from: docs/statistics.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pandas as pd

from analysis import tables
from analysis.beside import summary
from analysis.command import Chosen, open_chosen, row_name
from analysis.frame import chosen, own_and_published, pairs, reported, reported_cells
from analysis.inference import friedman, improvement, improvement_interval, sign_test, smallest_p
from analysis.notes import notes, unfinished
from analysis.paper import GPT2, LLAMAS, ROBERTA, VIT
from analysis.render import NONE, Entry, Number, Table, diverged, of_runs, render
from runs.command import did_you_mean, entry_point, read, setting
from runs.errors import UserError
from runs.record import CONF, INTERVAL_SEEDS, interval_name, median_interval
from runs.record.text import plural

#: The models of the paper.
MODELS = {**ROBERTA, **GPT2, **VIT, **LLAMAS}


def statistics_tables(
    runs: pd.DataFrame, row: str = "vera", judged: pd.DataFrame | None = None
) -> list[Table]:
    """For each model its cells (interval, best against last epoch, what choosing it adds), and a row against
    the others ("": none). judged: their verdicts, where they are at hand."""
    found, words, tables = reported_cells(runs), cell_words(runs, judged), list[Table]()
    compared = comparisons(runs, row)
    for model, of in found.groupby("model"):
        tables.append(_cells_table(of, runs[(runs.model == model) & (runs.kind == "result")], words))
        if len(lines := compared[compared.model == model]):
            tables.append(_comparisons_table(lines, of, row))
    return tables


def interval(values: Iterable[float], ids: Iterable[str], decimals: int) -> Entry:
    """The interval of the median of the known values; "-" for fewer than two."""
    low, high = median_interval([value for value in values if not math.isnan(value)]) or (None, math.nan)
    return of_runs(low, ids, high=high, decimals=decimals)


# --- cells


def cell_words(runs: pd.DataFrame, judged: pd.DataFrame | None = None) -> dict[tuple[str, ...], str]:
    """The verdict on each cell that the paper has, by its run ids, or how many of its numbers are
    reproduced."""
    found = tables.verdicts(runs) if judged is None else judged
    return {
        ids: of[0] if len(set(of)) == 1 else summary(of) or ", ".join(dict.fromkeys(of))
        for ids, of in found[found.ran].groupby("ids", sort=False).word.agg(list).items()
    }


def _cells_table(found: pd.DataFrame, runs: pd.DataFrame, words: dict[tuple[str, ...], str]) -> Table:
    """The cells of a model (`frame.reported_cells`). runs: all of the model, among which they are. words:
    their verdicts by run ids."""
    model, name = found.model.iloc[0], interval_name(found.n)
    other, rows = "not in the paper" if model in MODELS else "other model", list[list[Entry]]()
    for cell in found.sort_values(["task", "row"]).itertuples():
        main, curve, ids = int(cell.digits), int(cell.decimals), cell.ids
        numbers = [cell.best, cell.last, cell.crossfit, cell.optimism]
        if cell.reported != "best":  # where the last epoch is reported, none is chosen
            numbers[2:] = [math.nan] * 2
        rows.append(
            [
                *(cell.label, cell.task, cell.name),
                Number(cell.n, form="count", mark=f"/{cell.wanted}{diverged(cell)}"),
                of_runs(pd.Series(cell.values).median(), ids, decimals=main),
                interval(cell.values, ids, main),
                *(of_runs(of, ids, decimals=curve, sign=i == 3) for i, of in enumerate(numbers)),
                words.get(cell.ids, other),
            ]
        )
    header = ["method", "task", "metric", "seeds", "median", name, "best", "last", "cross-fitted"]
    how = "Best to optimism are of the dev set's metric. Intervals and the rest: docs/statistics.md."
    title, tasks = f"{model}: cells", {task: task for task in found.task}
    return Table(title, [*header, "optimism", "verdict"], rows, notes(runs, found, how=how), model, tasks)


# --- a row against the others


def comparisons(runs: pd.DataFrame, row: str = "vera") -> pd.DataFrame:
    """A row against every other of the same model: on each task where both have runs, and over these tasks
    together (task "all"). A positive difference means that the row is better, also of metrics of which less
    is better.

    Differences are paired by task and seed; a seed that one side lacks, or that was measured on other data,
    counts nowhere. Tasks are pooled where each row has one size on them, and their metrics one direction.
    The pooled sign test takes the pairs of all tasks as independent: runs of one seed on two tasks share no
    draw but the seed's number.

    Columns: differences, a tuple by task and seed; pairs, wins, losses; the median difference with its
    interval (low, high); p of the sign test; better, P(better) with its interval; digits; ids."""
    lines = []
    for (model, other), both in pairs(reported(chosen(runs)), row).groupby(["model", "row_other"]):
        parts = [(task, of) for task, of in both.groupby("task", sort=False)]
        alike = both.groupby(["label", "label_other", "less"], sort=False)
        parts += [("all", of) for _, of in alike if of.task.nunique() > 1]
        lines += [{"model": model, "other": other, "task": task} | _compared(of) for task, of in parts]
    return pd.DataFrame(lines, columns=None if lines else ["model", "other", "task"])


def _compared(of: pd.DataFrame) -> dict[str, Any]:
    """One comparison. of: its pairs."""
    parts = [part.sort_values("seed") for _, part in of.groupby("task", sort=False)]
    of, sides = pd.concat(parts), [(part.x.tolist(), part.y.tolist()) for part in parts]
    differences = of.difference.tolist()
    low, high = median_interval(differences) or (math.nan, math.nan)
    better_low, better_high = improvement_interval(sides) or (math.nan, math.nan)
    found = {"label": of.label.iloc[0], "other_label": of.label_other.iloc[0], "pairs": len(of)}
    found |= {"wins": int((of.difference > 0).sum()), "losses": int((of.difference < 0).sum())}
    found |= {"differences": tuple(differences), "difference": float(of.difference.median())}
    found |= {"low": low, "high": high, "p": sign_test(differences), "better": improvement(sides)}
    found |= {"better_low": better_low, "better_high": better_high, "digits": int(of.digits.min())}
    return found | {"ids": (*of.id, *of.id_other)}


def _comparisons_table(lines: pd.DataFrame, found: pd.DataFrame, row: str) -> Table:
    """The comparisons of a model as a table. found: all of its cells."""
    model, name = lines.model.iloc[0], interval_name(lines.pairs, "pairs")
    whose = " and ".join(lines.label.unique())
    notes = [
        f"Positive: {whose} is better, in pairs of one task and seed. How to read it: docs/statistics.md.",
        f"No p is corrected for the number of comparisons; of 5 pairs none is below {smallest_p(5):.2f}"
        + (", and that of all tasks is too small." if (lines.task == "all").any() else "."),
    ]
    compared = set(zip(lines.other, lines.task, strict=True))
    others = found[found.task.isin(found[found.row == row].task) & (found.row != row)].itertuples()
    if alone := [f"{of.label} on {of.task}" for of in others if (of.row, of.task) not in compared]:
        notes.append(f"Not compared, as no seed is of the same data and protocol: {', '.join(alone)}.")
    rows = list[list[Entry]]()
    for line in lines.itertuples():
        smallest = line.p <= smallest_p(line.pairs) and line.p > 0.05
        # Where every pair says the same, so does every resample, and few pairs have few: no interval
        known = line.better_low < line.better_high and line.pairs >= INTERVAL_SEEDS
        counts = (line.wins, line.losses, line.pairs - line.wins - line.losses)
        points: Any = {"ids": line.ids, "decimals": line.digits, "sign": True}
        better = partial(Number, decimals=2, ids=line.ids)
        rows.append(
            [
                *(line.other_label, "all tasks" if line.task == "all" else line.task),
                *(Number(of, form="count", ids=line.ids) for of in counts),
                *(of_runs(line.difference, **points), of_runs(line.low, high=line.high, **points)),
                Number(line.p, decimals=3, mark=" (smallest)" * smallest, ids=line.ids),
                *(better(line.better), better(line.better_low, high=line.better_high) if known else NONE),
            ]
        )
    header = ["against", "task", "won", "lost", "equal", "difference", name, "p", "P(better)", "95% "]
    return Table(f"{model}: {whose} against the other methods", header, rows, notes, model)


# --- all rows of a task at once

#: A test of ranks needs as many rows, and as many seeds.
ROWS, SEEDS = 3, 2


def ranks(runs: pd.DataFrame) -> list[Table]:
    """For each model and task the rows from the best mean rank to the worst, where three of them or more
    share two seeds or more, measured on the same."""
    runs = reported(chosen(runs))
    shown = runs[runs.left_out == ""].sort_values(["row", "seed"])
    tables = [_ranks_table(f"{model}: {task}", of) for (model, task), of in shown.groupby(["model", "task"])]
    return [table for table in tables if table]


def _ranks_table(where: str, runs: pd.DataFrame) -> Table | None:
    """runs: of one model and task, in cells."""
    known = runs[runs.number.notna()]
    known = known.assign(block=list(zip(known.seed, known["name"], known.measured, strict=True)))
    blocks = known.groupby("row").block.agg(frozenset).to_dict()
    # The seeds of one of the rows, and the rows that have all of these: as many of both as there are
    having = {seeds: [row for row, of in blocks.items() if seeds <= of] for seeds in blocks.values()}
    enough = [of for of in blocks.values() if len(of) >= SEEDS and len(having[of]) >= ROWS]
    if not enough:
        return None
    most = max(enough, key=lambda of: (len(of) * len(having[of]), len(of)))
    ranked = known[known.row.isin(having[most]) & known.block.isin(most)]
    better = ranked.number.where(~ranked.less, -ranked.number)
    by_row = ranked.assign(better=better).pivot(index="row", columns="seed", values="better")
    found = friedman(by_row.to_numpy().tolist())
    rows, best = list[list[Entry]](), min(found.mean)
    for mean, row in sorted(zip(found.mean, by_row.index, strict=True)):
        of, told = (
            ranked[ranked.row == row],
            "told apart" if mean - best >= found.critical else "not told apart",
        )
        first, ids, digits = of.iloc[0], tuple(of.id), int(of.digits.iloc[0])
        sizes = (first.parameters, first.parameters + first.head_parameters)
        counts = (Number(size, form="count", ids=ids) for size in sizes)
        numbers = of_runs(of.number.median(), ids, decimals=digits), interval(of.number, ids, digits)
        rows.append([first.label, *counts, *numbers, Number(mean, ids=ids), told if rows else NONE])
    notes = [
        f"Friedman's test of {len(by_row)} rows, whose blocks are the {len(most)} seeds:"
        f" {'p < 0.001' if found.p < 0.001 else f'p = {found.p:.3f}'}. Of this model and task alone.",
        f"Critical difference (Nemenyi, 5%): {found.critical:.1f} ranks from the first one's mean rank.",
    ]
    if others := list(runs[~runs.row.isin(by_row.index)].drop_duplicates("row").label):
        notes.append(f"Not ranked, as they lack one of these seeds on the same data: {', '.join(others)}.")
    header = ["method", "params", "with the head", ranked["name"].iloc[0], interval_name([len(most)])]
    title = f"{where}, ranks over {plural(len(most), 'seed')}"
    return Table(title, [*header, "mean rank", "from the first"], rows, notes)


# --- the command


@dataclass(frozen=True)
class Settings(Chosen):
    """Which cells are shown, and how."""

    experiment: str | None = setting(None, "the preset whose runs are shown, in place of a table")
    row: str | None = setting(None, "the row that the others are compared with (vera)")
    format: Literal["md", "latex", "csv"] = setting("md", "how the tables are printed")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[TABLE]")
    settings, row = line.settings, row_name(line.settings.row or "vera")
    parts = [*line.names, *([f"experiment={settings.experiment}"] if settings.experiment else [])]
    if len(parts) > 1:
        raise UserError(f"{' and '.join(parts)}: name one of them")
    what = "".join(parts)
    ledger = open_chosen(settings)
    frames = own_and_published(ledger)
    part = part_of(pd.concat(frames), what)
    if part.empty:
        of, way = (f" of {what}", "make help lists what runs them") if what else ("", "make demo")
        raise UserError(f"no records{of} in {settings.output}/records yet ({way})")
    if settings.row and row not in set(part.row):
        raise UserError(f"no records of row {row!r}. There are: {', '.join(sorted(set(part.row)))}")
    own, others = (of[of.id.isin(part.id)] for of in frames)
    shown = [*statistics_tables(own, row), *ranks(own)]
    of_others = (*statistics_tables(others, row), *ranks(others))
    shown += [replace(table, title=f"{table.title} (published)") for table in of_others]
    if not shown:
        notes = "".join(f": {note}" for note in unfinished(part))
        raise UserError(f"no finished run in {settings.output}/records for that{notes}")
    print(render(shown, settings.format))
    return 0


def part_of(runs: pd.DataFrame, what: str) -> pd.DataFrame:
    """The runs on the models and tasks of a table, or of a preset (experiment=NAME): also rows that ran for
    another preset first. Without a name all of them. Raises UserError for an unknown table or preset."""
    preset, presets = what.removeprefix("experiment="), {path.stem for path in CONF.glob("experiment/*.yaml")}
    presets |= set(runs.preset)
    if what in tables.WITHOUT_RECORDS:
        raise UserError(f"{what} is of formulas or recipes, and has no records")
    if preset == what and what not in ("", *tables.TABLES):
        hint = f" A preset's: experiment={what}." if what in presets else ""
        raise UserError(f"no table {what!r}.{hint} Known: {', '.join(tables.TABLES)}, and experiment=PRESET")
    if preset not in presets and preset != what:
        hint = did_you_mean(preset, presets)
        raise UserError(f"no preset {preset!r}.{hint} They are the files of conf/experiment")
    if not what:
        return runs
    named = runs[runs.preset == preset] if preset != what else tables.belonging(what, runs)
    keys = {*zip(named.model, named.task, strict=True)}
    return runs[[key in keys for key in zip(runs.model, runs.task, strict=True)]]


if __name__ == "__main__":
    entry_point(main)
