"""How the commands of this room open records, and the settings that select some."""

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from analysis.facts import model_of
from analysis.frame import mark_left_out, runs
from analysis.rows import RowMaker, RunRow
from runs.command import records
from runs.command.advice import did_you_mean
from runs.command.errors import UserError
from runs.command.parser import RecordSettings, setting
from runs.record.kept_rows import MakesRows
from runs.record.ledger import CONF, Ledger
from runs.record.override import split_seeds
from runs.record.schema import Record
from runs.record.sweeps import read_sweep, sweep_names


@dataclass(frozen=True)
class Selection(RecordSettings):
    """Settings of a command that shows a part of the records."""

    sweep: str | None = setting(None, "the runs of this sweep (last: the newest)")
    model: str | None = setting(None, "these models alone (a,b)")
    task: str | None = setting(None, "these tasks alone (a,b)")
    method: str | None = setting(None, "these rows of conf/method alone (a,b)")
    seed: str | None = setting(None, "these seeds alone (0,1 or range(20))")
    published: bool = setting(True, "also what the project has published")

    @property
    def selects(self) -> bool:
        """Whether the settings ask for a part of the records."""
        return any((self.sweep, self.model, self.task, self.method, self.seed))


@dataclass(frozen=True)
class VariantSelection(Selection):
    """Settings of a command that shows one variant of a row, or each."""

    all: bool = setting(False, "every variant of a row, such as other rates")


def split_names(text: str | None) -> tuple[str, ...]:
    """The names of a setting that takes several: "a,b" is ("a", "b")."""
    return tuple(name for name in (text or "").split(",") if name)


def row_name(argument: str) -> str:
    """The name that records have for a method as users type it: peft_ia3 for
    peft:IA3Config. Other names stay as they are."""
    name = argument.removeprefix("peft:")
    if name == argument:
        return argument
    return f"peft_{name.removesuffix('Config').lower()}"


def open_ledger(
    output: str,
    published: bool = True,
    make_row: MakesRows | None = None,
) -> Ledger:
    """The records of a folder and, unless `published` is False, the published ones.
    Warnings about unreadable records, and about a folder without records, go to stderr.
    make_row: what makes the ledger's entries from records, such as `RowMaker`; None
    keeps whole records."""
    ledger = records.open_ledger(output, published, make_row)
    # the origin of a published record is its study
    if "ours" not in ledger.origin.values():
        message = f"note: no records of your own in {output}/records yet"
        if ledger.records:
            message += ": only what the project has published is shown"
        print(message, file=sys.stderr)
    return ledger


def open_rows(settings: Selection, allows_unrun: bool = False) -> Ledger:
    """`open_selection` with a row of `frame.runs` in the place of each record, for
    commands that need no more: tens of thousands of rows fit into memory."""
    return open_selection(settings, RowMaker(), allows_unrun)


def open_selection(
    settings: Selection,
    make_row: MakesRows | None = None,
    allows_unrun: bool = False,
) -> Ledger:
    """The part of the records that the settings select. make_row: as in `open_ledger`.

    Raises UserError for a name that no record has. allows_unrun: whether a model or task
    of conf/ that has not run yet gets a note on stderr instead."""
    ledger = open_ledger(settings.output, settings.published, make_row)
    if settings.sweep:
        ledger = _select_sweep(ledger, settings.output, settings.sweep)
    rows = tuple(map(row_name, split_names(settings.method)))
    names_by_key = {
        "model": split_names(settings.model),
        "task": split_names(settings.task),
        "method": rows,
        "seed": split_seeds(settings.seed or ""),
    }
    # a setting without names selects every record
    selected = {key: names for key, names in names_by_key.items() if names}
    for key, names in selected.items():
        existing = {name for entry in ledger for name in _names(entry, key)}
        for name in names:
            if name in existing:
                continue
            message = f"no records of {key} {name!r}"
            if not (allows_unrun and _is_in_conf(key, name)):
                raise _unknown_name_error(f"{message}.", name, sorted(existing))
            print(
                f"note: {message} yet, so you see at most the paper's numbers",
                file=sys.stderr,
            )

    def is_selected(entry: Record | RunRow, origin: str) -> bool:
        return all(
            not _names(entry, key).isdisjoint(names) for key, names in selected.items()
        )

    return select_records(ledger, is_selected)


def _is_in_conf(key: str, name: str) -> bool:
    """Whether conf/ has a model or task of this name."""
    return key in ("model", "task") and (CONF / key / f"{name}.yaml").is_file()


def _names(entry: Record | RunRow, key: str) -> set[str]:
    """The names by which a setting (key: model, task, method or seed) selects a record, or
    the row that stands for it. A model from a folder has two: that of conf/model
    (encoder) and its own."""
    # A record's cell has the names of conf/, where a method is called a row. A RunRow
    # has them as conf_row and conf_model: its `row` and `model` are the names of tables.
    cell_key = "row" if key == "method" else key
    if isinstance(entry, RunRow):
        column = f"conf_{cell_key}" if cell_key in ("row", "model") else cell_key
        names = {str(getattr(entry, column))}
        return names | {entry.model} if key == "model" else names
    cell: Mapping[str, object] = entry["cell"]
    names = {str(cell[cell_key])}
    return names | {model_of(entry)} if key == "model" else names


def conf_rows(ledger: Ledger) -> list[str]:
    """The rows of conf/method that a ledger has records of."""
    return sorted({*itertools.chain(*(_names(entry, "method") for entry in ledger))})


def _unknown_name_error(message: str, name: str, existing: list[str]) -> UserError:
    """The error for a name that does not exist: the message, followed by a similar name
    that does exist or, without one, by the first 20 of them."""
    suggestion = did_you_mean(name, existing)
    if not suggestion:
        suggestion = f" There are: {', '.join(existing[:20]) or 'none'}"
    return UserError(f"{message}{suggestion}")


def _select_sweep(ledger: Ledger, output: str, name: str) -> Ledger:
    """The runs of a sweep that were done here and, to compare them with, the published
    runs of the same rows, models and tasks. name: of the sweep, or "last". Raises
    UserError for an unknown sweep, and notes on stderr how many of its runs have no
    record here."""
    names = sweep_names(output)  # the newest first
    if name == "last" and names:
        name = names[0]
    if name not in names:
        raise _unknown_name_error(f"no sweep {name!r} in {output}/sweeps.", name, names)
    ids = read_sweep(output, name)
    missing = sum(ledger.origin.get(run) != "ours" for run in ids)
    if missing:
        count = f"{missing} of the {len(ids)} runs"
        print(f"note: {count} of {name} have no record here yet", file=sys.stderr)

    def model_task_and_row(entry: Record | RunRow) -> tuple[str, ...]:
        if isinstance(entry, RunRow):
            return entry.conf_model, entry.task, entry.conf_row
        return tuple(entry["cell"][key] for key in ("model", "task", "row"))

    entries_of_sweep = [ledger.records[run] for run in ids if run in ledger.records]
    rows_of_sweep = {model_task_and_row(entry) for entry in entries_of_sweep}

    def is_selected(entry: Record | RunRow, origin: str) -> bool:
        if origin != "ours":
            return model_task_and_row(entry) in rows_of_sweep
        run = entry.id if isinstance(entry, RunRow) else entry["id"]
        return run in ids

    return select_records(ledger, is_selected)


def select_records(ledger: Ledger, keep: Callable[[Record, str], bool]) -> Ledger:
    """The ledger with the records for which `keep` is true, and without the measures
    (which figures are drawn from) that are of a dropped record. keep: takes a record, or
    the row that stands for it, and its origin ("ours", or the name of a study)."""
    records = {
        run: record
        for run, record in ledger.records.items()
        if keep(record, ledger.origin.get(run, "ours"))
    }
    # the second records of runs that were done here and are published, too
    published = {
        run: (study, record)
        for run, (study, record) in ledger.published.items()
        if keep(record, study)
    }
    dropped = ledger.records.keys() - records.keys()
    measures = {
        key: measure
        for key, measure in ledger.measures.items()
        if dropped.isdisjoint(run["id"] for run in measure["of"])
    }
    return replace(ledger, records=records, measures=measures, published=published)


def own_and_published(
    ledger: Ledger, frame: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of this machine, and the published ones, as two frames (`frame.runs`). A
    run that was done here and is published, too, is in both: in the first by the record
    of this machine, in the second by the published one. frame: `runs(ledger)`, if the
    caller has it already."""
    frame = runs(ledger) if frame is None else frame
    is_own = frame.origin == "ours"
    # published records of runs that were done here, too
    published_twins = Ledger(
        {run: record for run, (_, record) in ledger.published.items()},
        {run: study for run, (study, _) in ledger.published.items()},
    )
    twins = runs(published_twins)
    parts = [part for part in (frame[~is_own], twins) if len(part)]
    parts = parts or [twins]  # an empty frame still has the columns
    every_published = pd.concat(parts, ignore_index=True)
    # which runs are in cells depends on the other runs of the frame
    return mark_left_out(frame[is_own]), mark_left_out(every_published)
