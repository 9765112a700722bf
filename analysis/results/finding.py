"""A finding of the paper beside our runs: which runs, which numbers, and whether they agree."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.inference import FIRM_PAIRS, Interval
from analysis.paper import GLUE, recipes
from analysis.statistics import middle

#: Whether a finding agrees, in a word.
WORDS = {True: "agrees", False: "does not agree", None: "undecided"}


@dataclass(frozen=True)
class Side:
    """Runs of one row: their ids by seed, the median and the mean of the number that their table reports,
    their epochs, and in how many of `several` (those with more than one epoch) the best one is the last."""

    label: str
    model_label: str
    task_label: str
    ids: tuple[str, ...]
    median: float = math.nan
    mean: float = math.nan
    parameters: int = 0
    head_parameters: int = 0
    epochs: tuple[int, ...] = ()
    several: int = 0
    best_is_last: int = 0

    @property
    def rising(self) -> bool:
        """Whether the best epoch is the last one in most runs."""
        return 2 * self.best_is_last > self.several


def side(runs: pd.DataFrame) -> Side:
    """Of the runs of one row (`frame.reported`)."""
    runs = runs.sort_values(["seed", "id"])
    first, several = runs.iloc[0], runs[runs.evaluations > 1]
    return Side(
        *(first.label, first.model_label, first.task_label, tuple(runs.id)),
        middle(runs.number),
        float(runs.number.mean()),
        int(first.parameters),
        int(first.head_parameters),
        tuple(sorted(set(runs.epochs))),
        len(several),
        int((several.best_epoch == several.last_epoch).sum()),
    )


@dataclass(frozen=True)
class Compared:
    """X against Y in pairs of runs of one seed, such that more is better: the mean difference, its interval
    by pair and unpaired, and the answer of the rule. convention: of LoRA's alpha, where there are two."""

    x: Side
    y: Side
    values: tuple[tuple[float, float], ...]
    difference: float
    paired: Interval
    unpaired: Interval
    agrees: bool | None
    convention: str = ""

    @property
    def differences(self) -> list[float]:
        """Of each pair; of two infinite numbers 0."""
        return [0.0 if x == y else x - y for x, y in self.values]


@dataclass
class Finding:
    """A finding of the paper on one model and task.

    source: its table or figure, with the paper's numbers. kind: which numbers decide it: those of `compared`
    (near, above, ranks) or `numbers` (query, layers, similarity, fit). names: of the sides.
    epochs: ours. counts: of seeds, or of what `unit` says. holds: whether it holds in each run, or in each
    pair. agrees: by the epoch that the table reports. chance: the metric of chance, where no row is above
    it. sides: the runs behind it. crossfit: the same by cross-fitted epochs."""

    finding: str
    source: str
    kind: str
    model: str
    task: str
    model_label: str
    task_label: str
    holds: tuple[bool, ...]
    agrees: bool | None
    pairs: int
    sides: tuple[Side, ...] = ()
    compared: tuple[Compared | None, ...] = ()
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    unit: str = "seed"
    chance: float = math.nan
    numbers: dict[str, Any] = field(default_factory=dict)
    paper_epochs: dict[str, int] = field(default_factory=dict)
    crossfit: "Finding | None" = None

    @property
    def firm(self) -> bool:
        """Whether it rests on enough pairs or runs."""
        return self.pairs >= FIRM_PAIRS

    @property
    def verdict(self) -> bool | None:
        """Whether our runs agree however the epoch is chosen. None: undecided, also where the reported and
        the cross-fitted epoch say different things."""
        return self.agrees if self.crossfit is None or self.crossfit.agrees is self.agrees else None

    @property
    def epochs(self) -> list[int]:
        """That its runs were trained for."""
        return sorted({epochs for one in self.sides for epochs in one.epochs})


def paper_epochs(family: str, task: str) -> dict[str, int]:
    """How long the paper trains VeRA on a task, by the size of its model where that matters."""
    if task in GLUE:
        vera, column = recipes()["glue"]["vera"], tuple(GLUE).index(task)
        sizes = {"BASE": "roberta-base", "LARGE": "roberta-large"}
        return {size: vera[model]["epochs"][column] for size, model in sizes.items()}
    return {"": recipes()[family]["common"]["epochs"]} if family in ("e2e", "images") else {}


def frame(found: Iterable[Finding]) -> pd.DataFrame:
    """The findings as a frame, a row each: their fields, the words of the verdict, of the reported and of the
    cross-fitted epoch ("": none), the difference with its intervals (of the first comparison), and the run
    ids."""
    lines = []
    for one in found:
        first = next((of for of in one.compared if of), None)
        intervals: Any = (
            ((of or (math.nan, math.nan)) for of in (first.paired, first.unpaired)) if first else ()
        )
        bounds = [bound for interval in intervals for bound in interval] or [math.nan] * 4
        names = ("low", "high", "unpaired_low", "unpaired_high")
        words = {"word": WORDS[one.verdict], "reported": WORDS[one.agrees]}
        words["crossfit_word"] = WORDS[one.crossfit.agrees] if one.crossfit else ""
        ids = tuple(dict.fromkeys(run for of in one.sides for run in of.ids))
        about = {"firm": one.firm, "epochs": tuple(one.epochs), "ids": ids}
        difference = {"difference": first.difference if first else math.nan}
        lines.append(vars(one) | words | about | difference | dict(zip(names, bounds, strict=True)))
    return pd.DataFrame(lines)
