"""The paper's claims on our records: every comparison and verdict that the results
page, the README and the report print. `findings` is their one source."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.frame import with_reported_scores
from analysis.inference import (
    Array,
    Mean,
    mean_of,
    mean_over_tasks,
    plain_mean_over_tasks,
    seeds_to_decide,
)
from analysis.results.claims import (
    KINDS_WITH_MARGIN,
    PAIRED_KINDS,
    Claim,
    Collapses,
    Comparison,
    Exclusion,
    Finding,
    Pairs,
    claims,
    common_verdict,
)
from analysis.results.comparisons import (
    COLUMNS,
    NO_RECORDS,
    Records,
    comparisons,
    in_points,
)
from analysis.results.measured import comparisons_of_measures
from analysis.results.rates import comparisons_of_rates
from runs.record.schema import Measure


class Analysis(NamedTuple):
    """How a mean over tasks is computed: whether pairs with a collapsed run count, and
    whether tasks have weights."""

    with_collapsed: bool
    weighted: bool


#: The means that are computed beside the one that decides the verdict, which has neither
#: collapsed runs nor weights.
ANALYSES = {
    "weighted mean": Analysis(with_collapsed=False, weighted=True),
    "plain mean with collapsed runs": Analysis(with_collapsed=True, weighted=False),
    "weighted mean with collapsed runs": Analysis(with_collapsed=True, weighted=True),
}


def findings(
    runs: pd.DataFrame,
    measures: Iterable[Measure] = (),
    records: Records = NO_RECORDS,
) -> list[Finding]:
    """Every claim of the paper over all tasks on which these runs and measures can be
    compared with it, in the paper's order.

    Args:
        runs: of `frame.runs`; their `origin` says which study published them.
        measures: of trained weights and matrix fits.
        records: of the runs, by id; where they say which test rows are right, the
            interval on one task covers test rows, too.
    """
    runs = runs.sort_values("id", kind="stable")
    compared = [
        *comparisons(runs, records),
        *comparisons_of_rates(runs),
        *comparisons_of_measures(runs, [*measures]),
    ]
    study_by_id = runs.set_index("id").origin
    compared = [replace(item, origins=_origins(item, study_by_id)) for item in compared]
    compared.sort(key=lambda item: (item.place.casefold(), item.origins, item.epochs))
    every_finding = list[Finding]()
    for claim in claims():
        compared_on_claim = [item for item in compared if item.claim == claim]
        if compared_on_claim:
            every_finding += _findings_of_claim(claim, compared_on_claim, runs)
    return every_finding


def _origins(comparison: Comparison, study_by_id: pd.Series) -> tuple[str, ...]:
    """The studies whose runs a comparison has, sorted. One on rates has no ids of runs,
    and says its studies itself (`Comparison.origins`)."""
    ids = [run for run in comparison.ids if run in study_by_id.index]
    return tuple(sorted({*comparison.origins, *study_by_id[ids]}))


def _findings_of_claim(
    claim: Claim, compared: Sequence[Comparison], runs: pd.DataFrame
) -> Iterator[Finding]:
    """A claim as one finding, or as one for each two rows that it compares. compared: the
    comparisons of the claim. runs: all, from which we list those that are in no pair."""
    if claim.kind not in PAIRED_KINDS:
        yield _finding_without_pairs(claim, compared)
        return
    exclusions = (*_exclusions(claim, compared, runs),)
    count = len(compared[0].pairs)
    names = [""]
    if count > 1:
        # A pair is named after its second row. These are the last rows of the claim.
        names = [*claim.rows.values()][-count:]
    for pair_index, name in enumerate(names):
        yield _finding_over_tasks(claim, name, compared, pair_index, exclusions)


def _finding_without_pairs(claim: Claim, compared: Sequence[Comparison]) -> Finding:
    """The finding on a claim that compares no pairs of runs, with the verdict that all
    comparisons give. Of a claim on rates it has the mean regret over tasks; a claim on
    measures has no mean."""
    means = {
        item.place: item.mean for item in compared if not math.isnan(item.mean.mean)
    }
    mean = mean_of([task_mean.mean for task_mean in means.values()])
    if len(means) == 1:  # one task: its interval over seeds
        (mean,) = means.values()
    verdict = common_verdict(item.verdict for item in compared)
    return Finding(claim, "", (*compared,), verdict, task_means=means, mean=mean)


# --- over tasks


def _finding_over_tasks(
    claim: Claim,
    name: str,
    compared: Sequence[Comparison],
    pair_index: int,
    exclusions: tuple[Exclusion, ...],
) -> Finding:
    """The finding on two rows of a claim, over its tasks. A task on which they were
    compared several times, such as with other numbers of epochs, counts once, with the
    mean of each seed's differences.

    Args:
        claim: the claim.
        name: of the finding.
        compared: the comparisons of the claim.
        pair_index: of the two rows, in `Comparison.pairs`.
        exclusions: the runs in no pair, which the finding lists.
    """
    counted = list[tuple[Comparison, Pairs]]()
    for comparison in compared:
        pairs = comparison.pairs[pair_index]
        if pairs is not None and not comparison.excluded:
            counted.append((comparison, pairs))
    frame = _difference_frame(counted)
    if frame.collapsed.all():  # or there is no pair at all
        verdict = common_verdict(comparison.verdict for comparison in compared)
        return Finding(claim, name, (*compared,), verdict, exclusions=exclusions)
    trained_differences = _differences_by_place(frame[~frame.collapsed])
    differences = trained_differences.to_numpy(float)
    task_means = {
        task: mean_of(differences_by_seed)
        for task, differences_by_seed in zip(
            trained_differences.index, differences, strict=True
        )
    }
    mean = plain_mean_over_tasks(differences)
    if len(task_means) == 1:  # one task: its interval over seeds
        (mean,) = task_means.values()
    analyses = _analyses(frame, differences)
    weighted = analyses.get("weighted mean")
    pair_sd = _pooled_pair_sd(frame[~frame.collapsed])
    between_task_sd = math.nan
    if weighted:
        between_task_sd = float(weighted.between_task_sd)
    pairs_to_decide = 0
    if claim.kind in KINDS_WITH_MARGIN and not math.isnan(pair_sd):
        pairs_to_decide = seeds_to_decide(pair_sd)
    return Finding(
        claim=claim,
        name=name,
        comparisons=(*compared,),
        verdict=claim.verdict(mean),
        task_means=task_means,
        pair_counts=trained_differences.notna().sum(axis=1).to_dict(),
        mean=mean,
        analyses=analyses,
        collapses=_collapses_by_row([pairs for _, pairs in counted]),
        pair_sd=pair_sd,
        between_task_sd=between_task_sd,
        pairs_to_decide=pairs_to_decide,
        exclusions=exclusions,
    )


def _difference_frame(
    counted: Sequence[tuple[Comparison, Pairs]],
) -> pd.DataFrame:
    """The differences as a frame: a line for each pair of runs, with its model and task
    (`place`), the index of its comparison in `counted`, its seed, its difference, and
    whether one of its runs collapsed."""
    lines = list[tuple[Any, ...]]()
    for index, (comparison, pairs) in enumerate(counted):
        differences = zip(pairs.seeds, pairs.differences, pairs.collapsed, strict=True)
        lines += [(comparison.place, index, *line) for line in differences]
    columns = ["place", "comparison", "seed", "difference", "collapsed"]
    frame = pd.DataFrame(lines, columns=columns)
    return frame.astype({"collapsed": bool, "difference": float})


def _differences_by_place(frame: pd.DataFrame) -> pd.DataFrame:
    """The differences by place (a model and a task; index) and seed (columns), averaged
    over the comparisons at one place. frame: of `_difference_frame`."""
    means = frame.groupby(["place", "seed"], sort=False).difference.mean()
    order = [*dict.fromkeys(frame.place)]
    return means.unstack().reindex(order)


def _pooled_pair_sd(frame: pd.DataFrame) -> float:
    """The standard deviation of a pair's difference within a comparison, pooled over
    comparisons; NaN where none has two pairs. frame: of `_difference_frame`."""
    groups = frame.groupby(["place", "comparison"]).difference
    freedom = (groups.count() - 1).clip(lower=0)
    if not freedom.sum():
        return math.nan
    return math.sqrt(float((groups.var() * freedom).sum() / freedom.sum()))


def _analyses(frame: pd.DataFrame, trained_differences: Array) -> dict[str, Mean]:
    """The means of ANALYSES, by name. Those with collapsed runs are left out if no run
    collapsed, and the weighted ones if there is one task.

    frame: all pairs (`_difference_frame`). trained_differences: by task and seed, of the
    pairs without a collapsed run."""
    all_differences = _differences_by_place(frame)
    groups = frame.groupby(["place", "seed"], sort=False)
    flags = groups.collapsed.any().unstack(fill_value=False)
    # in the order of the differences
    flags = flags.loc[all_differences.index, all_differences.columns]
    is_collapsed = flags.to_numpy(bool)
    analyses = dict[str, Mean]()
    for name, (with_collapsed, weighted) in ANALYSES.items():
        if with_collapsed and not is_collapsed.any():
            continue
        differences = trained_differences
        has_collapsed_run = np.zeros_like(differences, dtype=bool)
        if with_collapsed:
            differences = all_differences.to_numpy(float)
            has_collapsed_run = is_collapsed
        if len(differences) > 1:
            analyses[name] = mean_over_tasks(differences, has_collapsed_run, weighted)
        elif not weighted:
            analyses[name] = mean_of(differences[0])
    return analyses


def _collapses_by_row(counted_pairs: Sequence[Pairs]) -> tuple[Collapses, ...]:
    """How many runs of each row collapsed. A run in several pairs counts once."""
    collapsed_by_row = dict[str, dict[str, bool]]()  # of each run, by its id
    labels = dict[str, str]()
    for pairs in counted_pairs:
        for row, runs in pairs.collapsed_runs().items():
            collapsed_by_row.setdefault(row, {}).update(runs)
        for side in (pairs.left, pairs.right):
            labels.setdefault(side.row, side.label)
    return tuple(
        Collapses(_method_name(labels[row]), sum(runs.values()), len(runs))
        for row, runs in collapsed_by_row.items()
    )


def _method_name(label: str) -> str:
    """A row's label without its rank, which differs between models: LoRA of "LoRA
    r=8"."""
    return label.partition(" r=")[0]


# --- what is in no pair


def _exclusions(
    claim: Claim, compared: Sequence[Comparison], runs: pd.DataFrame
) -> Iterator[Exclusion]:
    """For each study, model and task whose results are in no pair of a claim, why they
    are in none. Your own runs are listed only if all rows of the claim have run:
    otherwise they were no attempt at it. (A claim on ranks has patterns in place of
    rows, so it lists none of your own.)"""
    counted_ids = set[str]()
    reason_by_id = dict[str, str]()
    for item in compared:
        if item.excluded:
            reason_by_id |= dict.fromkeys(item.ids, item.excluded)
        else:
            counted_ids |= {*item.ids}
    results = with_reported_scores(runs.loc[runs.kind == "result", [*COLUMNS]])
    results = results.assign(in_points=in_points(results))
    places = ["origin", "model_label", "task_label"]
    for (study, model, task), group in results.groupby(places, sort=False):
        is_attempt = study != "ours" or {*claim.rows} <= {*group.row}
        has_pair = bool(counted_ids & {*group.id})
        if is_attempt and not has_pair:
            reason = _reason_without_pair(claim, group, reason_by_id)
            yield Exclusion(str(study), f"{model}, {task}", reason)


def _reason_without_pair(
    claim: Claim, group: pd.DataFrame, reason_by_id: Mapping[str, str]
) -> str:
    """Why none of these results is in a pair of the claim. group: the results of a study
    on one model and task. reason_by_id: why each run of an excluded comparison is
    excluded."""
    if not group.in_points.any():
        # The name says the epoch, too: "perplexity, last epoch"
        score = group["name"].iloc[0].partition(",")[0]
        return f"{score} is not in points"
    for run_id in group.id:
        if run_id in reason_by_id:
            return reason_by_id[run_id]
    if claim.kind == "ranks":
        return "no two ranks of VeRA with LoRA's size"
    missing = [row for row in claim.rows if not (group.row == row).any()]
    if missing:
        return f"no own run of {', '.join(missing)}"
    return "no pair of one seed on the same data"
