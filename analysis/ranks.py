"""All rows of a task at once: their mean ranks over seeds, Friedman's test, and the critical difference."""

import pandas as pd

from analysis.frame import chosen, reported
from analysis.inference import Ranks, friedman
from analysis.render import Entry, Number, Table, of_runs
from analysis.statistics import interval, middle
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
    order = sorted(zip(found.mean, by_row.index, strict=True))
    rows = [_row(ranked[ranked.row == row], mean, mean - order[0][0], found) for mean, row in order]
    rows[0][-1] = "-"
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


def _row(runs: pd.DataFrame, mean: float, behind: float, found: Ranks) -> list[Entry]:
    first, ids, digits = runs.iloc[0], tuple(runs.id), int(runs.digits.iloc[0])
    sizes = (first.parameters, first.parameters + first.head_parameters)
    return [
        first.label,
        *(Number(size, form="count", ids=ids) for size in sizes),
        of_runs(middle(runs.number), ids, decimals=digits),
        interval(runs.number, ids, digits),
        Number(mean, ids=ids),
        "not told apart" if behind < found.critical else "told apart",
    ]
