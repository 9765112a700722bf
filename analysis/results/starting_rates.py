"""A starting rule for learning rates: LoRA's rate on a task, times a method's usual ratio
to LoRA. From the published trials it finds the ratios (conf/rates.yaml, which
train.lr=auto reads) and how much the rule loses (docs/starting_rates.md)."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis.figures.figure import count_range
from analysis.frame import reported
from analysis.inference import Mean, mean_of
from analysis.results.rates import SEARCH_COLUMNS
from analysis.results.templates import rendered

REFERENCE = "lora"
#: A search of fewer rates says little about where the best one is.
FEWEST_RATES = 3
#: Of a ratio: it tells 12.5 from 12, and more would be false precision.
DIGITS = 3

#: What the trials of one search share: their rows are the same.
Place = tuple[object, ...]


@dataclass(frozen=True)
class Search:
    """The trials that searched one row's rate in one place.

    scores: by rate (index) and seed (columns), such that more is better; NaN where
    nothing was tried. parameters, steps, train_rows: of a trial."""

    row: str
    label: str
    model: str
    task: str
    task_label: str
    place: Place
    scores: pd.DataFrame
    parameters: int
    steps: int
    train_rows: int

    @cached_property
    def best_rate(self) -> float:
        """The rate with the best mean over seeds."""
        return float(self.scores.mean(axis=1).idxmax())

    @property
    def can_be_scored(self) -> bool:
        """Whether every rate has two seeds or more, so that no score chooses itself."""
        return self.scores.shape[1] > 1 and not self.scores.isna().to_numpy().any()

    def regret(self, rate: float) -> float:
        """How many points a rate loses to the search's own. Each seed is scored at the
        rate that is best on all other seeds, minus its score at the tried rate that is
        nearest to `rate`."""
        rates = np.log10(self.scores.index.to_numpy(float))
        nearest = int(np.abs(rates - math.log10(rate)).argmin())
        values = self.scores.to_numpy(float)
        losses = list[float]()
        for seed in range(values.shape[1]):
            chosen = np.delete(values, seed, axis=1).mean(axis=1).argmax()
            losses.append(float(values[chosen, seed] - values[nearest, seed]))
        return statistics.fmean(losses)


@dataclass(frozen=True)
class Ratio:
    """A row's rates over LoRA's. by_place: of each search beside one of LoRA's."""

    row: str
    label: str
    by_place: Mapping[Place, float]
    searches: Sequence[Search]

    @property
    def median(self) -> float:
        """The middle ratio, geometric where there are two."""
        return _geometric_median(self.by_place.values())

    @property
    def range_text(self) -> str:
        """The smallest and the largest ratio; "-" for one search."""
        if len(self.searches) == 1:
            return "-"
        low, high = min(self.by_place.values()), max(self.by_place.values())
        return f"{short_number(low)} to {short_number(high)}"

    @property
    def parameters(self) -> str:
        """The smallest and the largest count of its trials: 7,680 to 43,008."""
        return count_range([search.parameters for search in self.searches])

    @property
    def steps(self) -> str:
        """The fewest and the most steps of its trials."""
        return count_range([search.steps for search in self.searches])


@dataclass(frozen=True)
class StartingRule:
    """The rule, and what it loses on tasks that did not make it.

    loss: over rows, each averaged over its tasks. loss_by_task: over the rows of a task.
    loss_without_lora: where the median of a row's own rates on other tasks is taken
    instead, which needs no rate of LoRA's. compared: how many rows were scored.
    train_rows: on how many rows their trials trained."""

    ratios: Sequence[Ratio]
    loss: Mean
    loss_by_task: Mapping[str, Mean]
    loss_without_lora: Mean
    compared: int
    train_rows: str


def searches_of(runs: pd.DataFrame) -> list[Search]:
    """The searches among runs that tried FEWEST_RATES or more."""
    trials = reported(runs[runs.kind == "trial"])
    searches = list[Search]()
    keys = [*SEARCH_COLUMNS, "row", "rank"]
    for _, trials_of_search in trials.groupby(keys, sort=False, dropna=False):
        signs = np.where(trials_of_search.lower_is_better.astype(bool), -1, 1)
        scored = trials_of_search.assign(score=signs * trials_of_search.number)
        scores = scored.pivot_table(index="lr", columns="seed", values="score")
        if len(scores) < FEWEST_RATES:
            continue
        first = trials_of_search.iloc[0]
        searches.append(
            Search(
                row=first.row,
                label=first.label,
                model=first.model,
                task=first.task,
                task_label=first.task_label,
                place=tuple(first[column] for column in SEARCH_COLUMNS),
                scores=scores,
                parameters=int(first.parameters),
                steps=int(first.steps),
                train_rows=int(first.train_rows),
            )
        )
    return searches


def starting_rule(runs: pd.DataFrame) -> StartingRule | None:
    """The rule from the trials among some runs; None where no search has LoRA's beside
    it, or none was scored on a task that did not make the rule."""
    searches = searches_of(runs)
    lora_rates = _lora_rates(searches)
    ratios = _ratios(searches, lora_rates)
    train_rows = list[int]()
    losses = defaultdict[tuple[str, str], list[float]](list)
    plain_losses = defaultdict[str, list[float]](list)
    for ratio in ratios:
        for search in ratio.searches:
            on_other_tasks = [s for s in ratio.searches if s.task != search.task]
            if not (on_other_tasks and search.can_be_scored):
                continue
            train_rows.append(search.train_rows)
            elsewhere = [ratio.by_place[s.place] for s in on_other_tasks]
            rate = lora_rates[search.place] * _geometric_median(elsewhere)
            losses[search.task_label, search.row].append(search.regret(rate))
            plain_rate = _geometric_median(s.best_rate for s in on_other_tasks)
            plain_losses[search.row].append(search.regret(plain_rate))
    if not losses:
        return None
    losses_by_row = defaultdict[str, list[float]](list)
    losses_by_task = defaultdict[str, list[float]](list)
    for (task, row), values in losses.items():
        losses_by_row[row].append(statistics.fmean(values))
        losses_by_task[task].append(statistics.fmean(values))
    return StartingRule(
        ratios=ratios,
        loss=_mean_over_rows(losses_by_row),
        loss_by_task={task: mean_of(values) for task, values in losses_by_task.items()},
        loss_without_lora=_mean_over_rows(plain_losses),
        compared=len(losses_by_row),
        train_rows=count_range(train_rows),
    )


def starting_rates_files(rule: StartingRule) -> tuple[str, str]:
    """docs/starting_rates.md, and conf/rates.yaml."""
    ratios = sorted(rule.ratios, key=lambda ratio: (-ratio.median, ratio.row))
    page = rendered(
        "starting_rates.md",
        rule=rule,
        ratios=ratios,
        short=short_number,
        loss_text=loss_text,
    )
    lines = [
        "# What train.lr=auto reads, and no run's configuration has: each method's usual",
        "# learning rate, as a multiple of LoRA's on the same task; and what this rule lost",
        "# to rates of a search of their own. Written by make results from the published",
        "# trials (docs/starting_rates.md).",
        f"loss: {loss_text(rule.loss)}",
        "ratios:",
    ]
    for ratio in sorted(rule.ratios, key=lambda ratio: ratio.row):
        lines.append(f"  {ratio.row}: {short_number(ratio.median)}")
    return page, "\n".join(lines) + "\n"


def loss_text(loss: Mean) -> str:
    """A loss with its interval: 1.2 points (95% CI 0.3 to 2.1)."""
    low, high = loss.interval()
    return f"{loss.mean:.1f} points (95% CI {low:.1f} to {high:.1f})"


def short_number(number: float) -> str:
    """A number with DIGITS significant digits: 0.0333, 8, 125."""
    return f"{float(f'{number:.{DIGITS}g}'):g}"


def _ratios(
    searches: Sequence[Search], lora_rates: Mapping[Place, float]
) -> list[Ratio]:
    """The ratio of each row but LoRA's that was searched beside LoRA."""
    searches_by_row = defaultdict[str, list[Search]](list)
    for search in searches:
        if search.row != REFERENCE and search.place in lora_rates:
            searches_by_row[search.row].append(search)
    ratios = list[Ratio]()
    for row, of_row in searches_by_row.items():
        by_place = {
            search.place: search.best_rate / lora_rates[search.place]
            for search in of_row
        }
        ratios.append(Ratio(row, of_row[0].label, by_place, of_row))
    return ratios


def _lora_rates(searches: Iterable[Search]) -> dict[Place, float]:
    """LoRA's best rate in each place where it was searched."""
    return {
        search.place: search.best_rate for search in searches if search.row == REFERENCE
    }


def _mean_over_rows(losses: Mapping[str, Sequence[float]]) -> Mean:
    """The mean over rows of their mean losses. losses: in points, by row."""
    return mean_of([statistics.fmean(values) for values in losses.values()])


def _geometric_median(values: Iterable[float]) -> float:
    return 10 ** statistics.median(math.log10(value) for value in values)
