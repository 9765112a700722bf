"""Claims on what was measured of trained weights (figures 3, 5 and 6)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.figures.fits import errors, shown_fit
from analysis.figures.layers import PAIRS, measured_values
from analysis.frame import reported
from analysis.inference import Verdict, mean_of, superiority_verdict
from analysis.results.claims import Claim, Comparison, claims, joint_verdict
from analysis.results.comparisons import paper_epochs, side_of
from runs.record.schema import Measure

#: A mean squared error below which a fit of N(0, 1) is exact.
EXACT_FIT = 1e-3
#: Two errors of a fit are equal if they differ by at most this share.
EQUAL_SHARE = 0.1


def comparisons_of_measures(
    runs: pd.DataFrame, measures: Sequence[Measure]
) -> Iterator[Comparison]:
    """The claims of figure 3, over runs (the figure shows their median), of figure 5,
    over pairs of runs and the query matrices, and of figure 6."""
    for *_, magnitudes, _ in measured_values(runs, measures, "magnitude", "d"):
        means = means_of_parts(magnitudes)
        yield from _of_means(runs, magnitudes, means, "run", {})
    for *_, similarities, _ in measured_values(runs, measures, "similarity", *PAIRS):
        cosines = similarities.query("site == 'query'")
        # A pair without a query matrix, or with a change that is zero, has no cosine
        means = cosines.groupby("number")[["lora_vera", "lora_random"]].mean().dropna()
        band = {"band": null_band(cosines)}
        yield from _of_means(runs, similarities, means, "pair", band)
    for fit in shown_fit(measures):
        yield from _of_fit(fit)


def _of_means(
    runs: pd.DataFrame,
    values: pd.DataFrame,
    means: pd.DataFrame,
    unit: str,
    extra: Mapping[str, float],
) -> Iterator[Comparison]:
    """The claims that some columns of `means`, a line for each run or pair, are larger
    than others. values: the measured values, with the ids of their runs."""
    if means.empty:
        return
    ids = [*dict.fromkeys(run for group in values.runs for run in group)]
    order = {run: place for place, run in enumerate(ids)}
    of_values = reported(runs[runs.id.isin(ids)])
    of_values = of_values.sort_values("id", key=lambda column: column.map(order))
    sides = [side_of(row) for _, row in of_values.groupby("conf_row", sort=False)]
    about = of_values[of_values.conf_row == of_values.conf_row.iloc[0]]
    about = about.sort_values(["seed", "id"]).iloc[0]
    for claim in claims():
        if not claim.larger or not {*claim.larger} <= {*means}:
            continue
        verdicts = [
            superiority_verdict(mean_of(means[larger] - means[smaller]))
            for larger, smaller in claim.larger.items()
        ]
        yield Comparison(
            claim=claim,
            model=about.model,
            task=about.task,
            model_label=about.model_label,
            task_label=about.task_label,
            family=about.family,
            sides=(*sides,),
            verdict=joint_verdict(verdicts),
            numbers={**means.median().to_dict(), **extra},
            unit=unit,
            counts=(len(means),),
            size=len(means),
            paper_epochs=paper_epochs(about.family, about.task),
        )


def means_of_parts(values: pd.DataFrame) -> pd.DataFrame:
    """The means of d over parts of the layers and sites, by run; no line at all where a
    run lacks query or value."""
    finite = values.dropna()
    later = finite.layer >= finite.layer.drop_duplicates().median()
    parts = {
        "query": finite.site == "query",
        "value": finite.site == "value",
        "early": ~later,
        "late": later,
        "first": finite.layer == finite.layer.min(),
        "last": finite.layer == finite.layer.max(),
    }
    means = pd.DataFrame(
        {name: finite[part].groupby("number").d.mean() for name, part in parts.items()}
    )
    # A run without a finite value must not be left out in silence
    means = means.reindex(values.number.unique())
    is_whole = means[["query", "value"]].notna().all(axis=None)
    return means if is_whole else means[:0]


def null_band(cosines: pd.DataFrame) -> float:
    """Half the width of the band that holds 95% of the means over layers where one side
    is a random matrix: 1.96 standard errors, from the spread of all such cosines. NaN
    for fewer than two."""
    random = cosines[["lora_random", "vera_random"]]
    layers = random.groupby(cosines.number).count().max(axis=None)
    finite = random.stack().dropna()
    if len(finite) < 2:
        return math.nan
    return float(1.96 * math.sqrt((finite**2).mean() / layers))


def _of_fit(fit: Measure) -> Iterator[Comparison]:
    """Figure 6, count by count. The claim is about every count, so one that differs
    contradicts it."""
    of_fit = errors(fit)
    by_count = of_fit[of_fit.n > 0].drop_duplicates(["kind", "parameters"], keep="last")
    errors_of = by_count.pivot(index="parameters", columns="kind", values="mean")
    errors_of = errors_of.reindex(columns=["vera", "lora"]).dropna()
    if errors_of.empty:
        return
    tolerance = (EQUAL_SHARE * errors_of.lora).clip(lower=EXACT_FIT)
    equal = (errors_of.vera - errors_of.lora).abs() <= tolerance
    lower = (errors_of.vera < errors_of.lora) & ~equal
    verdict = Verdict.SUPPORTED if equal.all() else Verdict.CONTRADICTED
    numbers = {
        "equal": int(equal.sum()),
        "lower": int(lower.sum()),
        "counts": len(errors_of),
    }
    for claim in claims():
        if claim.kind == "fit":
            yield _of_matrices(claim, verdict, numbers)


def _of_matrices(claim: Claim, verdict: Verdict, numbers: Any) -> Comparison:
    return Comparison(
        claim=claim,
        model="",
        task="",
        model_label="10 x 10 matrices",
        task_label="",
        family="",
        sides=(),
        verdict=verdict,
        numbers=numbers,
        unit="",
        size=1,
    )
