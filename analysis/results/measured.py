"""Claims on what was measured of trained weights (figures 3 and 5) and of fits of random
matrices (figure 6)."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from analysis.figures.fits import fit_errors, shown_fit
from analysis.figures.layers import PAIRS, measured_values
from analysis.frame import with_reported_scores
from analysis.inference import Verdict, mean_of, superiority_verdict
from analysis.results.claims import Comparison, claims, joint_verdict
from analysis.results.comparisons import paper_epochs, side_of
from runs.record.schema import Measure

#: A mean squared error below which a fit of N(0, 1) is exact.
EXACT_FIT = 1e-3
#: Two errors of a fit are equal if they differ by at most this share.
EQUAL_SHARE = 0.1


def comparisons_of_measures(
    runs: pd.DataFrame, measures: Sequence[Measure]
) -> Iterator[Comparison]:
    """The paper's claims on figures 3, 5 and 6, one by one: on how far d has moved, over
    runs; on how alike the changes of query matrices are, over pairs of runs; and on how
    well random matrices are fitted."""
    for magnitudes in measured_values(runs, measures, "magnitude", "d"):
        values = magnitudes.values
        yield from _comparisons_of_means(runs, values, means_of_layers(values))
    for similarities in measured_values(runs, measures, "similarity", *PAIRS):
        values = similarities.values
        cosines = values.query("site == 'query'")
        # A pair without a query matrix, or with a change that is zero, has no cosine
        means = cosines.groupby("number")[["lora_vera", "lora_random"]].mean().dropna()
        band = {"band": null_band(cosines)}
        yield from _comparisons_of_means(runs, values, means, band)
    fit = shown_fit(measures)
    if fit is not None:
        yield from _comparisons_of_fit(fit)


def _comparisons_of_means(
    runs: pd.DataFrame,
    values: pd.DataFrame,
    means: pd.DataFrame,
    further_numbers: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[Comparison]:
    """The claims that one column of `means` is larger than another one, each tested on
    these means. The measured runs are of one model and task.

    Args:
        runs: of `frame.runs`.
        values: of `layers.measured_values`.
        means: of these values, a line for each run or pair of runs.
        further_numbers: of each comparison, besides the medians of the means.
    """
    if means.empty:
        return
    # The runs in the order of the measures, so that the sides are in their order, too.
    ids = [*dict.fromkeys(itertools.chain(*values.runs))]
    position_by_id = {run: position for position, run in enumerate(ids)}
    measured_runs = with_reported_scores(runs[runs.id.isin(ids)])
    measured_runs = measured_runs.sort_values(
        "id", key=lambda column: column.map(position_by_id)
    )
    by_row = measured_runs.groupby("conf_row", sort=False)
    sides = [side_of(runs_of_row) for _, runs_of_row in by_row]
    # The names of the model and task are those of the row measured first.
    first_row = measured_runs.conf_row.iloc[0]
    of_first_row = measured_runs[measured_runs.conf_row == first_row]
    first_run = of_first_row.sort_values(["seed", "id"]).iloc[0]
    for claim in claims():
        # `larger` maps each column that should be larger to the one that should be smaller.
        if not claim.larger or not {*claim.larger} <= {*means.columns}:
            continue  # the claim is on other measures
        verdicts = [
            superiority_verdict(mean_of(means[larger] - means[smaller]))
            for larger, smaller in claim.larger.items()
        ]
        yield Comparison(
            claim=claim,
            model=first_run.model,
            task=first_run.task,
            model_label=first_run.model_label,
            task_label=first_run.task_label,
            family=first_run.family,
            sides=(*sides,),
            verdict=joint_verdict(verdicts),
            numbers={**means.median().to_dict(), **further_numbers},
            counts=(len(means),),
            sample_size=len(means),
            paper_epochs=paper_epochs(first_run.family, first_run.task),
        )


def means_of_layers(values: pd.DataFrame) -> pd.DataFrame:
    """The mean changes of VeRA's d in each run (a line each): over the query and the value
    matrices, the first and second half of the layers, and the first and last layer (the
    columns). No line at all if a run has no finite change in query or in value. values: of
    `layers.measured_values`, named d."""
    finite = values.dropna()
    is_late = finite.layer >= finite.layer.drop_duplicates().median()
    parts = {
        "query": finite.site == "query",
        "value": finite.site == "value",
        "early": ~is_late,
        "late": is_late,
        "first": finite.layer == finite.layer.min(),
        "last": finite.layer == finite.layer.max(),
    }
    means = pd.DataFrame(
        {
            name: finite[is_in_part].groupby("number").d.mean()
            for name, is_in_part in parts.items()
        }
    )
    # groupby leaves out a run without a finite value, which must not go unnoticed.
    means = means.reindex(values.number.unique())
    is_complete = means[["query", "value"]].notna().all(axis=None)
    return means if is_complete else means[:0]


def null_band(cosines: pd.DataFrame) -> float:
    """Half the width of the band around 0 that holds 95% of the means over layers of
    cosines with a random matrix. It is 1.96 standard errors of such a mean, from the mean
    square of all these cosines; NaN for fewer than two. cosines: values of PAIRS, a line
    for each pair of runs (number) and layer."""
    with_random = cosines[["lora_random", "vera_random"]]
    layers = with_random.groupby(cosines.number).count().max(axis=None)
    finite = with_random.stack().dropna()
    if len(finite) < 2:
        return math.nan
    return float(1.96 * math.sqrt((finite**2).mean() / layers))


def _comparisons_of_fit(fit: Measure) -> Iterator[Comparison]:
    """The claim of figure 6: VeRA and LoRA fit equally well at every parameter count. One
    count at which their errors differ contradicts it.

    Its numbers: at how many counts the errors are equal, and at how many VeRA's error is
    lower, of how many counts in all."""
    errors = fit_errors(fit)
    # If several ranks of a method have one count, we take the last.
    finite = errors[errors.n > 0].drop_duplicates(["kind", "parameters"], keep="last")
    by_count = finite.pivot(index="parameters", columns="kind", values="mean")
    by_count = by_count.reindex(columns=["vera", "lora"]).dropna()
    if by_count.empty:
        return
    tolerance = (EQUAL_SHARE * by_count.lora).clip(lower=EXACT_FIT)
    is_equal = (by_count.vera - by_count.lora).abs() <= tolerance
    is_lower = (by_count.vera < by_count.lora) & ~is_equal
    verdict = Verdict.SUPPORTED if is_equal.all() else Verdict.CONTRADICTED
    numbers = {
        "equal": int(is_equal.sum()),
        "lower": int(is_lower.sum()),
        "counts": len(by_count),
    }
    for claim in claims():
        if claim.kind == "fit":
            yield Comparison(
                claim=claim,
                model="",
                task="",
                model_label="10 x 10 matrices",
                task_label="",
                family="",
                sides=(),
                verdict=verdict,
                numbers=numbers,
                sample_size=1,  # fit
            )
