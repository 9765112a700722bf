"""From records to cells: one (model, row, task) over its seeds, with the median, the spread, and what is
missing."""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from runs.record import (
    CONF,
    FINISHED,
    Record,
    cell_id,
    epoch_of_table,
    is_trial,
    lora_scaling,
    one_each,
    protocol,
    row_label,
    sample_deviation,
    seed_value,
    text_score,
)

Key = tuple[str, str, str]  # model, row, task


@dataclass
class Cell:
    """The records of one cell, one for each seed, and how many seeds a complete cell has.

    Values are as tables print them, most of them in percent. A seed that predicts one class or
    diverged counts like any other: a diverged one by the epoch that the table reports of those before it
    diverged, or by the metric's worst value where it had none. The value of a seed that finished without its
    metric is NaN, and so are statistics over it."""

    records: list[Record]
    wanted: int
    select: str = "paper"
    left_out: int = 0  # records of the same row with other settings
    again: tuple[str, ...] = ()  # ids of further records of the same settings and seed
    problems: list[str] = field(default_factory=list)  # why other records of the row are left out, in words

    @property
    def ids(self) -> tuple[str, ...]:
        """The run ids of its records."""
        return tuple(str(record["id"]) for record in self.records)

    @property
    def seeds(self) -> int:
        return len(self.records)

    @property
    def seed_numbers(self) -> list[int]:
        return [record["cell"]["seed"] for record in self.records]

    @property
    def complete(self) -> bool:
        """Whether it has as many seeds with a known value as its table wants."""
        return self.seeds - self.unknown >= self.wanted

    @property
    def unknown(self) -> int:
        """How many of its seeds finished without the metric."""
        return sum(math.isnan(value) for value in self.values())

    @property
    def count(self) -> str:
        """How many seeds have a value, of those that are wanted: "3/5"."""
        return f"{self.seeds - self.unknown}/{self.wanted}"

    @property
    def diverged(self) -> int:
        """How many of its seeds diverged."""
        return sum(record["status"] == "diverged" for record in self.records)

    def values(self, epoch: str | None = None, select: str | None = None) -> list[float]:
        """The metric of each seed, in the unit of the table; NaN for a run that finished without it.

        epoch: best or last; by default the one that the task's table reports. select: paper or crossfit; by
        default the cell's own."""
        scale, epoch = self.records[0]["result"]["scale"], epoch or self.records[0]["result"]["reported"]
        return [scale * seed_value(record, epoch, select or self.select) for record in self.records]

    def median(self, epoch: str | None = None) -> float:
        """Of the seeds' values; NaN where one of them is not known."""
        values = self.values(epoch)
        return math.nan if any(map(math.isnan, values)) else statistics.median(values)

    def mean(self) -> float:
        """Of the seeds' values; NaN where one of them is not known."""
        return statistics.fmean(self.values())

    def spread(self) -> float | None:
        """Sample standard deviation over the seeds."""
        return sample_deviation(self.values())

    def scores(self, key: str, which: str = "last", variant: str | None = None) -> dict[int, float]:
        """A score of the texts of each seed, by seed; without a seed whose texts have no such score (no
        Java). A seed that diverged before it had texts has 0.

        which: the last or the best epoch. variant: of decoding; by default the protocol's, which is the
        first."""
        scores = {r["cell"]["seed"]: text_score(r, key, which, variant) for r in self.records}
        return {seed: score for seed, score in scores.items() if score is not None}

    def cost(self, key: str) -> float | None:
        """The median of a number of the cost, over its seeds whose record has it; None where none has. A
        diverged seed stopped early, and counts only where all diverged."""
        done = [r for r in self.records if r["status"] == "done"] or self.records
        known = [r["cost"][key] for r in done if r["cost"].get(key) is not None]
        return statistics.median(known) if known else None

    @property
    def seconds(self) -> float:
        """Of a run; the median over the seeds, as of `cost`."""
        done = [r for r in self.records if r["status"] == "done"] or self.records
        return statistics.median(map(run_seconds, done))

    @property
    def parameters(self) -> int:
        """Trained parameters, without the head."""
        return int(self.records[0]["parameters"]["adapter"])

    @property
    def head_parameters(self) -> int:
        """Trained parameters of the head."""
        return int(self.records[0]["parameters"]["head"])

    @property
    def kind(self) -> str:
        """The method, whatever its row is called."""
        return str(self.records[0]["config"]["method"]["kind"])

    @property
    def label(self) -> str:
        return label_of(self.records[0])


def label_of(record: Record) -> str:
    """The name of a record's method in tables. It says how LoRA's alpha was chosen, which the labels of older
    records do not, and spells a class of peft as every table does."""
    by_config = lora_scaling(record["config"]) or record["config"]["method"]["kind"] == "peft"
    return row_label(record["config"]) if by_config else str(record["label"]["row"])


def row_of(record: Record) -> str:
    """The row of tables that a record belongs to. LoRA of another rank than its recipe's is one row with a
    constant alpha and another with a proportional one, however alpha was set."""
    row = str(record["cell"]["row"])
    return f"{row}_proportional" if lora_scaling(record["config"]) == "proportional" else row


def reported_epoch(record: Record) -> str:
    """best or last: the epoch that a table reports of a record."""
    return epoch_of_table(record["config"]["train"], record["result"]["reported"])


def measured_on(record: Record) -> tuple[Any, ...]:
    """What a record's number was measured on, and how: the data, how many rows of them, the texts that were
    decoded, the protocol, and whether an epoch was chosen. Numbers that differ in it are not compared."""
    items, chosen = record["config"]["task"].get("items"), reported_epoch(record) == "best"
    return protocol(record), chosen, items, *sorted(record["data"].items())


def over_shared_seeds(cells: Collection[Cell]) -> list[Cell]:
    """The same cells, one or more, with the seeds that all of them have, measured on the same; which may be
    none."""
    seeds = set.intersection(
        *({(record["cell"]["seed"], measured_on(record)) for record in cell.records} for cell in cells)
    )
    return [
        replace(cell, records=[r for r in cell.records if (r["cell"]["seed"], measured_on(r)) in seeds])
        for cell in cells
    ]


def run_seconds(record: Record) -> float:
    """The seconds that a run took to train, to evaluate and to decode."""
    return float(sum(record["cost"].get(f"{part}_seconds", 0.0) for part in ("train", "evaluate", "decode")))


def is_of_demo(record: Record) -> bool:
    """Whether a record is a finished run of the demo's task, and no trial."""
    finished = record["status"] in FINISHED and not is_trial(record["config"])
    return finished and record["cell"]["task"] == "reviews"


def by_rows(records: Iterable[Record]) -> dict[tuple[int, int], list[Record]]:
    """Records by their numbers of training and dev rows (task.train_rows and dev_rows; 0: all), in order."""
    groups: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in records:
        task = record["config"]["task"]
        groups[task.get("train_rows") or 0, task.get("dev_rows") or 0].append(record)
    return dict(sorted(groups.items()))


def nearest(variants: Iterable[list[Record]]) -> list[Record]:
    """The variant of a row that a table shows: of the newest protocol, with the fewest deviations, by a
    method's recipe and not by a study's, and then with the most runs."""

    def order(variant: list[Record]) -> tuple[Any, ...]:
        first, newest = variant[0], max(record["id"] for record in variant)
        of_method = _of_method(str(first["recipe"]["name"]))
        return protocol(first), -len(first["deviations"]), of_method, len(variant), newest

    return max(variants, key=order)


@cache
def _of_method(recipe: str) -> bool:
    """Whether a recipe is that of a method, such as vera/minilm, and not one that a study made for its rows:
    ranks/minilm."""
    return (CONF / "method" / f"{recipe.partition('/')[0]}.yaml").is_file()


def variants_of(records: Iterable[Record]) -> dict[Key, dict[str, list[Record]]]:
    """Finished records by model, row and task, and there by their cell ids; without trials."""
    groups: dict[Key, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["status"] in ("done", "diverged") and not is_trial(record["config"]):
            cell = record["cell"]
            groups[cell["model"], row_of(record), cell["task"]][cell_id(record)].append(record)
    return groups


def cells(records: Iterable[Record], wanted: int, select: str = "paper") -> dict[Key, Cell]:
    """Groups finished records into cells.

    Runs with other settings (a learning rate of their own, other data) or of another protocol are never in
    one cell: of a row's variants `nearest` is shown. Trials, which train.max_steps stopped early or which
    were judged on training rows (task.holdout), are no results. A second run of one seed counts nowhere; the
    cell names it."""
    grouped = {}
    for key, variants in variants_of(records).items():
        chosen = nearest(variants.values())
        others = sum(map(len, variants.values())) - len(chosen)
        kept, again = one_each(chosen)
        problems, newest = [], protocol(chosen[0])
        if older := {protocol(variant[0]) for variant in variants.values()} - {newest}:
            versions = ", ".join(map(str, sorted(older)))
            problems.append(
                f"{key[1]} on {key[2]}: runs of protocol {versions} are not mixed with those of {newest}."
            )
        grouped[key] = Cell(kept, wanted, select, others, tuple(str(r["id"]) for r in again), problems)
    return grouped
