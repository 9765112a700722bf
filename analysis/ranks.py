"""All rows of a task at once: their mean ranks over seeds, Friedman's test, and the critical difference."""

import pandas as pd

from analysis.frame import chosen, reported
from analysis.inference import Ranks, friedman
from analysis.render import Entry, Number, Table
from analysis.statistics import interval, middle
from analysis.tables.view import of_runs
from runs.record import interval_name
from runs.record.text import plural

#: A test of ranks needs as many rows, and as many seeds.
ROWS, SEEDS = 3, 2


def ranks(runs: pd.DataFrame) -> list[Table]:
    """For each model and task the rows from the best mean rank to the worst, where three of them or more
    share two seeds or more, measured on the same."""
    runs = reported(chosen(runs))
    shown = runs[runs.left_out == ""].sort_values(["row", "seed"])
    tables = [_of_task(f"{model}: {task}", of) for (model, task), of in shown.groupby(["model", "task"])]
    return [table for table in tables if table]


def _of_task(where: str, runs: pd.DataFrame) -> Table | None:
    """runs: of one model and task, in cells."""
    known = runs[runs.number.notna()]
    known = known.assign(block=list(zip(known.seed, known["name"], known.measured, strict=True)))
    blocks = known.groupby("row").block.agg(frozenset).to_dict()

    def having(seeds: frozenset[tuple[int, str, str]]) -> list[str]:
        return [row for row, of in blocks.items() if seeds <= of]

    # The seeds of one of the rows, and the rows that have all of these: as many of both as there are
    enough = [of for of in blocks.values() if len(of) >= SEEDS and len(having(of)) >= ROWS]
    if not enough:
        return None
    most = max(enough, key=lambda of: (len(of) * len(having(of)), len(of)))
    ranked = known[known.row.isin(having(most)) & known.block.isin(most)]
    better = ranked.number.where(~ranked.less, -ranked.number)
    by_row = ranked.assign(better=better).pivot(index="row", columns="seed", values="better")
    found = friedman(by_row.to_numpy().tolist())
    order = sorted(zip(found.mean, by_row.index, strict=True))
    rows = [_row(ranked[ranked.row == row], mean, mean - order[0][0], found) for mean, row in order]
    rows[0][-1] = "-"
    name = ranked["name"].iloc[0]
    header = ["method", "params", "with the head", name, interval_name([len(most)]), "mean rank"]
    others = list(runs[~runs.row.isin(by_row.index)].drop_duplicates("row").label)
    notes = _notes(found, len(by_row), len(most), others)
    title = f"{where}, ranks over {plural(len(most), 'seed')}"
    return Table(title, [*header, "from the first"], rows, notes)


def _row(runs: pd.DataFrame, mean: float, behind: float, found: Ranks) -> list[Entry]:
    first, ids = runs.iloc[0], tuple(runs.id)
    digits, near = int(first.digits), behind < found.critical
    return [
        first.label,
        Number(first.parameters, form="count", ids=ids),
        Number(first.parameters + first.head_parameters, form="count", ids=ids),
        of_runs(middle(runs.number), ids, decimals=digits),
        interval(runs.number, ids, digits),
        Number(mean, ids=ids),
        "not told apart" if near else "told apart",
    ]


def _notes(found: Ranks, rows: int, seeds: int, others: list[str]) -> list[str]:
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    notes = [
        f"Friedman's test of {rows} rows, whose blocks are the {seeds} seeds: {p}. It is of this"
        " model and task alone.",
        f"Critical difference (Nemenyi, 5%): {found.critical:.1f} ranks. not told apart: the mean rank is"
        " within it of the first one's.",
    ]
    if others:
        notes.append(f"Not ranked, as they lack one of these seeds on the same data: {', '.join(others)}.")
    return notes
