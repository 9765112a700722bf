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
from analysis.frame import with_reported_scores
from analysis.inference import Mean, mean_of
from analysis.results.rates import SEARCH_COLUMNS
from analysis.results.templates import rendered

#: The row whose rates the ratios are multiples of.
REFERENCE = "lora"
#: A search of fewer rates says little about where the best one is.
FEWEST_RATES = 3
#: The significant digits of a printed ratio. Three distinguish 12.5 from 12, and more
#: would be false precision.
DIGITS = 3

#: The values of SEARCH_COLUMNS: searches of two rows compare if these are equal.
Setup = tuple[object, ...]


@dataclass(frozen=True)
class Search:
    """The trials that searched the learning rate of one row in one setup.

    setup: what the search shares with LoRA's, whose rate it is compared with. scores: by
    rate (index) and seed (columns), such that more is better; NaN where nothing was
    tried. parameters, steps, train_rows: of one trial: how many parameters it trains, for
    how many steps, on how many rows of data."""

    row: str
    label: str
    model: str
    task: str
    task_label: str
    setup: Setup
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
        """Whether every rate was tried on all of two or more seeds. Then the rate that a
        seed's score is compared with can be chosen on other seeds (`regret`)."""
        return self.scores.shape[1] > 1 and not self.scores.isna().to_numpy().any()

    def regret(self, rate: float) -> float:
        """How many points a rate loses to the search's own best one, as a mean over
        seeds. A seed's loss is its score at the rate that is best on all other seeds,
        minus its score at the tried rate that is nearest to `rate`."""
        log_rates = np.log10(self.scores.index.to_numpy(float))
        nearest = int(np.abs(log_rates - math.log10(rate)).argmin())
        scores = self.scores.to_numpy(float)
        losses = list[float]()
        for seed in range(scores.shape[1]):
            other_seeds = np.delete(scores, seed, axis=1)
            best = other_seeds.mean(axis=1).argmax()
            losses.append(float(scores[best, seed] - scores[nearest, seed]))
        return statistics.fmean(losses)


@dataclass(frozen=True)
class Ratio:
    """A row's best rates divided by LoRA's. by_setup: the quotient in each setup in which
    both were searched; of a row's several ranks in one setup, that of the last. searches:
    of the row, in these setups."""

    row: str
    label: str
    by_setup: Mapping[Setup, float]
    searches: Sequence[Search]

    @property
    def median(self) -> float:
        """The median ratio; of an even number of them, the geometric mean of the middle
        two."""
        return _geometric_median(self.by_setup.values())

    @property
    def range_text(self) -> str:
        """The smallest and the largest ratio; "-" for one search."""
        if len(self.searches) == 1:
            return "-"
        low = min(self.by_setup.values())
        high = max(self.by_setup.values())
        return f"{short_number(low)} to {short_number(high)}"

    @property
    def parameters(self) -> str:
        """The smallest and the largest count of trained parameters among its searches:
        "7,680 to 43,008"."""
        return count_range([search.parameters for search in self.searches])

    @property
    def steps(self) -> str:
        """The fewest and the most steps among its searches, as text."""
        return count_range([search.steps for search in self.searches])


@dataclass(frozen=True)
class StartingRule:
    """The rule, and how many points it loses to a search, on tasks whose ratios we left
    out when we computed it.

    loss: the mean over rows, each averaged over its tasks. loss_by_task: the mean over
    the rows of each task. loss_without_lora: the loss if we take the median of a row's
    own rates on other tasks instead, which needs no rate of LoRA's. scored_rows: over how
    many rows these means are. train_rows: on how many rows of data the scored trials
    trained, as text."""

    ratios: Sequence[Ratio]
    loss: Mean
    loss_by_task: Mapping[str, Mean]
    loss_without_lora: Mean
    scored_rows: int
    train_rows: str


def searches_of(runs: pd.DataFrame) -> list[Search]:
    """Every search that tried FEWEST_RATES or more. runs: of `frame.runs`."""
    trials = with_reported_scores(runs[runs.kind == "trial"])
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
                setup=tuple(first[column] for column in SEARCH_COLUMNS),
                scores=scores,
                parameters=int(first.parameters),
                steps=int(first.steps),
                train_rows=int(first.train_rows),
            )
        )
    return searches


def starting_rule(runs: pd.DataFrame) -> StartingRule | None:
    """The rule from the trials among some runs, with what it loses (`Search.regret`).
    None where no row was searched in the same setup as LoRA, or none of them on two
    tasks, so that we cannot say what the rule loses."""
    searches = searches_of(runs)
    lora_rates = _lora_rates(searches)
    ratios = _ratios(searches, lora_rates)
    train_rows = list[int]()
    losses = defaultdict[tuple[str, str], list[float]](list)  # by task and row
    losses_without_lora = defaultdict[tuple[str, str], list[float]](list)
    for ratio in ratios:
        for search in ratio.searches:
            # Each search is scored at the rate that its row's searches on other tasks
            # suggest: the rule must not know the task that it is tested on.
            on_other_tasks = [
                other_search
                for other_search in ratio.searches
                if other_search.task != search.task
            ]
            if not (on_other_tasks and search.can_be_scored):
                continue
            train_rows.append(search.train_rows)
            usual_ratio = _geometric_median(
                ratio.by_setup[other_search.setup] for other_search in on_other_tasks
            )
            rate_by_rule = lora_rates[search.setup] * usual_ratio
            losses[search.task_label, search.row].append(search.regret(rate_by_rule))
            rate_without_lora = _geometric_median(
                other_search.best_rate for other_search in on_other_tasks
            )
            losses_without_lora[search.task_label, search.row].append(
                search.regret(rate_without_lora)
            )
    if not losses:
        return None
    losses_by_task = defaultdict[str, list[float]](list)
    for (task, _), values in losses.items():
        losses_by_task[task].append(statistics.fmean(values))
    return StartingRule(
        ratios=ratios,
        loss=_mean_over_rows(losses),
        loss_by_task={task: mean_of(values) for task, values in losses_by_task.items()},
        loss_without_lora=_mean_over_rows(losses_without_lora),
        scored_rows=len({row for _, row in losses}),
        train_rows=count_range(train_rows),
    )


def starting_rates_files(rule: StartingRule) -> tuple[str, str]:
    """The texts of docs/starting_rates.md and of conf/rates.yaml."""
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
    searches: Sequence[Search], lora_rates: Mapping[Setup, float]
) -> list[Ratio]:
    """The ratio of each row but LoRA that was searched in a setup of lora_rates."""
    searches_by_row = defaultdict[str, list[Search]](list)
    for search in searches:
        if search.row != REFERENCE and search.setup in lora_rates:
            searches_by_row[search.row].append(search)
    ratios = list[Ratio]()
    for row, searches_of_row in searches_by_row.items():
        by_setup = {
            search.setup: search.best_rate / lora_rates[search.setup]
            for search in searches_of_row
        }
        label = searches_of_row[0].label
        ratios.append(Ratio(row, label, by_setup, searches_of_row))
    return ratios


def _lora_rates(searches: Iterable[Search]) -> dict[Setup, float]:
    """LoRA's best rate in each setup in which it was searched."""
    return {
        search.setup: search.best_rate for search in searches if search.row == REFERENCE
    }


def _mean_over_rows(losses: Mapping[tuple[str, str], Sequence[float]]) -> Mean:
    """The mean over rows, each averaged over its tasks, of which each is averaged over
    its searches. losses: in points, by task and row."""
    losses_by_row = defaultdict[str, list[float]](list)
    for (_, row), values in losses.items():
        losses_by_row[row].append(statistics.fmean(values))
    return mean_of([statistics.fmean(values) for values in losses_by_row.values()])


def _geometric_median(values: Iterable[float]) -> float:
    """The median; of an even number of values, the geometric mean of the middle two."""
    return 10 ** statistics.median(math.log10(value) for value in values)
