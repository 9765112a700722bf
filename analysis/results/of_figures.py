"""The findings of the paper's figures 3, 5 and 6, tried on our measures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.figures.figure import finite
from analysis.figures.papers import errors, measured
from analysis.frame import reported
from analysis.inference import mean_of
from analysis.results.finding import Finding, finding, paper_epochs, side
from runs.record import Record

#: A mean squared error below which a fit of N(0, 1) is exact.
FITTED = 1e-3
#: Findings of figure 3: what each says, and the parts of d that it compares, the larger one first.
MAGNITUDES = {
    ("d changes more in query than in value", "figure 3", "query"): [("query", "value")],
    ("d changes more in later layers", "figure 3", "layers"): [("late", "early"), ("last", "first")],
}
SIMILAR = ("LoRA's and VeRA's changes resemble each other more than random ones", "figure 5", "similarity")
FITS = ("VeRA and LoRA fit random matrices equally well at equal counts", "figure 6", "fit")


def of_figures(runs: pd.DataFrame, measures: Sequence[Record]) -> Iterator[Finding]:
    """The findings of figure 3, run by run (the figure shows the median of the runs), of figure 5, pair of
    runs by pair, over the query matrices, and of figure 6."""
    for group in measured(runs, measures, "magnitude"):
        changes = [_values(measure, "d").dropna() for measure in group.measures]
        if changes and all({"query", "value"} <= set(of.site) for of in changes):
            layers = sorted({layer for of in changes for layer in of.layer})
            means = pd.DataFrame(_means(of, layers) for of in changes)
            for about, parts in MAGNITUDES.items():
                apart = [means[more] - means[less] for more, less in parts]
                yield _of_measures(about, runs, group.measures, apart, means.median().to_dict(), "run")
    for group in measured(runs, measures, "similarity"):
        cosines = [_queries(measure, "lora_vera", "lora_random").mean() for measure in group.measures]
        # A pair without a query matrix, or with a change that is zero, has no cosine
        means = pd.DataFrame(cosines, columns=["lora_vera", "lora_random"]).dropna()
        if len(means):
            numbers = means.median().to_dict() | {"band": null_band(group.measures)}
            apart = [means.lora_vera - means.lora_random]
            yield _of_measures(SIMILAR, runs, group.measures, apart, numbers, "pair")
    yield from _fits(measures)


def _of_measures(
    about: Sequence[str],
    runs: pd.DataFrame,
    measures: Sequence[Record],
    readings: Sequence[pd.Series],
    numbers: Mapping[str, float],
    unit: str,
) -> Finding:
    """A finding that holds of a run (or a pair of runs) where each of its readings is above 0, and agrees
    where each of them says so over the runs."""
    cell, label = (measures[0]["of"][0][key] for key in ("cell", "label"))
    ids = list(dict.fromkeys(run["id"] for measure in measures for run in measure["of"]))
    of = reported(runs[runs.id.isin(ids)]).sort_values("id", key=lambda column: column.map(ids.index))
    sides = tuple(side(row) for _, row in of.groupby("conf_row", sort=False))
    signs = {int(mean_of(apart).sign()) for apart in readings}
    agrees = {1: True, -1: False}.get(signs.pop()) if len(signs) == 1 else None
    holds, n = (pd.concat(readings, axis=1) > 0).all(axis=1).tolist(), len(readings[0])
    more = {"sides": sides, "counts": (n,), "unit": unit, "numbers": numbers}
    more["paper_epochs"] = paper_epochs(of.family.iloc[0], cell["task"]) if sides else {}
    about = (*about, cell["model"], cell["task"], label["model"], label["task"])
    return finding(about, holds, agrees, n, **more)


def _values(measure: Record, *names: str) -> pd.DataFrame:
    """The values of a measure by site and layer; NaN where one is none."""
    of = measure["values"]
    values = {name: finite(of[name]) for name in names}
    return pd.DataFrame(values | {key: of[key] for key in ("site", "layer") if key in of})


def _queries(measure: Record, *pairs: str) -> pd.DataFrame:
    """The cosines of the query matrices, by layer."""
    return _values(measure, *pairs).query("site == 'query'")[[*pairs]]


def _means(change: pd.DataFrame, layers: Sequence[int]) -> dict[str, float]:
    """The mean change of d by part: of sites, of halves of the layers, and of the first and last one."""
    later = change.layer >= layers[len(layers) // 2]
    parts = {site: change.site == site for site in ("query", "value")} | {"early": ~later, "late": later}
    parts |= {"first": change.layer == layers[0], "last": change.layer == layers[-1]}
    return {name: float(change.d[part].mean()) for name, part in parts.items()}


def null_band(measures: Sequence[Record]) -> float:
    """Half the width of the band that holds 95% of the means over layers where one side is a random matrix:
    1.96 standard errors, from the spread of every such cosine. NaN for fewer than two cosines."""
    random = [_queries(measure, "lora_random", "vera_random") for measure in measures]
    values = pd.concat([of.stack() for of in random])
    if values.count() < 2:
        return math.nan
    return float(1.96 * math.sqrt((values**2).mean() / max(of.count().max() for of in random)))


def _fits(measures: Sequence[Record]) -> Iterator[Finding]:
    """Figure 6, count by count. The finding is of every count: one that differs refutes it."""
    found = errors(measures)
    by_count = found[found.n > 0].drop_duplicates(["kind", "parameters"], keep="last")
    both = by_count.pivot(index="parameters", columns="kind", values="mean")
    both = both.reindex(columns=["vera", "lora"]).dropna()
    if len(both):
        equal = (both.vera - both.lora).abs() <= (0.1 * both.lora).clip(lower=FITTED)
        of: dict[str, Any] = {
            "label": "both",
            "median": math.nan,
            "mean": math.nan,
            "ids": found.runs.iloc[0],
        }
        lower = int(((both.vera < both.lora) & ~equal).sum())
        numbers = {"lower": lower, "errors": [*both.itertuples(name=None)]}
        more = {"sides": (of | {"best_is_last": 0, "several": 0},), "unit": "", "numbers": numbers}
        about = (*FITS, "", "", "10 x 10 matrices", "")
        yield finding(about, equal.tolist(), bool(equal.all()), len(of["ids"]), **more)
