"""Statistics beside the paper's own: intervals over seeds, paired differences,
probability of improvement, and verdicts.

    python -m analysis.stats every cell of the ledger python -m analysis.stats table2
    the cells of one table python -m analysis.stats sweep=last the runs of a sweep
    (task=, model=, method=: of these)

What each number is, and where it is from: docs/statistics.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from analysis import tables
from analysis.beside import summary
from analysis.command import Selection, open_selection, own_and_published, row_name
from analysis.frame import mark_left_out, pairs, reported, reported_cells
from analysis.inference import improvement, sign_test
from analysis.notes import notes, unfinished
from analysis.paper import GPT2, LLAMAS, ROBERTA, VIT
from analysis.render import NONE, Entry, Number, Table, diverged, of_runs, render
from runs.command import entry_point, one_of, read, setting
from runs.errors import UserError
from runs.record import interval_name, median_interval

#: The models of the paper.
MODELS = {**ROBERTA, **GPT2, **VIT, **LLAMAS}


def statistics_tables(
    runs: pd.DataFrame, row: str = "vera", judged: pd.DataFrame | None = None
) -> list[Table]:
    """For each model its cells (interval, best against last epoch, what choosing it
    adds), and a row against the others ("": none). judged: their verdicts, where they
    are at hand."""
    cells, found = reported_cells(runs), list[Table]()
    words, compared = (
        cell_words(runs, judged) if len(cells) else {},
        comparisons(runs, row),
    )
    for model, of in cells.groupby("model"):
        found.append(
            _cells_table(
                of, runs[(runs.model == model) & (runs.kind == "result")], words
            )
        )
        if len(lines := compared[compared.model == model]):
            found.append(_comparisons_table(lines, of, row))
    return found


def interval(values: Iterable[float], ids: Iterable[str], decimals: int) -> Entry:
    """The interval of the median of the known values; "-" for fewer than two."""
    low, high = median_interval(
        [value for value in values if not math.isnan(value)]
    ) or (None, math.nan)
    return of_runs(low, ids, high=high, decimals=decimals)


# --- cells


def cell_words(
    runs: pd.DataFrame, judged: pd.DataFrame | None = None
) -> dict[tuple[str, ...], str]:
    """The verdict on each cell that the paper has, by its run ids, or how many of its
    numbers are reproduced."""
    found = tables.verdicts(runs) if judged is None else judged
    return {
        ids: of[0] if len(set(of)) == 1 else summary(of) or ", ".join(dict.fromkeys(of))
        for ids, of in found[found.ran]
        .groupby("ids", sort=False)
        .word.agg(list)
        .items()
    }


def _cells_table(
    found: pd.DataFrame, runs: pd.DataFrame, words: dict[tuple[str, ...], str]
) -> Table:
    """The cells of a model (`frame.reported_cells`). runs: all of the model, among
    which they are. words: their verdicts by run ids."""
    model, name, lines = (
        found.model.iloc[0],
        interval_name(found.n),
        list[dict[str, Entry]](),
    )
    for cell in found.sort_values(["task", "row"]).itertuples():
        points: Any = {"ids": cell.ids, "decimals": int(cell.decimals)}
        line = {"method": cell.label, "task": cell.task, "metric": cell.name}
        line["seeds"] = Number(
            cell.n, form="count", mark=f"/{cell.wanted}{diverged(cell)}"
        )
        line["median"] = of_runs(
            pd.Series(cell.values).median(), cell.ids, decimals=int(cell.digits)
        )
        line |= {name: interval(cell.values, cell.ids, int(cell.digits))}
        line |= {
            "best": of_runs(cell.best, **points),
            "last": of_runs(cell.last, **points),
        }
        # where the last epoch is reported, none is chosen
        chose = cell.reported == "best"
        line["cross-fitted"] = of_runs(cell.crossfit, **points) if chose else NONE
        line["optimism"] = (
            of_runs(cell.optimism, sign=True, **points) if chose else NONE
        )
        other = "not in the paper" if model in MODELS else "other model"
        lines.append(line | {"verdict": words.get(cell.ids, other)})
    how = "Best to optimism are of the dev set's metric. Intervals and the rest: docs/statistics.md."
    return Table.of(
        f"{model}: cells", lines, notes(runs, found, description=how), model
    )


# --- a row against the others


def comparisons(runs: pd.DataFrame, row: str = "vera") -> pd.DataFrame:
    """A row against every other of the same model on each task where both have runs. A
    positive difference means that the row is better, also of metrics of which less is
    better. Differences are paired by seed; a seed that one side lacks, or that was
    measured on other data, counts nowhere.

    Columns: differences, a tuple by seed; pairs, wins, losses; the median difference
    with its interval (low, high); p of the sign test; better, P(better); digits;
    ids."""
    lines, both = (
        [],
        pairs(reported(mark_left_out(runs)), row).sort_values(
            ["model", "row_other"], kind="stable"
        ),
    )
    for (model, other, task), of in both.groupby(
        ["model", "row_other", "task"], sort=False
    ):
        of = of.sort_values("seed", kind="stable")
        low, high = median_interval([*of.difference]) or (math.nan, math.nan)
        line = {"model": model, "other": other, "task": task, "label": of.label.iloc[0]}
        line |= {"other_label": of.label_other.iloc[0], "pairs": len(of)}
        line |= {
            "wins": int((of.difference > 0).sum()),
            "losses": int((of.difference < 0).sum()),
        }
        line |= {
            "differences": tuple(of.difference),
            "difference": float(of.difference.median()),
        }
        line |= {"low": low, "high": high, "p": sign_test(of.difference)}
        line |= {"better": improvement(of.x, of.y), "digits": int(of.digits.min())}
        lines.append(line | {"ids": (*of.id, *of.id_other)})
    return pd.DataFrame(lines, columns=None if lines else ["model", "other", "task"])


def _comparisons_table(lines: pd.DataFrame, found: pd.DataFrame, row: str) -> Table:
    """The comparisons of a model as a table. found: all of its cells."""
    model, name = lines.model.iloc[0], interval_name(lines.pairs, "pairs")
    whose = " and ".join(lines.label.unique())
    notes = [
        f"Positive: {whose} is better, in pairs of one seed. How to read it: docs/statistics.md.",
        "No p is corrected for the number of comparisons; of 5 pairs none is below 0.06.",
    ]
    compared = set(zip(lines.other, lines.task, strict=True))
    others = found[
        found.task.isin(found[found.row == row].task) & (found.row != row)
    ].itertuples()
    if alone := [
        f"{of.label} on {of.task}" for of in others if (of.row, of.task) not in compared
    ]:
        notes.append(
            f"Not compared, as no seed is of the same data and protocol: {', '.join(alone)}."
        )
    rows = list[dict[str, Entry]]()
    for of in lines.itertuples():
        smallest = max(of.wins, of.losses) == of.pairs and of.p > 0.05
        points: Any = {"ids": of.ids, "decimals": of.digits, "sign": True}
        counts = {
            "won": of.wins,
            "lost": of.losses,
            "equal": of.pairs - of.wins - of.losses,
        }
        line = {"against": of.other_label, "task": of.task}
        line |= {
            key: Number(count, form="count", ids=of.ids)
            for key, count in counts.items()
        }
        line["difference"] = of_runs(of.difference, **points)
        line[name] = of_runs(of.low, high=of.high, **points)
        line["p"] = Number(of.p, decimals=3, mark=" (smallest)" * smallest, ids=of.ids)
        rows.append(line | {"P(better)": Number(of.better, decimals=2, ids=of.ids)})
    return Table.of(f"{model}: {whose} against the other methods", rows, notes, model)


# --- the command


@dataclass(frozen=True)
class Settings(Selection):
    """Which cells are shown, and how."""

    row: str | None = setting(None, "the row that the others are compared with (vera)")
    format: Literal["md", "latex", "csv"] = setting("md", "how the tables are printed")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[TABLE]")
    settings, row, name = (
        line.settings,
        row_name(line.settings.row or "vera"),
        "".join(line.names),
    )
    frames = own_and_published(open_selection(settings))
    part = pd.concat(frames, ignore_index=True)
    part = of_table(part, name) if name else part
    if part.empty:
        of, way = (
            (f" of {name}", "make help lists what runs them")
            if name
            else ("", "make demo")
        )
        raise UserError(f"no records{of} in {settings.output}/records yet ({way})")
    if settings.row:
        one_of("row", row, sorted(set(part.row)))
        part = (
            part
            if (part[part.row == row].kind == "result").any()
            else part[part.row == row]
        )
    own, others = (of[of.id.isin(part.id)] for of in frames)
    shown = statistics_tables(own, row)
    shown += [
        replace(of, title=f"{of.title} (published)")
        for of in statistics_tables(others, row)
    ]
    if not shown:
        notes = "".join(f": {note}" for note in unfinished(part))
        raise UserError(f"no finished run in {settings.output}/records for that{notes}")
    print(render(shown, settings.format))
    return 0


def of_table(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The runs on the models and tasks of a table, of whichever row. Raises UserError
    for an unknown one, and for one without records."""
    if name in tables.WITHOUT_RECORDS:
        raise UserError(f"{name} is of formulas or recipes, and has no records")
    one_of("table", name, tables.TABLES)
    keys = {
        (of.model, task) for of in tables.made(name, runs) for task in of.tasks.values()
    }
    return runs[[key in keys for key in zip(runs.model, runs.task, strict=True)]]


if __name__ == "__main__":
    entry_point(main)
