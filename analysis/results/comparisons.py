"""Claims that compare rows, on each model and task: which runs may be compared, and
the pairs of runs of one seed that do it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import CELL_KEY, mark_left_out, with_reported_scores
from analysis.inference import Mean, Verdict, over_seeds_and_items
from analysis.paper import GLUE, recipes
from analysis.results.claims import (
    PAIRED_KINDS,
    Claim,
    Comparison,
    Pairs,
    Side,
    claims,
    common_verdict,
    joint_verdict,
)
from runs.record.items import Bits, groups_of_items, right_items
from runs.record.schema import TEXT_SCORES, Record

#: A run whose score is below this share of its row's median has collapsed, even if it
#: neither diverged nor predicts one class.
COLLAPSED_SHARE = 2 / 3
#: The score in percent of the same answer for every example of GLUE's dev sets: the
#: share of the larger class where the score is accuracy, and 0 for a correlation.
CHANCE = {
    "sst2": 50.9,
    "mrpc": 68.4,
    "qnli": 50.5,
    "rte": 52.7,
    "cola": 0.0,
    "stsb": 0.0,
}
#: The keys of TEXT_SCORES whose scores are in points from 0 to 100.
TEXT_SCORES_IN_POINTS = ("exact_match", "bleu", "meteor", "rouge_l")
#: The columns in which the runs of two rows must agree before we compare them.
SHARED_COLUMNS = ["model", "task", "measured", "epochs", "length_grouped"]

#: The columns of `frame.runs` that these comparisons read. Selecting rows is faster in
#: such a narrow frame.
COLUMNS = (
    "id",
    "origin",
    "kind",
    "model",
    "model_label",
    "row",
    "label",
    "task",
    "task_label",
    "family",
    "seed",
    "cell",
    "settings",
    "measured",
    "way",
    "epochs",
    "protocol",
    "deviations",
    "recipe",
    "metric",
    "reported",
    "scale",
    "higher_is_better",
    "decimals",
    "value",
    "crossfit",
    "text_score",
    *TEXT_SCORES,
    "parameters",
    "dev_rows",
    "diverged",
    "one_class",
    "evaluations",
    "best_epoch",
    "last_epoch",
)

#: The runs of each row on one model and task, by the row.
RunsByRow = Mapping[str, pd.DataFrame]
#: Records by the ids of their runs.
Records = Mapping[str, Record]
NO_RECORDS: Records = MappingProxyType({})


def comparisons(runs: pd.DataFrame, records: Records = NO_RECORDS) -> list[Comparison]:
    """Every claim that compares rows, on every model and task where these rows have run
    and have a score in points.

    A row may have several variants, such as other numbers of epochs. We first compare
    the variants nearest to their recipes, which tables show. Then we compare every other
    group of runs with equal data, epochs and batches, if it has a run that no earlier
    comparison has.

    records: of the runs. If they say which test rows are right, the interval covers test
    rows, too.
    """
    results = runs.loc[runs.kind == "result", [*COLUMNS]]
    scored = with_reported_scores(results)
    compared = _compare_groups(scored[in_points(scored)], records)
    # Where a table reports the best epoch, each run gets a second score, by epochs that
    # were chosen on the other half of the dev rows. Texts are scored at the last epoch
    # alone.
    cross_fitted = with_reported_scores(results[results.reported == "best"], "crossfit")
    cross_fitted = cross_fitted[cross_fitted.text_score.isna()]
    verdicts = dict[tuple[str, tuple[str, ...]], Verdict]()
    for comparison in _compare_groups(cross_fitted, NO_RECORDS):
        verdicts[comparison.claim.finding, comparison.ids] = comparison.verdict
    return [_with_crossfit(comparison, verdicts) for comparison in compared]


def _with_crossfit(
    comparison: Comparison, verdicts: Mapping[tuple[str, tuple[str, ...]], Verdict]
) -> Comparison:
    """The comparison with its verdict by cross-fitted epochs. verdicts: by the claim's
    finding and the ids of the compared runs."""
    verdict = verdicts.get((comparison.claim.finding, comparison.ids))
    return replace(comparison, crossfit=verdict)


def _compare_groups(runs: pd.DataFrame, records: Records) -> list[Comparison]:
    """The comparisons in each of `comparable_groups`. One is left out if earlier
    comparisons of the same claim have all of its runs.

    records: the whole records of the runs, by id, for claims that need more than a
    line of the frame."""
    comparisons = list[Comparison]()
    compared_runs = set[tuple[str, str]]()
    for group in comparable_groups(runs):
        for comparison in _compare_rows(mark_collapsed(group), records):
            keys = {(comparison.claim.finding, run) for run in comparison.ids}
            if not keys <= compared_runs:
                comparisons.append(comparison)
                compared_runs |= keys
    return comparisons


def in_points(runs: pd.DataFrame) -> pd.Series:
    """Whether each run's score is in points from 0 to 100. runs: of
    `frame.with_reported_scores`."""
    has_text_points = runs.text_score.isin(TEXT_SCORES_IN_POINTS)
    has_metric_points = runs.text_score.isna() & (runs.scale == 100)
    return has_text_points | has_metric_points


def comparable_groups(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The groups of results whose rows may be compared. In a group a row has one variant,
    that is, one combination of settings (`mark_left_out`).

    First come the variants that tables show, a group for each way of measuring. Then come
    the results that agree in SHARED_COLUMNS, which are the same data, epochs and batches:
    in such a group another variant of a row may be the nearest to its recipe."""
    runs = mark_left_out(runs)
    for _, group in _runs_in_cells(runs).groupby("way"):
        yield group
    # Older runs lack the setting, and had batches of rows of similar lengths.
    length_grouped = runs.settings.map(
        lambda settings: settings.get("length_grouped", True)
    )
    runs = runs.assign(length_grouped=length_grouped)
    for _, group in runs.groupby(SHARED_COLUMNS, sort=False):
        # A group in which tables show every run has no further comparison.
        if (group.left_out != "").any():
            yield _runs_in_cells(mark_left_out(group))


def _runs_in_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that are in a cell, sorted by model, task and seed. runs: of
    `mark_left_out`."""
    return runs[runs.left_out == ""].sort_values(
        ["model", "task", "seed"], kind="stable"
    )


def mark_collapsed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column `collapsed`: whether a run diverged, predicts one class for
    every row, or scores below COLLAPSED_SHARE of its row's median. runs: of
    `frame.with_reported_scores`."""
    ratio = runs.number / runs.groupby(CELL_KEY).number.transform("median")
    share_of_median = (1 / ratio).where(runs.lower_is_better, ratio)
    is_broken = runs.diverged.astype(bool) | runs.one_class.notna()
    return runs.assign(collapsed=is_broken | (share_of_median < COLLAPSED_SHARE))


# --- one model and task


def _compare_rows(runs: pd.DataFrame, records: Records) -> Iterator[Comparison]:
    """Each claim that compares rows, on each model and task where rows can be paired.
    runs: of one of `comparable_groups`, with `collapsed`. records: as of `comparisons`."""
    # A block is a seed and the data that a run was measured on. Only runs of one block may
    # be paired.
    blocks = [*zip(runs.seed, runs.measured, strict=True)]
    runs_by_task = [
        dict([*group.groupby("row")])
        for _, group in runs.assign(block=blocks).groupby(["model", "task"])
    ]
    for claim in claims():
        if claim.kind not in PAIRED_KINDS:
            continue
        for runs_by_row in runs_by_task:
            pairs = _pairs_of_claim(claim, runs_by_row, records)
            if any(pairs):
                first_run = next(iter(runs_by_row.values())).iloc[0]
                yield _comparison_of(claim, pairs, first_run)


def _pairs_of_claim(
    claim: Claim, runs_by_row: RunsByRow, records: Records
) -> list[Pairs | None]:
    """The pairs of each two rows that a claim compares on one model and task; None where
    one of the two has not run. runs_by_row: the runs of the model and task."""
    if claim.kind == "ranks":
        rows_to_pair = _matched_ranks(runs_by_row, [*claim.rows])
    else:
        rows_to_pair = _first_row_with_others(runs_by_row, [*claim.rows])
    pairs = list[Pairs | None]()
    for two_rows in rows_to_pair:
        if two_rows is None:
            pairs.append(None)
        else:
            left, right = two_rows
            pairs.append(pairs_of_rows(left, right, records))
    return pairs


def _comparison_of(claim: Claim, pairs: Sequence[Pairs | None], run: Any) -> Comparison:
    """A claim, tested on one model and task. The verdict is inconclusive if no row has
    learned anything (`_reason_without_learning`).

    Args:
        claim: the claim.
        pairs: of each two rows (`_pairs_of_claim`).
        run: any run of the model and task, a line of `frame.runs`.
    """
    sides = dict[str, Side]()
    for two_rows in filter(None, pairs):
        for side in (two_rows.left, two_rows.right):
            sides[side.row] = side
    verdicts = [
        claim.verdict(two_rows.task_mean) if two_rows else Verdict.INCONCLUSIVE
        for two_rows in pairs
    ]
    # Figure 2 does not say how LoRA's alpha follows the rank, so a claim on ranks has the
    # verdict that all conventions give. Any two rows alone can contradict another claim.
    combine = common_verdict if claim.kind == "ranks" else joint_verdict
    verdict = combine(verdicts)
    excluded = _reason_without_learning(run.task, [*sides.values()])
    if excluded:
        verdict = Verdict.INCONCLUSIVE
    run_counts = {len(side.ids) for side in sides.values()}
    pair_counts = [len(two_rows.seeds) for two_rows in pairs if two_rows]
    return Comparison(
        claim=claim,
        model=run.model,
        task=run.task,
        model_label=run.model_label,
        task_label=run.task_label,
        family=run.family,
        sides=(*sides.values(),),
        pairs=(*pairs,),
        verdict=verdict,
        counts=tuple(sorted(run_counts)),
        sample_size=min(pair_counts),
        excluded=excluded,
        paper_epochs=paper_epochs(run.family, run.task),
    )


def _reason_without_learning(task: str, sides: Sequence[Side]) -> str:
    """The reason to leave out a comparison in which no row has learned: no row's median
    is two standard errors of the dev set above chance. "" where one is, and for a task
    whose score by chance is unknown."""
    if task not in CHANCE:
        return ""
    chance = CHANCE[task]
    # The standard error of a score at chance, in points: of an accuracy by the binomial;
    # of a correlation, whose chance is 0, about 100 / sqrt(rows).
    variance = chance * (100 - chance) if chance else 100.0**2
    error = math.sqrt(variance / sides[0].dev_rows)
    if all(side.median <= chance + 2 * error for side in sides):
        return f"no row has learned (chance is {chance:g})"
    return ""


def paper_epochs(family: str, task: str) -> dict[str, int]:
    """How many epochs the paper trains VeRA on a task, by the size of its model ("BASE"
    and "LARGE", or "" where all sizes train equally long). Empty for tasks that are not
    the paper's. family: of the task."""
    if task in GLUE:
        task_index = [*GLUE].index(task)
        settings = recipes()["glue"]["vera"]
        return {
            size: settings[f"roberta-{size.lower()}"]["epochs"][task_index]
            for size in ("BASE", "LARGE")
        }
    if family in ("e2e", "images"):
        return {"": recipes()[family]["common"]["epochs"]}
    return {}


# --- rows side by side


#: The runs of two rows, in pairs line by line; None where one of them has not run.
TwoRows = tuple[pd.DataFrame, pd.DataFrame] | None


def _first_row_with_others(
    runs_by_row: RunsByRow, names: Sequence[str]
) -> list[TwoRows]:
    """The runs of the first of these rows beside those of each other one. The list is
    empty unless each row has run, each run has a number, and all report the same score.

    We keep the runs of the blocks (seed and data) that all rows have, since medians over
    other seeds could contradict the pairs.
    """
    for name in names:
        if name not in runs_by_row or runs_by_row[name].number.isna().any():
            return []
    blocks_of_rows = [frozenset(runs_by_row[name].block) for name in names]
    shared_blocks = frozenset.intersection(*blocks_of_rows)
    frames = list[pd.DataFrame]()
    for name in names:
        runs = runs_by_row[name]
        frames.append(runs[runs.block.isin(shared_blocks)])
    # The name of the score: a BLEU and a perplexity cannot be compared.
    if pd.concat(frames)["name"].nunique() != 1:
        return []
    return [(frames[0], frame) for frame in frames[1:]]


def _matched_ranks(runs_by_row: RunsByRow, patterns: Sequence[str]) -> list[TwoRows]:
    """The runs of VeRA's largest rank beside those of the LoRA rank that trains about as
    many parameters, for each pattern of LoRA's rows.

    An entry is None if the pattern has fewer than two ranks, or if its nearest rank
    trains more than twice or less than half as many parameters. The list is empty if
    VeRA has fewer than two ranks.

    patterns: of LoRA's rows, one for each convention of its alpha."""
    counts = dict[str, float]()
    for row, runs in runs_by_row.items():
        if runs.number.notna().all():
            counts[row] = runs.parameters.iloc[0]
    parameters_by_row = pd.Series(counts, dtype=float)
    names = parameters_by_row.index.astype(str)
    vera = parameters_by_row[names.str.fullmatch(r"vera(_r\d+)?")]
    if len(vera) < 2:  # one rank alone is no comparison of ranks
        return []
    matched = list[TwoRows]()
    for pattern in patterns:
        ratios = parameters_by_row[names.str.fullmatch(pattern)] / vera.max()
        nearest = str(np.log(ratios).abs().idxmin()) if len(ratios) > 1 else ""
        if nearest and 0.5 <= ratios[nearest] <= 2:
            rows = [str(vera.idxmax()), nearest]
            # empty where the two rows report different scores
            matched += _first_row_with_others(runs_by_row, rows) or [None]
        else:
            matched.append(None)
    return matched


def pairs_of_rows(left: pd.DataFrame, right: pd.DataFrame, records: Records) -> Pairs:
    """Two rows in pairs of runs of one seed, with their differences. Positive: `left` is
    better. left, right: their runs (of `mark_collapsed`), a line for each seed in the
    same order."""
    left_scores = left.number.to_numpy()
    right_scores = right.number.to_numpy()
    # Two diverged runs may both be infinite. Their difference is 0, not inf - inf.
    with np.errstate(invalid="ignore"):
        differences = left_scores - right_scores
    if left.lower_is_better.iloc[0]:
        differences = -differences
    differences = np.where(left_scores == right_scores, 0.0, differences)
    return Pairs(
        left=side_of(left),
        right=side_of(right),
        seeds=tuple(left.seed),
        differences=tuple(differences.tolist()),
        left_collapsed=tuple(left.collapsed.tolist()),
        right_collapsed=tuple(right.collapsed.tolist()),
        mean_over_seeds_and_rows=mean_over_seeds_and_rows(left, right, records),
    )


def mean_over_seeds_and_rows(
    left: pd.DataFrame, right: pd.DataFrame, records: Records
) -> Mean | None:
    """The mean difference of the pairs in which both runs trained, with an interval over
    seeds and test rows. None for fewer than two such pairs, and where a record does not
    say which test rows are right. left, right: as of `pairs_of_rows`."""
    is_trained = ~(left.collapsed.to_numpy() | right.collapsed.to_numpy())
    if is_trained.sum() < 2:
        return None
    left = left[is_trained]
    right = right[is_trained]
    sides = list[list[Bits]]()
    for runs in (left, right):
        # Texts are scored at the last epoch
        epoch = runs.reported.where(runs.text_score.isna(), "last").iloc[0]
        bits_by_run = list[Bits]()
        for run in runs.id:
            bits = right_items(records[run], epoch) if run in records else None
            if bits is None:
                return None
            bits_by_run.append(bits)
        sides.append(bits_by_run)
    # Texts that resemble each other, such as sums of the same terms, count as one.
    units = groups_of_items(records[left.id.iloc[0]])
    return over_seeds_and_items(np.array(sides[0]), np.array(sides[1]), units)


def side_of(runs: pd.DataFrame) -> Side:
    """A side of a comparison. runs: of one row on one task (`frame.with_reported_scores`)."""
    runs = runs.sort_values(["seed", "id"])
    first_run = runs.iloc[0]
    curves = runs[runs.evaluations > 1]
    return Side(
        row=first_run.row,
        label=first_run.label,
        parameters=first_run.parameters,
        dev_rows=first_run.dev_rows,
        ids=tuple(runs.id),
        median=float(runs.number.median()),
        mean=float(runs.number.mean()),
        epochs=tuple(sorted(set(runs.epochs))),
        curve_count=len(curves),
        best_at_end_count=int((curves.best_epoch == curves.last_epoch).sum()),
    )
