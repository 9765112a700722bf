"""From records to cells: one (model, row, task) over its seeds, with the median, the spread, and what is
missing."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from runs.record import (
    Ledger,
    Metric,
    Record,
    best_and_last,
    cell_id,
    is_trial,
    lora_scaling,
    protocol,
    row_label,
)


@dataclass
class Cell:
    """The records of one cell, a seed each, and how many seeds a complete cell has.

    Metrics are in percent, as the papers print them. A collapsed or diverged seed counts like any other: a
    diverged one by its best epoch before it diverged, or 0 where it had none. One that finished without its
    metric is not a number, and so is whatever is made of it."""

    records: list[Record]
    wanted: int
    select: str = "paper"
    left_out: int = 0  # records of the same row with other settings
    again: tuple[str, ...] = ()  # ids of records of the same settings and seed as one that is here
    # Records that are no part of it and should have been, in words
    problems: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> int:
        return len(self.records)

    @property
    def complete(self) -> bool:
        """Whether it has as many seeds with a known value as its table wants."""
        return self.seeds - self.unknown >= self.wanted

    @property
    def unknown(self) -> int:
        """How many of its seeds finished without the metric."""
        return sum(math.isnan(value) for value in self.values())

    @property
    def collapsed(self) -> list[int]:
        """Seeds whose metric is the same at every epoch, to the bit: the model says one thing of every
        row."""
        curves = {
            r["cell"]["seed"]: r["curve"].get("metric") or [] for r in self.records if r["status"] == "done"
        }
        return sorted(seed for seed, metrics in curves.items() if len(metrics) > 1 and len(set(metrics)) == 1)

    @property
    def diverged(self) -> int:
        """How many of its seeds diverged."""
        return sum(record["status"] == "diverged" for record in self.records)

    def values(self, epoch: str | None = None) -> list[float]:
        """The metric of each seed, in the unit of the table, at the epoch that its task's table reports or at
        this one, best or last; not a number for a run that finished without it."""
        metric, epoch = Metric.of_record(self.records[0]), epoch or self.records[0]["result"]["reported"]
        values = []
        for record in self.records:
            value = best_and_last(record, self.select).get(epoch)
            if value is not None and _is_number(value):
                values.append(metric.scale * value)
            else:
                values.append(metric.worst if record["status"] == "diverged" else math.nan)
        return values

    def median(self, epoch: str | None = None) -> float:
        """Of the seeds' values; NaN where one of them is not known."""
        values = self.values(epoch)
        return math.nan if any(map(math.isnan, values)) else statistics.median(values)

    def mean(self) -> float:
        """Not a number where a seed's is none, as the median."""
        return statistics.fmean(self.values())

    def spread(self) -> float | None:
        """Sample standard deviation over the seeds (sample_deviation)."""
        return sample_deviation(self.values())

    def scores(self, key: str, which: str = "last", variant: str | None = None) -> list[float]:
        """A score of the texts of each seed: of the last or the best epoch, by a variant of decoding (the
        protocol's).

        0 for a seed that diverged; left out for one whose texts were not scored by it (no Java).
        """
        found = []
        for record in self.records:
            entries = [e for e in (record.get("texts") or {}).get("scores", []) if e["which"] == which]
            entry = next((e for e in entries if variant in (None, e["variant"])), {key: 0.0})
            if entry.get(key) is not None:
                found.append(float(entry[key]))
        return found

    def cost(self, key: str) -> float:
        """The median over its seeds of a number of their cost; 0 where a record lacks it."""
        return statistics.median(record["cost"].get(key, 0.0) for record in self.records)

    @property
    def seconds(self) -> float:
        """Of a run: training, evaluation and decoding, each the median over the seeds."""
        return sum(self.cost(f"{part}_seconds") for part in ("train", "evaluate", "decode"))

    @property
    def parameters(self) -> int:
        """Trained, without the head."""
        return int(self.records[0]["parameters"]["adapter"])

    @property
    def kind(self) -> str:
        """The method's own name, whatever its row is called."""
        return str(self.records[0]["config"]["method"]["kind"])

    @property
    def label(self) -> str:
        return label_of(self.records[0])


def label_of(record: Record) -> str:
    """A record's method as tables name it: with how alpha came about, which older records' labels leave
    out."""
    return row_label(record["config"]) if lora_scaling(record["config"]) else str(record["label"]["row"])


def row_of(record: Record) -> str:
    """The row of tables that a record belongs to: LoRA of another rank than its recipe's is one row with a
    constant alpha and another with a proportional one, whichever way alpha was given."""
    row = str(record["cell"]["row"])
    return f"{row}_proportional" if lora_scaling(record["config"]) == "proportional" else row


Key = tuple[str, str, str]  # model, row, task


def sample_deviation(values: Collection[float]) -> float | None:
    """Sample standard deviation; None for a single value, and where a value is not finite: the perplexity of a
    diverged run is infinite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def over_shared_seeds(found: Iterable[Cell]) -> list[Cell]:
    """The same cells, one or more, with the seeds that all of them have, which may be none."""
    found = list(found)
    seeds = set.intersection(*({record["cell"]["seed"] for record in cell.records} for cell in found))
    return [replace(cell, records=[r for r in cell.records if r["cell"]["seed"] in seeds]) for cell in found]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def ids(records: Iterable[Record]) -> list[str]:
    """Their run ids."""
    return [str(record["id"]) for record in records]


def published(ledger: Ledger, runs: Iterable[str]) -> list[str]:
    """Which of these run ids (or measures) come from published studies, in words; nothing where all ran on
    this machine."""
    names = set(runs)
    known = [name for name in names if name in ledger.origin]
    studies = Counter(ledger.origin[name] for name in known if ledger.origin[name] != "ours")
    if not studies:
        return []
    told = ", ".join(f"{count} of {study}" for study, count in sorted(studies.items()))
    count = f"{studies.total()} of the {len(known)} runs"
    return [
        f"{count} were not done here, but are records that the project has published in runs/records: {told}."
    ]


def one_each(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """One record for each seed, of several the one that deviates least and then of the first id; and the
    others."""
    kept: dict[int, Record] = {}
    again = []
    for record in sorted(records, key=lambda r: (r["cell"]["seed"], len(r["deviations"]), r["id"])):
        if kept.setdefault(record["cell"]["seed"], record) is not record:
            again.append(record)
    return list(kept.values()), again


def nearest(variants: Iterable[list[Record]]) -> list[Record]:
    """Of the variants of a row the one that a table shows: of the newest protocol, with the fewest
    deviations, and then with the most runs."""
    return max(
        variants,
        key=lambda v: (protocol(v[0]), -len(v[0]["deviations"]), len(v), max(r["id"] for r in v)),
    )


def variants_of(records: Iterable[Record]) -> dict["Key", dict[str, list[Record]]]:
    """Finished records by model, row and task, and there by their cell ids; without trials."""
    groups: dict[Key, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["status"] in ("done", "diverged") and not is_trial(record["config"]):
            cell = record["cell"]
            groups[cell["model"], row_of(record), cell["task"]][cell_id(record)].append(record)
    return groups


def cells(records: Iterable[Record], wanted: int, select: str = "paper") -> dict[Key, Cell]:
    """Groups finished records into cells. Runs with other settings (a learning rate of their own, other data)
    are never mixed with a cell's, and those of an older protocol neither: the newest protocol counts, of its
    settings those that follow the recipe, and among equals those with more seeds. A run that was stopped
    early by train.max_steps, or judged on training rows (task.holdout), was a trial, and is no result. A
    second run of one seed counts nowhere; the cell names it."""
    found = {}
    for key, variants in variants_of(records).items():
        chosen = nearest(variants.values())
        others = sum(map(len, variants.values())) - len(chosen)
        kept, again = one_each(chosen)
        problems = []
        if older := {protocol(r) for v in variants.values() for r in v} - {protocol(chosen[0])}:
            versions, newest = ", ".join(map(str, sorted(older))), protocol(chosen[0])
            problems.append(
                f"{key[1]} on {key[2]}: runs of protocol {versions} are not mixed with those of {newest}."
            )
        found[key] = Cell(kept, wanted, select, others, tuple(ids(again)), problems)
    return found
