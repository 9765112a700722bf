"""The notes under a table: how its runs differ from what it stands for, what is counted
all the same, and what is left out; a line each. What holds of every table is in
docs/tables.md."""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.frame import KEY, distinctions, in_cells
from runs.record import plural

#: How many runs or rows a note names; of more it gives the number, too.
NAMED = 3
#: How an epoch is chosen that the paper does not choose so (select=), in a sentence.
SELECTED = {
    "crossfit": "Cross-fitted: the epoch is chosen on one half of dev and reported on the other, both ways.",
    "half": "The epoch is chosen on one half of dev and reported on the other, one split for all seeds.",
}
#: In what rows that were not measured alike differ.
MEASURED = {
    "protocol": "protocol",
    "train_rows": "training rows",
    "dev_rows": "dev rows",
    "data": "data",
}
MEASURED |= {"reported": "epoch", "metric": "metric"}
PAGE = "How to read it: docs/tables.md."


def notes(
    runs: pd.DataFrame, cells: pd.DataFrame, extra: Iterable[str] = (), how: str = ""
) -> list[str]:
    """The notes of a table whose numbers are these cells. runs: all of its models and
    tasks, among which its cells are. extra: other ways in which it deviates. how: what
    its numbers are."""
    shown = in_cells(runs, cells)
    lines = {
        "Deviates": [*extra, *deviations(cells), *measured_unlike(shown)],
        "Counted like any other": [*odd(cells), *several_sources(shown)],
        "Left out": left_out(runs, cells),
    }
    found = [f"{name}: {'; '.join(of)}." for name, of in lines.items() if of]
    studies = shown.origin[shown.origin != "ours"].value_counts().sort_index()
    of = ", ".join(f"{count} of {study}" for study, count in studies.items())
    published = f"Published by the project in runs/records: {of}. " if of else ""
    return [*found, f"{published}{how} {PAGE}".replace("  ", " ").strip()]


def _enumeration(names: list[str], what: str) -> str:
    if len(names) <= 2 * NAMED:
        return ", ".join(names)
    return (
        f"{len(names)} {what}: {', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    )


def deviations(cells: pd.DataFrame) -> list[str]:
    """How the runs of these cells deviate from their recipes, but for a rank that the
    row's name says, and what part of the data (task.train_rows, task.dev_rows) they
    had; on which rows and tasks ("all rows")."""
    asked = (cells.asked_train_rows == cells.train_rows) | (
        cells.asked_dev_rows == cells.dev_rows
    )
    part = cells[asked & ~cells.deviations.astype(str).str.contains("subset of")]
    size = "a part of the data: {0.train_rows:,.0f} training and {0.dev_rows:,.0f} dev rows".format
    each = pd.concat(
        [
            cells.explode("deviations"),
            part.assign(deviations=[*map(size, part.itertuples())]),
        ]
    )
    each = each[["row", "task", "deviations"]].dropna().drop_duplicates()
    found, every = list[str](), len(cells.drop_duplicates(["row", "task"]))
    for word, of in each.groupby("deviations"):
        of = of[
            [
                not str(word).startswith(f"rank {row.rpartition('_r')[2]} instead of")
                for row in of.row
            ]
        ]
        rows = (
            "all rows"
            if len(of) == every > 1
            else _enumeration(sorted(of.row + " on " + of.task), "rows")
        )
        found += [f"{word} ({rows})"] * bool(len(of))
    return found


def measured(runs: pd.DataFrame) -> dict[str, str]:
    """How the rows of a model and task were measured, in words, by row; "" where all
    were measured alike."""
    facts = (
        runs.drop_duplicates("row")
        .set_index("row")[[*MEASURED]]
        .rename(columns=MEASURED)
    )
    facts["data"] = facts.data.map(lambda data: str(data).rpartition(":")[2][:8])
    return distinctions(facts.to_dict("index"))


def measured_unlike(runs: pd.DataFrame) -> list[str]:
    """Tasks whose rows were not measured alike: on other rows of data, or by the best
    epoch and by the last."""
    found = []
    for (_, task), of in runs.groupby(["model", "task"], sort=False):
        rows = pd.Series(measured(of)).reset_index().groupby(0)["index"].agg(sorted)
        if len(rows) > 1:
            each = "; ".join(
                f"{words} ({_enumeration(names, 'rows')})"
                for words, names in rows.items()
            )
            found.append(f"not measured alike on {task}, so not to be compared: {each}")
    return found


def odd(cells: pd.DataFrame) -> list[str]:
    """Seeds that diverged, that answer one class for every row, and that finished
    without their number."""
    diverged, unknown = int(cells.diverged.sum()), int((cells.runs - cells.n).sum())
    found = [f"{plural(diverged, 'diverged run')} (1d: one of the seeds)"] * bool(
        diverged
    )
    found += [f"nan: {plural(unknown, 'run')} that finished without the number"] * bool(
        unknown
    )
    for (task, share), of in cells[cells.one_class.map(len) > 0].groupby(
        ["task", "class_share"]
    ):
        which = [
            f"{cell.row}, seed {', '.join(map(str, cell.one_class))}"
            for cell in of.itertuples()
        ]
        count = f"{plural(sum(map(len, of.one_class)), 'run')} on {task}{f' ({share})' if share else ''}"
        found.append(f"predicts one class: {count}: {'; '.join(which)}")
    if rows := sorted({*cells.row[cells.one_draw.astype(bool) & (cells.runs > 1)]}):
        what = "one draw of random matrices for all seeds, whose share the spread leaves out"
        found.append(f"{what} ({_enumeration(rows, 'rows')})")
    return found


def several_sources(runs: pd.DataFrame) -> list[str]:
    """Each cell whose seeds were made with several versions of its method's or its
    task's file, or of what that imports, one of which at least is in no commit."""
    found = []
    for ((_, row, task), of), part in itertools.product(
        runs.groupby(KEY, sort=False), ("method", "task")
    ):
        known = [
            (seed, one[part])
            for seed, one in zip(of.seed, of.sources, strict=True)
            if one.get(part)
        ]
        # older records lack it
        imports = all("imports" in source for _, source in known)
        versions = defaultdict[Any, list[str]](list)
        for seed, source in sorted(known, key=lambda one: one[0]):
            versions[source["sha256"], imports and source["imports"]].append(str(seed))
        if len(versions) > 1 and any(
            source["uncommitted"] is not False for _, source in known
        ):
            seeds, file = (
                " | ".join(map(", ".join, versions.values())),
                known[0][1]["file"],
            )
            found.append(
                f"{row} on {task}: seeds of {len(versions)} versions of {file} or its imports: {seeds}"
            )
    return found


def left_out(runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """Runs of a table's models and tasks that are in none of its cells, and why."""
    others, again = (
        int(cells.left_out.sum()),
        [run for ids in cells.again for run in ids],
    )
    how = "a row shows those nearest to its recipe; all=true shows each"
    found = [f"{plural(others, 'run')} with other settings ({how})"] * bool(others)
    for row, task, newest, of in zip(
        cells.row, cells.task, cells.protocol, cells.older, strict=True
    ):
        older = ", ".join(f"{number:g}" for number in of)
        words = f"{row} on {task}: runs of protocol {older}, not mixed with those of {newest:g}"
        found += [words] * bool(of)
    words = "more than one record of the same settings and seed"
    found += [f"{words}: {_enumeration(again, 'runs')}"] * bool(again)
    return [*found, *unfinished(runs)]


def unfinished(runs: pd.DataFrame) -> list[str]:
    """The runs that train.max_steps has stopped early, and those that failed."""
    found = []
    for kind, words in (
        ("stopped", "stopped early by train.max_steps"),
        ("failed", "failed"),
    ):
        of = runs.loc[runs.kind == kind, ["id", "label", "task_label"]].itertuples(
            index=False
        )
        if names := [f"{run} ({label} on {task})" for run, label, task in of]:
            found.append(f"{words}: {_enumeration(names, 'runs')}")
    return found
