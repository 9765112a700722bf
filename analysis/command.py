"""How the commands of this room open records, and the settings that choose among them."""

import sys
from collections.abc import Collection
from dataclasses import dataclass, replace

from runs import command
from runs.command import OfRecords, did_you_mean, setting
from runs.errors import UserError
from runs.record import Ledger, Record, read_sweep, sweep_names


@dataclass(frozen=True)
class Chosen(OfRecords):
    """Settings of a command that shows a part of the records."""

    sweep: str | None = setting(None, "the runs of this sweep, by its name (last: the newest)")
    model: str | None = setting(None, "these models alone (a,b)")
    task: str | None = setting(None, "these tasks alone (a,b)")
    method: str | None = setting(None, "these rows of conf/method alone (a,b)")
    seed: str | None = setting(None, "these seeds alone (0,1)")
    published: bool = setting(True, "below your own runs, what the project has published")

    @property
    def chooses(self) -> bool:
        """Whether a part is asked for."""
        return any((self.sweep, self.model, self.task, self.method, self.seed))


@dataclass(frozen=True)
class OfVariants(Chosen):
    """Settings of a command that shows one variant of a row, or each."""

    all: bool = setting(False, "every variant of a row (other rates, other data), not one alone")


def words(text: str | None) -> tuple[str, ...]:
    """The names of a setting that takes several."""
    return tuple(name for name in (text or "").split(",") if name)


def row_name(word: str) -> str:
    """The name that records have for the row of a word: peft_ia3 for peft:IA3Config."""
    name = word.removeprefix("peft:")
    return word if name == word else f"peft_{name.removesuffix('Config').lower()}"


def open_ledger(output: str, published: bool = True) -> Ledger:
    """The records of a folder and, unless switched off, the published ones. Warnings about unreadable
    records, and about a folder without records, go to stderr."""
    ledger = command.open_ledger(output, published)
    if "ours" not in ledger.origin.values():
        others = ": only what the project has published is shown" if ledger.records else ""
        print(f"note: no records of your own in {output}/records yet{others}", file=sys.stderr)
    return ledger


def open_chosen(settings: Chosen) -> Ledger:
    """The part of the records that the settings choose. Raises UserError for a name that no record has."""
    ledger = open_ledger(settings.output, settings.published)
    if settings.sweep:
        ledger = _of_sweep(ledger, settings.output, settings.sweep)
    of = {key: words(getattr(settings, key)) for key in ("model", "task", "seed")}
    of["row"] = tuple(map(row_name, words(settings.method)))
    for key, names in of.items():
        existing = sorted({str(record["cell"][key]) for record in ledger})
        for name in names:
            if name not in existing:
                near = did_you_mean(name, existing) or f" There are: {', '.join(existing) or 'none'}"
                raise UserError(f"no records of {'method' if key == 'row' else key} {name!r}.{near}")
    return having(ledger, **of)


def _of_sweep(ledger: Ledger, output: str, name: str) -> Ledger:
    """The runs of a sweep, and the published ones of the same models, tasks and rows."""
    names = sweep_names(output)
    if name == "last" and names:
        name = names[0]
    if name not in names:
        near = did_you_mean(name, names) or f" There are: {', '.join(names[:20]) or 'none'}"
        raise UserError(f"no sweep {name!r} in {output}/sweeps.{near}")
    try:
        ids = read_sweep(output, name)
    except ValueError as error:
        raise UserError(str(error)) from None
    own, published = split(ledger)
    here = having(own, ids=ids)
    # Where none of its runs has run here, the sweep consists of published records.
    sweep = here if here.records else having(ledger, ids=ids)
    if missing := len(ids) - len(here.records):
        print(f"note: {missing} of the {len(ids)} runs of {name} have no record here yet", file=sys.stderr)
    alike = {key: {str(record["cell"][key]) for record in sweep} for key in ("model", "task", "row")}
    others = having(published, None if sweep.records else (), **alike)
    both = {i: (others.origin[i], record) for i, record in others.records.items() if i in sweep.records}
    origin = others.origin | {i: sweep.origin[i] for i in sweep.records}
    return replace(sweep, records=others.records | sweep.records, origin=origin, published=both)


# --- parts of a ledger


def split(ledger: Ledger) -> tuple[Ledger, Ledger]:
    """The records of this machine, and the published ones. A run that was done here and is published, too, is
    in both, with the record of each."""
    ours = {i: record for i, record in ledger.records.items() if ledger.origin.get(i, "ours") == "ours"}
    others = {i: record for i, record in ledger.records.items() if i not in ours}
    others |= {i: record for i, (_, record) in ledger.published.items()}
    origin = ledger.origin | {i: study for i, (study, _) in ledger.published.items()}
    measures: tuple[dict[str, Record], dict[str, Record]] = {}, {}
    for i, measure in ledger.measures.items():
        measures[ledger.measured.get(i, "ours") != "ours"][i] = measure
    own = Ledger(ours, dict.fromkeys(ours, "ours"), [], measures[0])
    return own, Ledger(others, {i: origin[i] for i in others}, [], measures[1])


def having(ledger: Ledger, ids: Collection[str] | None = None, **names: Collection[str]) -> Ledger:
    """The records of the runs with these ids (None: of all), whose cell has one of these names of its model,
    task, row or seed (empty: of all)."""

    def has(record: Record) -> bool:
        of_ids = ids is None or record["id"] in ids
        return of_ids and all(str(record["cell"][key]) in of for key, of in names.items() if of)

    records = {i: record for i, record in ledger.records.items() if has(record)}
    also_published = {i: one for i, one in ledger.published.items() if has(one[1])}
    measures = {
        i: measure
        for i, measure in ledger.measures.items()
        if all(one["id"] in records or one["id"] not in ledger.records for one in measure["of"])
    }
    return replace(ledger, records=records, measures=measures, published=also_published)
