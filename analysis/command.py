"""How the commands of this room open records, and the settings that choose among
them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.frame import chosen, runs
from runs import command
from runs.command import OfRecords, did_you_mean, setting
from runs.errors import UserError
from runs.record import Ledger, Record, read_sweep, sweep_names


@dataclass(frozen=True)
class Chosen(OfRecords):
    """Settings of a command that shows a part of the records."""

    sweep: str | None = setting(
        None, "the runs of this sweep, by its name (last: the newest)"
    )
    model: str | None = setting(None, "these models alone (a,b)")
    task: str | None = setting(None, "these tasks alone (a,b)")
    method: str | None = setting(None, "these rows of conf/method alone (a,b)")
    seed: str | None = setting(None, "these seeds alone (0,1)")
    published: bool = setting(
        True, "below your own runs, what the project has published"
    )

    @property
    def chooses(self) -> bool:
        """Whether a part is asked for."""
        return any((self.sweep, self.model, self.task, self.method, self.seed))


@dataclass(frozen=True)
class OfVariants(Chosen):
    """Settings of a command that shows one variant of a row, or each."""

    all: bool = setting(
        False, "every variant of a row (other rates, other data), not one alone"
    )


def words(text: str | None) -> tuple[str, ...]:
    """The names of a setting that takes several."""
    return tuple(name for name in (text or "").split(",") if name)


def row_name(word: str) -> str:
    """The name that records have for the row of a word: peft_ia3 for peft:IA3Config."""
    name = word.removeprefix("peft:")
    return word if name == word else f"peft_{name.removesuffix('Config').lower()}"


def open_ledger(output: str, published: bool = True) -> Ledger:
    """The records of a folder and, unless switched off, the published ones. Warnings
    about unreadable records, and about a folder without records, go to stderr."""
    ledger = command.open_ledger(output, published)
    if "ours" not in ledger.origin.values():
        others = (
            ": only what the project has published is shown" if ledger.records else ""
        )
        print(
            f"note: no records of your own in {output}/records yet{others}",
            file=sys.stderr,
        )
    return ledger


def open_chosen(settings: Chosen) -> Ledger:
    """The part of the records that the settings choose. Raises UserError for a name
    that no record has."""
    ledger = open_ledger(settings.output, settings.published)
    if settings.sweep:
        ledger = _of_sweep(ledger, settings.output, settings.sweep)
    wanted = {key: words(getattr(settings, key)) for key in ("model", "task", "seed")}
    wanted["row"] = tuple(map(row_name, words(settings.method)))
    for key, names in wanted.items():
        existing = sorted({str(record["cell"][key]) for record in ledger})
        setting_name = "method" if key == "row" else key
        for name in names:
            if name not in existing:
                hint = _near_or_all(name, existing)
                raise UserError(f"no records of {setting_name} {name!r}.{hint}")

    def is_wanted(record: Record, origin: str) -> bool:
        cell = record["cell"]
        return all(str(cell[key]) in names for key, names in wanted.items() if names)

    return only(ledger, is_wanted)


def _near_or_all(name: str, existing: Sequence[str]) -> str:
    """The end of a refusal: the name that was probably meant, or those that exist."""
    near = did_you_mean(name, existing)
    return near or f" There are: {', '.join(existing[:20]) or 'none'}"


def _of_sweep(ledger: Ledger, output: str, name: str) -> Ledger:
    """The runs of a sweep that were done here, and the published ones of the same rows,
    models and tasks."""
    names = sweep_names(output)
    if name == "last" and names:
        name = names[0]
    if name not in names:
        hint = _near_or_all(name, names)
        raise UserError(f"no sweep {name!r} in {output}/sweeps.{hint}")
    ids = read_sweep(output, name)
    if missing := sum(ledger.origin.get(run) != "ours" for run in ids):
        print(
            f"note: {missing} of the {len(ids)} runs of {name} have no record here yet",
            file=sys.stderr,
        )

    def cell(record: Record) -> list[Any]:
        return [record["cell"][key] for key in ("model", "task", "row")]

    alike = [cell(ledger.records[run]) for run in ids if run in ledger.records]
    return only(
        ledger,
        lambda one, origin: (
            one["id"] in ids if origin == "ours" else cell(one) in alike
        ),
    )


def only(ledger: Ledger, keep: Callable[[Record, str], bool]) -> Ledger:
    """The records that `keep` takes, by what they are and where from ("ours", or a
    study), with the measures of no other."""
    records = {
        i: one
        for i, one in ledger.records.items()
        if keep(one, ledger.origin.get(i, "ours"))
    }
    published = {
        i: (study, one)
        for i, (study, one) in ledger.published.items()
        if keep(one, study)
    }
    others = ledger.records.keys() - records.keys()
    measures = {
        i: m
        for i, m in ledger.measures.items()
        if not others & {one["id"] for one in m["of"]}
    }
    return replace(ledger, records=records, measures=measures, published=published)


def own_and_published(
    ledger: Ledger, frame: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of this machine, and the published ones. A run that was done here and is
    published, too, is in both, with the record of each. frame: the ledger's runs, where
    they are at hand."""
    frame = runs(ledger) if frame is None else frame
    own, origin = (
        frame.origin == "ours",
        {run: study for run, (study, _) in ledger.published.items()},
    )
    twice = runs(
        Ledger({run: one for run, (_, one) in ledger.published.items()}, origin)
    )
    others = [of for of in (frame[~own], twice) if len(of)] or [twice]
    return chosen(frame[own]), chosen(pd.concat(others, ignore_index=True))
