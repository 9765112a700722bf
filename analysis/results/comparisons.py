"""Claims that compare rows, on each model and task: which runs may be compared, and
the pairs of runs of one seed that do it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import CELL_KEY, mark_left_out, reported
from analysis.inference import Mean, Verdict, over_seeds_and_items
from analysis.paper import GLUE, recipes
from analysis.results.claims import (
    OF_ROWS,
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

#: A run has collapsed, too, if its score is below this share of its row's median.
COLLAPSED = 2 / 3
#: The share of the larger class in GLUE's dev sets, in percent, which is the accuracy
#: of one answer for every row. The other tasks are scored by a correlation: 0.
CHANCE = {
    "sst2": 50.9,
    "mrpc": 68.4,
    "qnli": 50.5,
    "rte": 52.7,
    "cola": 0.0,
    "stsb": 0.0,
}
#: Scores of texts that are in points from 0 to 100.
POINTS = ("exact_match", "bleu", "meteor", "rouge_l")
#: What must agree between two rows of a comparison.
COMPARABLE = ["model", "task", "measured", "epochs", "length_grouped"]

#: What of a run these comparisons read; a narrow frame is cut up faster.
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

Rows = Mapping[str, pd.DataFrame]
Records = Mapping[str, Record]
NO_RECORDS: Records = MappingProxyType({})


def comparisons(runs: pd.DataFrame, records: Records = NO_RECORDS) -> list[Comparison]:
    """Every claim on rows on every model and task where its rows have run, on a score
    in points. records: by id, where they are at hand: those that say which test rows
    are right give an interval over test rows, too.

    A row has several variants, such as another number of epochs. First the variants
    nearest their recipes are compared, as tables show them. Then every other group of
    runs with equal data, epochs and batches is, where it has a run that was in no
    comparison so far.
    """
    results = runs.loc[runs.kind == "result", [*COLUMNS]]
    scored = reported(results)
    compared = _of_groups(scored[in_points(scored)], records)
    by_halves = reported(results[results.reported == "best"], "crossfit")
    verdicts = dict[tuple[str, tuple[str, ...]], Verdict]()
    for comparison in _of_groups(by_halves[by_halves.text_score.isna()], NO_RECORDS):
        verdicts[comparison.claim.finding, comparison.ids] = comparison.verdict
    return [_with_crossfit(comparison, verdicts) for comparison in compared]


def _with_crossfit(
    comparison: Comparison, verdicts: Mapping[tuple[str, tuple[str, ...]], Verdict]
) -> Comparison:
    verdict = verdicts.get((comparison.claim.finding, comparison.ids))
    return Comparison(**{**vars(comparison), "crossfit": verdict})


def _of_groups(runs: pd.DataFrame, records: Records) -> list[Comparison]:
    comparisons = list[Comparison]()
    compared = set[tuple[str, str]]()
    for group in comparable_groups(runs):
        for comparison in _of_rows(collapsed(group), records):
            keys = {(comparison.claim.finding, run) for run in comparison.ids}
            if not keys <= compared:
                comparisons.append(comparison)
                compared |= keys
    return comparisons


def in_points(runs: pd.DataFrame) -> pd.Series:
    """Which runs (of `reported`) have a score that is in points from 0 to 100."""
    of_texts = runs.text_score.isin(POINTS)
    of_metric = runs.text_score.isna() & (runs.scale == 100)
    return of_texts | of_metric


def comparable_groups(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The results whose rows may be compared, as frames in which a row has one variant:
    first those that tables show, by the way in which they were measured, then those of
    equal data, epochs and batches."""
    runs = mark_left_out(runs)
    for _, of_way in _shown(runs).groupby("way"):
        yield of_way
    grouped = runs.settings.map(lambda settings: settings.get("length_grouped", True))
    for _, group in runs.assign(length_grouped=grouped).groupby(COMPARABLE, sort=False):
        if (group.left_out != "").any():
            yield _shown(mark_left_out(group))


def _shown(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs.left_out == ""].sort_values(
        ["model", "task", "seed"], kind="stable"
    )


def collapsed(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs (of `reported`) with `collapsed`: diverged, one class for every row, or
    far below the row's median."""
    ratio = runs.number / runs.groupby(CELL_KEY).number.transform("median")
    share = (1 / ratio).where(runs.lower_is_better, ratio)
    broken = runs.diverged.astype(bool) | runs.one_class.notna()
    return runs.assign(collapsed=broken | (share < COLLAPSED))


# --- one model and task


def _of_rows(runs: pd.DataFrame, records: Records) -> Iterator[Comparison]:
    """The claims that compare rows, in their order. runs: one variant of each row."""
    blocks = [*zip(runs.seed, runs.measured, strict=True)]
    by_task = [
        dict([*group.groupby("row")])
        for _, group in runs.assign(block=blocks).groupby(["model", "task"])
    ]
    for claim in claims():
        if claim.kind not in OF_ROWS:
            continue
        for rows in by_task:
            pairs = _pairs(claim, rows, records)
            if any(pairs):
                yield _compared(claim, pairs, next(iter(rows.values())).iloc[0])


def _pairs(claim: Claim, rows: Rows, records: Records) -> list[Pairs | None]:
    """The rows that a claim compares; None for a comparison that has not run."""
    if claim.kind == "ranks":
        sides = _matched_ranks(rows, [*claim.rows])
    else:
        sides = _shared_seeds(rows, [*claim.rows])
    return [compare(*frames, records) if frames else None for frames in sides]


def _compared(claim: Claim, pairs: Sequence[Pairs | None], about: Any) -> Comparison:
    """A claim on one task. It is inconclusive where no row's median is two standard
    errors of the dev set above chance, since then no row has learned anything."""
    sides = dict[str, Side]()
    for of_pair in filter(None, pairs):
        for side in (of_pair.left, of_pair.right):
            sides[side.row] = side
    verdicts = [
        claim.verdict(of_pair.task_mean) if of_pair else Verdict.INCONCLUSIVE
        for of_pair in pairs
    ]
    joint = common_verdict if claim.kind == "ranks" else joint_verdict
    excluded = _exclusion(about.task, [*sides.values()])
    return Comparison(
        claim=claim,
        model=about.model,
        task=about.task,
        model_label=about.model_label,
        task_label=about.task_label,
        family=about.family,
        sides=(*sides.values(),),
        pairs=(*pairs,),
        verdict=Verdict.INCONCLUSIVE if excluded else joint(verdicts),
        counts=tuple(sorted({len(side.ids) for side in sides.values()})),
        size=min(len(of_pair.seeds) for of_pair in pairs if of_pair),
        excluded=excluded,
        paper_epochs=paper_epochs(about.family, about.task),
    )


def _exclusion(task: str, sides: Sequence[Side]) -> str:
    """Why a comparison counts in no mean ("": it counts). Only GLUE's tasks have a
    known score of chance."""
    chance = CHANCE.get(task, math.nan)
    variance = chance * (100 - chance) if chance else 100.0**2
    error = math.sqrt(variance / sides[0].dev_rows)
    if all(side.median <= chance + 2 * error for side in sides):
        return f"no row has learned (chance is {chance:g})"
    return ""


def paper_epochs(family: str, task: str) -> dict[str, int]:
    """How long the paper trains VeRA on a task, by the size of its model where that
    matters."""
    if task in GLUE:
        place = [*GLUE].index(task)
        epochs = recipes()["glue"]["vera"]
        return {
            size: epochs[f"roberta-{size.lower()}"]["epochs"][place]
            for size in ("BASE", "LARGE")
        }
    if family in ("e2e", "images"):
        return {"": recipes()[family]["common"]["epochs"]}
    return {}


# --- rows side by side


Frames = tuple[pd.DataFrame, pd.DataFrame] | None


def _shared_seeds(rows: Rows, names: Sequence[str]) -> list[Frames]:
    """The first of these rows with each other one, if each has run and has a number.

    They keep the seeds that all of them have, measured on the same data: medians of
    other seeds could contradict the pairs.
    """
    if not all(name in rows and rows[name].number.notna().all() for name in names):
        return []
    shared = frozenset.intersection(*(frozenset(rows[name].block) for name in names))
    frames = [rows[name][rows[name].block.isin(shared)] for name in names]
    # A BLEU and a perplexity cannot be compared
    if pd.concat(frames)["name"].nunique() != 1:
        return []
    return [(frames[0], frame) for frame in frames[1:]]


def _matched_ranks(rows: Rows, patterns: Sequence[str]) -> list[Frames]:
    """VeRA of the highest rank that has run, with LoRA of the rank with the nearest
    parameter count, among several ranks and within a factor of two; once for each
    convention of LoRA's alpha. rows: of one model and task."""
    sizes = pd.Series(
        {
            row: float(runs.parameters.iloc[0])
            for row, runs in rows.items()
            if runs.number.notna().all()
        },
        dtype=float,
    )
    names = sizes.index.astype(str)
    vera = sizes[names.str.fullmatch(r"vera(_r\d+)?")]
    if len(vera) < 2:  # one rank alone is no comparison of ranks
        return []
    matched = list[Frames]()
    for pattern in patterns:
        ratio = sizes[names.str.fullmatch(pattern)] / vera.max()
        nearest = str(np.log(ratio).abs().idxmin()) if len(ratio) > 1 else ""
        if nearest and 0.5 <= ratio[nearest] <= 2:
            matched += _shared_seeds(rows, [str(vera.idxmax()), nearest]) or [None]
        else:
            matched.append(None)
    return matched


def compare(
    left: pd.DataFrame, right: pd.DataFrame, records: Records = NO_RECORDS
) -> Pairs:
    """Two rows in pairs of runs of one seed, such that more is better."""
    left_scores = left.number.to_numpy()
    right_scores = right.number.to_numpy()
    with np.errstate(invalid="ignore"):  # of two infinite numbers
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
    """The mean difference over seeds and test rows of the pairs in which both runs
    trained; None where a record does not say which test rows are right."""
    is_trained = ~(left.collapsed.to_numpy() | right.collapsed.to_numpy())
    if is_trained.sum() < 2:
        return None
    sides = list[list[Bits]]()
    for runs in (left[is_trained], right[is_trained]):
        # Texts are scored at the last epoch
        epoch = runs.reported.where(runs.text_score.isna(), "last").iloc[0]
        right_by_run = list[Bits]()
        for run in runs.id:
            bits = right_items(records[run], epoch) if run in records else None
            if bits is None:
                return None
            right_by_run.append(bits)
        sides.append(right_by_run)
    units = groups_of_items(records[left.id.iloc[0]])
    return over_seeds_and_items(np.array(sides[0]), np.array(sides[1]), units)


def side_of(runs: pd.DataFrame) -> Side:
    """The runs of one row on one task (of `frame.reported`)."""
    runs = runs.sort_values(["seed", "id"])
    about = runs.iloc[0]
    curves = runs[runs.evaluations > 1]
    return Side(
        row=about.row,
        label=about.label,
        parameters=about.parameters,
        dev_rows=about.dev_rows,
        ids=tuple(runs.id),
        median=float(runs.number.median()),
        mean=float(runs.number.mean()),
        epochs=tuple(sorted(set(runs.epochs))),
        curves=len(curves),
        best_is_last=int((curves.best_epoch == curves.last_epoch).sum()),
    )
