"""Prints a table from the records, next to the paper's where there is one.

vera-bench table table2               table1 to table13, claims, demo, lm_eval
vera-bench table table2 task=mrpc     a part of it
vera-bench table sweep=last           the rows and tasks of a sweep
vera-bench table task=mine            those of a task (also model= and method=)
vera-bench table table2 against=lora  also each row minus LoRA
vera-bench table table2 format=latex  for papers; csv is for spreadsheets
vera-bench table leaderboard=FOLDER   the result files of other groups

Your own runs come first, then published ones of the same models. Of several variants
of a row you see the one nearest to its recipe.

A cell is the median over the seeds +- the sample standard deviation (in tables 6 and 7
the mean). A cell with too few seeds says so and enters no average. docs/tables.md says
which epoch a table reports, and the rest.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pandas as pd
from pydantic import PositiveInt

from analysis.command import (
    VariantSelection,
    conf_rows,
    open_rows,
    own_and_published,
    row_name,
    split_names,
)
from analysis.facts import FACTS
from analysis.notes import NOTE_LENGTH, unfinished_notices
from analysis.render import Table, render
from analysis.rows import RunRow
from analysis.tables import TABLES, WITHOUT_RECORDS, runs_of_table, tables_of_ledger
from runs.command.advice import require_known
from runs.command.errors import UserError
from runs.command.parser import entry_point, read_command_line, setting
from runs.record.begun import begun_runs
from runs.record.files import write_atomically
from runs.record.ledger import Ledger
from runs.record.text import plural

#: The ending of a saved table's file, by format=.
ENDINGS = {"md": "md", "latex": "tex", "csv": "csv"}


@dataclass(frozen=True)
class Settings(VariantSelection):
    """Which runs a table shows, and how it is printed."""

    format: Literal["md", "latex", "csv"] = setting("md", "how the table is printed")
    select: Literal["paper", "crossfit", "half"] = setting(
        "paper", "the epoch: as in the paper, or by half of dev"
    )
    seeds: PositiveInt | None = setting(
        None, "how many complete a cell (null: 5, 3 or 1)"
    )
    against: str | None = setting(None, "also each row minus this one, by paired runs")
    columns: str | None = setting(
        None, "further ones, such as seconds,peak_memory_bytes"
    )
    others: Literal["true", "all", "false"] = setting(
        "true",
        "other groups' scores (all: a line each)",
    )
    save: bool = setting(False, "also write OUTPUT/TABLE/table.md (.tex, .csv)")
    leaderboard: str | None = setting(
        None,
        "folders of peft's result files, or published",
    )
    refresh: bool = setting(False, "with leaderboard=: write docs/leaderboard.md")


def main(arguments: list[str]) -> int:
    line = read_command_line(arguments, Settings, positional="[TABLE]")
    name = "".join(line.positional)  # one name or none
    settings = line.settings
    columns = split_names(settings.columns)
    if settings.leaderboard:
        typed_names_and_keys = {*line.positional, *line.given}
        return _show_leaderboard(settings, typed_names_and_keys)
    _check_names_and_settings(name, settings, columns)
    methods = [*map(row_name, split_names(settings.method))]
    against = row_name(settings.against or "")
    ledger = Ledger()
    if name not in WITHOUT_RECORDS:
        # A table of the paper shows its rows even without records of ours, but
        # differences need records.
        ledger = open_rows(settings, allows_unrun=bool(name and not against))
    if against:
        if methods and against not in methods:
            raise UserError(
                f"against={against}: method={settings.method} leaves this row out. "
                f"Type method={settings.method},{against}"
            )
        require_known("row", against, conf_rows(ledger))
    tables = tables_of_ledger(
        name,
        ledger,
        all_variants=settings.all,
        # a sweep may have run several settings of one row
        all_own_variants=bool(settings.sweep),
        own_models_only=bool(name and not settings.model),
        against=against,
        select=settings.select,
        seeds=settings.seeds,
        others=settings.others,
        models=split_names(settings.model),
        tasks=split_names(settings.task),
        methods=methods,
        columns=columns,
    )
    if not tables:
        raise _no_table_error(name, ledger, settings)
    if not settings.sweep:  # a sweep has counted its missing runs already
        tables[0].notes += _begun_notes(tables, ledger, settings)
    text = render(tables, settings.format)
    print(text)
    if settings.save:
        folder = Path(settings.output) / (name or settings.sweep or "rows")
        path = folder / f"table.{ENDINGS[settings.format]}"
        write_atomically(path, text + "\n")
        # With format=csv standard output has nothing but the CSV.
        stream = sys.stderr if settings.format == "csv" else sys.stdout
        print(f"\nTable: {path}", file=stream)
    return 0


def _check_names_and_settings(
    name: str, settings: Settings, columns: tuple[str, ...]
) -> None:
    """Raises UserError for an unknown table or column, for neither a table nor a choice of
    runs, and for settings on records of a table that has none. name: of the table; "" for
    rows x tasks. columns: the names that columns= gives."""
    if not name and not settings.selects:
        keys = "task=, model=, method=, seed= or sweep="
        raise UserError(f"name a table ({', '.join(TABLES)}), or {keys} (--help)")
    if name:
        require_known("table", name, TABLES)
    needs_records = settings.selects or settings.against or columns
    if name in WITHOUT_RECORDS and needs_records:
        keys = "model=, task=, method=, seed=, sweep=, against= and columns="
        raise UserError(f"{name} has no records: {keys} choose nothing in it")
    for column in columns:
        require_known("column", column, [*FACTS])


def _show_leaderboard(settings: Settings, given_keys: set[str]) -> int:
    """Shows the leaderboard of other groups' result files, which are no records, and
    returns the exit status. given_keys: the names and keys that stand on the command
    line. Raises UserError for one that a leaderboard does not take."""
    # imported here, because it imports matplotlib, which tables do not need
    from analysis.leaderboard.command import show_leaderboard

    accepted = {"leaderboard", "format", "save", "output", "refresh", "debug"}
    if refused := sorted(given_keys - accepted):
        raise UserError(
            f"{refused[0]} is for records, and leaderboard= reads result files. "
            f"It takes {', '.join(sorted(accepted))}"
        )
    folder = Path(settings.output, "leaderboard") if settings.save else None
    return show_leaderboard(
        str(settings.leaderboard), settings.format, folder, settings.refresh
    )


def _no_table_error(name: str, ledger: Ledger, settings: Settings) -> UserError:
    """The error that says why there is no table: nothing has run, nothing has run to its
    end, or trials alone have. name: of the table; "" for rows x tasks."""
    folder = f"in {settings.output}/records"
    subject = name or "that"
    own_runs, _ = own_and_published(ledger)
    runs = runs_of_table(name, own_runs)
    if reasons := unfinished_notices(runs):
        message = f"no finished run {folder} for {subject}: {'; '.join(reasons)}"
        return UserError(message)
    if reasons := _trial_notes(runs):
        return UserError(f"no run {folder} that a table shows: {'; '.join(reasons)}")
    if settings.model and name:
        subject = f"{', '.join(split_names(settings.model))} for {subject}"
    hint = " (make demo)" if name == "demo" and not settings.selects else ""
    return UserError(f"no records of {subject} {folder} yet{hint}")


def _begun_notes(tables: list[Table], ledger: Ledger, settings: Settings) -> list[str]:
    """A note on runs of this machine that have begun and have no record (they stopped
    before the end, or train now), and are of a model and task in the tables; none if
    there is no such run."""
    ids = {run_id for table in tables for run_id in table.ids}
    rows = cast(Iterator[RunRow], iter(ledger))  # as `open_rows` reads them
    models_and_tasks = {(row.model, row.task) for row in rows if row.id in ids}
    runs = [
        run
        for run in begun_runs(settings.output)
        if (run.model, run.task) in models_and_tasks
    ]
    if not runs:
        return []
    note = f"Without {plural(len(runs), 'run')} that stopped before the end"
    command = "the same command" if len(runs) > 1 else runs[0].command
    line = f"{note} (or train now): {command} continues."
    if len(line) > NOTE_LENGTH:
        line = f"{note} (or train now): the same command continues."
    return [line]


def _trial_notes(runs: pd.DataFrame) -> list[str]:
    """Phrases that count the trials, which were evaluated on training rows and are in no
    table, and name the command that reads them: one phrase for runs of cross-validation
    (task.folds), one for those on held-out rows (task.holdout)."""
    trials = runs[runs.kind == "trial"]
    is_fold = trials.settings.map(lambda settings: settings.get("folds") is not None)
    reasons = list[str]()
    if folds := [*trials.id[is_fold.astype(bool)]]:
        count = plural(len(folds), "fold run")
        reasons.append(
            f"{count} (task.folds), from which vera-bench mistakes {folds[0]} lists "
            "labels that may be wrong"
        )
    count_of_holdout = len(trials) - len(folds)
    if count_of_holdout:
        count = plural(count_of_holdout, "trial")
        reasons.append(f"{count} (task.holdout), which vera-bench tune reads")
    return reasons


if __name__ == "__main__":
    entry_point(main)
