"""What a finding is made of: a claim of the paper (printed/findings.yaml has them), the
runs of two rows in pairs, the comparison of a claim on one task, and the finding over
its tasks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np

from analysis.inference import (
    FIRM_PAIRS,
    UNKNOWN,
    Mean,
    Verdict,
    equality_verdict,
    equivalence_verdict,
    fisher_p,
    mean_of,
    power_over_tasks,
    share_interval,
    superiority_verdict,
)
from analysis.paper import printed_file

#: The kinds of claims that compare rows by pairs of runs.
PAIRED_KINDS = ("near", "equal", "above", "ranks")
#: The kinds among them that the equivalence margin decides.
KINDS_WITH_MARGIN = ("near", "equal")
#: True mean differences at which a finding's power is stated, in points.
EFFECTS = (-1.2, -2.0)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, as printed/findings.yaml has it.

    finding: the claim as a sentence, which identifies it; name: a shorter one for
    tables. kind: what decides it (the head of the file lists the kinds). source: where
    the paper makes it. rows: the compared rows, or patterns of rows, each with its name
    in tables. paper: the paper's averages of both rows, by source and size of the
    model. larger: the measured numbers that should be larger, each with the one that
    should be smaller.
    """

    finding: str
    name: str
    kind: str
    source: str
    rows: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    larger: Mapping[str, str] = field(default_factory=dict)

    def verdict(self, mean: Mean) -> Verdict:
        """What the mean difference of two rows (the first minus the second) says about a
        claim of PAIRED_KINDS: near and equal are claims of equivalence, and all other
        kinds claim that the first row is better."""
        if self.kind == "near":
            return equivalence_verdict(mean)
        if self.kind == "equal":
            return equality_verdict(mean)
        return superiority_verdict(mean)

    def paper_differences(self) -> dict[str, float]:
        """The first row's average minus the second row's in the paper, by source and
        size of the model: {"table 2 BASE": -1.4}."""
        return {
            f"{source} {size}": left - right
            for source, averages in self.paper.items()
            for size, (left, right) in averages.items()
        }


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the paper's tables and figures."""
    lines: list[dict] = printed_file("findings.yaml")  # type: ignore[assignment]
    return tuple(Claim(**line) for line in lines)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the runs of one row on one task.

    ids: in the order of seeds. median, mean: of their scores. epochs: how many epochs
    they trained, each number once. curve_count: how many runs have more than one
    evaluation. best_at_end_count: in how many of these the best epoch is the last one.
    """

    row: str
    label: str
    parameters: float
    dev_rows: float
    ids: tuple[str, ...]
    median: float
    mean: float
    epochs: tuple[float, ...] = ()
    curve_count: int = 0
    best_at_end_count: int = 0

    @property
    def still_rising(self) -> bool:
        """Whether most curves have their best epoch at the end, so that more epochs may
        help."""
        return self.best_at_end_count > self.curve_count / 2


@dataclass(frozen=True)
class Pairs:
    """Two rows on one task in pairs of runs of one seed. All sequences are in the order
    of `seeds`.

    differences: of each pair; positive means that the left row is better.
    left_collapsed, right_collapsed: which runs of each side collapsed.
    mean_over_seeds_and_rows: the mean difference with an interval over seeds and test
    rows; None where the records do not say which test rows are right.
    """

    left: Side
    right: Side
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    left_collapsed: tuple[bool, ...]
    right_collapsed: tuple[bool, ...]
    mean_over_seeds_and_rows: Mean | None = None

    @property
    def task_mean(self) -> Mean:
        """The mean difference that decides the verdict on this task: its interval covers
        test rows, too, where that is known."""
        return self.mean_over_seeds_and_rows or self.mean

    @property
    def covers(self) -> str:
        """What the interval of `task_mean` covers."""
        return "seeds and test rows" if self.mean_over_seeds_and_rows else "seeds only"

    @property
    def collapsed(self) -> tuple[bool, ...]:
        """Which pairs have a collapsed run."""
        flags = zip(self.left_collapsed, self.right_collapsed, strict=True)
        return tuple(left or right for left, right in flags)

    @property
    def trained_count(self) -> int:
        """In how many pairs both runs trained."""
        return self.collapsed.count(False)

    @cached_property
    def mean(self) -> Mean:
        """The mean difference of the pairs in which both runs trained, with an interval
        over seeds."""
        return mean_of(np.where(self.collapsed, math.nan, self.differences))

    def collapsed_runs(self) -> dict[str, dict[str, bool]]:
        """Whether each run has collapsed, by row and id."""
        left = dict(zip(self.left.ids, self.left_collapsed, strict=True))
        right = dict(zip(self.right.ids, self.right_collapsed, strict=True))
        return {self.left.row: left, self.right.row: right}


@dataclass(frozen=True)
class Comparison:
    """A claim of the paper, tested on our runs of one model and task.

    Attributes:
        sides: each row that it compares, once.
        pairs: of a claim that compares rows, an entry for each two rows; None where one
            of them has not run. Empty for other claims.
        numbers: of a claim on measures, what was measured, by name.
        table: of a claim on rates, the mean scores by rank and rate, as texts; the
            first line is the header.
        mean: of a claim on rates, the change of the score at other ranks' rates
            (`rates.change_at_other_rates`).
        counts: how many runs each row has, each number once; of a claim on measures or
            rates, how many runs, pairs of runs or seeds there are.
        sample_size: how many pairs, seeds or runs the verdict rests on.
        excluded: why it counts in no mean over tasks; "" if it counts.
        crossfit: the verdict by the scores of cross-fitted epochs; None where no epoch
            is chosen.
        paper_epochs: how many epochs the paper trains, by the model's size.
        origins: the studies of its runs.
    """

    claim: Claim
    model: str
    task: str
    model_label: str
    task_label: str
    family: str
    sides: tuple[Side, ...]
    verdict: Verdict
    pairs: tuple[Pairs | None, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    table: Sequence[Sequence[str]] = ()
    mean: Mean = UNKNOWN
    counts: tuple[int, ...] = ()
    sample_size: int = 0
    excluded: str = ""
    crossfit: Verdict | None = None
    paper_epochs: Mapping[str, int] = field(default_factory=dict)
    origins: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The labels of the model and task: "MiniLM, mrpc"."""
        return ", ".join(filter(None, (self.model_label, self.task_label)))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(run for side in self.sides for run in side.ids))

    @property
    def epochs(self) -> tuple[float, ...]:
        return tuple(sorted({number for side in self.sides for number in side.epochs}))

    @property
    def is_firm(self) -> bool:
        """Whether it rests on so many pairs or runs that one more hardly changes it."""
        return self.sample_size >= FIRM_PAIRS


@dataclass(frozen=True)
class Collapses:
    """How many runs of a row collapsed, with the exact 95% interval of the share."""

    label: str
    count: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        return share_interval(self.count, self.total)


@dataclass(frozen=True)
class Exclusion:
    """Runs of a study that are in no pair of a finding, and why."""

    study: str
    place: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, tested on our runs of all its models and tasks.

    Attributes:
        name: the name of the second row, where the claim compares several pairs of rows
            and each pair has a finding; "" otherwise.
        comparisons: on each model and task.
        task_means: by model and task (`Comparison.place`), the mean difference of the
            pairs in which both runs trained. Of a claim on rates, the regret. Empty
            where nothing was averaged.
        pair_counts: over how many seeds each of them is.
        mean: of these means over the tasks, which decides the verdict of a claim that
            compares rows.
        analyses: other means over the tasks, by name, which do not change the verdict.
        collapses: of each row.
        pair_sd: the standard deviation of a pair's difference within a task.
        between_task_sd: the standard deviation of the tasks' true differences.
        pairs_to_decide: how many pairs of one task show equivalence, if the rows are
            equal (`inference.seeds_to_decide`); 0 where that is unknown.
        exclusions: the runs that are in no pair.
    """

    claim: Claim
    name: str
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    task_means: Mapping[str, Mean] = field(default_factory=dict)
    pair_counts: Mapping[str, int] = field(default_factory=dict)
    mean: Mean = UNKNOWN
    analyses: Mapping[str, Mean] = field(default_factory=dict)
    collapses: tuple[Collapses, ...] = ()
    pair_sd: float = math.nan
    between_task_sd: float = math.nan
    pairs_to_decide: int = 0
    exclusions: tuple[Exclusion, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.claim.name}: {self.name}" if self.name else self.claim.name

    @property
    def opponent(self) -> str:
        """The name of the row that VeRA is compared with. Only for claims of the kind
        near, whose sentences all have the same form."""
        name = self.claim.finding.removeprefix("VeRA is near ")
        return name.removesuffix(" with fewer parameters")

    @property
    def parameter_ratios(self) -> tuple[float, float]:
        """How many times as many parameters the right row trains as the left one, at least
        and at most over the comparisons."""
        ratios = list[float]()
        for comparison in self.comparisons:
            for pairs in filter(None, comparison.pairs):
                ratios.append(pairs.right.parameters / pairs.left.parameters)
        return min(ratios), max(ratios)

    @property
    def direction(self) -> str:
        """On which side of 0 the 95% interval lies: "above" or "below"; "" if it
        contains 0."""
        return {1: "above", -1: "below"}.get(int(self.mean.sign()), "")

    @cached_property
    def collapse_p(self) -> float:
        """The p value of Fisher's exact test of whether both rows collapse equally
        often; NaN without two rows."""
        if len(self.collapses) != 2:
            return math.nan
        left, right = self.collapses
        return fisher_p(left.count, left.total, right.count, right.total)

    @cached_property
    def power(self) -> dict[float, float]:
        """How often the rule would find that the left row is below the right one, for
        each true mean difference of EFFECTS: the share of simulated studies with this
        finding's pairs and standard deviations. Empty where these are unknown."""
        if math.isnan(self.between_task_sd) or math.isnan(self.pair_sd):
            return {}
        counts = [*self.pair_counts.values()]
        return {
            effect: power_over_tasks(effect, self.between_task_sd, self.pair_sd, counts)
            for effect in EFFECTS
        }

    def mean_without(self, task: str) -> Mean:
        """The mean over all tasks but one."""
        remaining = [
            mean.mean for name, mean in self.task_means.items() if name != task
        ]
        return mean_of(remaining)

    @cached_property
    def most_influential_task(self) -> str:
        """The task without which the mean changes most."""
        return max(
            self.task_means,
            key=lambda task: abs(self.mean_without(task).mean - self.mean.mean),
        )

    @property
    def largest_comparison(self) -> Comparison | None:
        """The comparison with the most pairs, of those that are not excluded."""
        counted = [
            item for item in self.comparisons if item.pairs and not item.excluded
        ]
        return max(counted, key=lambda item: item.sample_size, default=None)

    def verdict_counts(self) -> dict[Verdict, int]:
        """How many comparisons have each verdict, without verdicts that none has."""
        verdicts = [comparison.verdict for comparison in self.comparisons]
        return {
            verdict: verdicts.count(verdict)
            for verdict in Verdict
            if verdict in verdicts
        }

    def agreeing_analyses(self) -> list[str]:
        """The names of the analyses whose 95% interval lies on the same side of 0 as that
        of `mean`, or contains 0 as that one does."""
        sign = int(self.mean.sign())
        return [
            name for name, mean in self.analyses.items() if int(mean.sign()) == sign
        ]


def joint_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim that several comparisons must support: contradicted if one
    of them contradicts it, supported if all support it."""
    verdicts = {*verdicts}
    if Verdict.CONTRADICTED in verdicts:
        return Verdict.CONTRADICTED
    if verdicts == {Verdict.SUPPORTED}:
        return Verdict.SUPPORTED
    return Verdict.INCONCLUSIVE


def common_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that all of them give; inconclusive if they differ."""
    verdicts = {*verdicts}
    return verdicts.pop() if len(verdicts) == 1 else Verdict.INCONCLUSIVE


def claim_numbers(findings: Sequence[Finding]) -> dict[str, int]:
    """The number of each claim that has a finding, by the claim's sentence. We count over
    all of the paper's claims, so that a claim keeps its number whichever runs are
    selected."""
    numbers = {claim.finding: number for number, claim in enumerate(claims(), 1)}
    return {
        finding.claim.finding: numbers[finding.claim.finding] for finding in findings
    }
