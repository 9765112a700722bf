"""The findings of the paper's figures 3, 5 and 6, tried on our measures."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.cells import Cell
from analysis.figures import figure6
from analysis.figures.measures import measured
from analysis.inference import FIRM_PAIRS, is_positive
from analysis.results.claim import Claim, Runs, claim_of
from analysis.table import texts
from runs.record import Ledger, Record
from runs.record.text import plural

#: A mean squared error below which a fit of N(0, 1) is exact.
FITTED = 1e-3


def of_figures(ledger: Ledger) -> list[Claim]:
    """The findings of figures 3, 5 and 6."""
    return [*_magnitudes(ledger), *_similarities(ledger), *_fits(ledger)]


def _where(measures: Sequence[Record], count: str) -> str:
    """The model and task by their labels, and how many runs were measured."""
    label = measures[0]["of"][0]["label"]
    return f"{label['model']}, {label['task']}, {count}"


def _cells(ledger: Ledger, measures: Sequence[Record]) -> list[Cell]:
    """The runs that were measured, by row, where their records are there."""
    by_row: dict[str, list[Record]] = defaultdict(list)
    for run in dict.fromkeys(of["id"] for measure in measures for of in measure["of"]):
        if run in ledger.records:
            by_row[ledger.records[run]["cell"]["row"]].append(ledger.records[run])
    return [Cell(records, len(records)) for records in by_row.values()]


def _magnitudes(ledger: Ledger) -> Iterator[Claim]:
    """Figure 3, run by run; the figure shows the median of the runs."""
    for group in measured(ledger, "magnitude", lambda measure: measure["of"][0]["cell"]["row"] == "vera"):
        changes = [
            [
                change
                for change in zip(*(measure["values"][key] for key in ("layer", "site", "d")), strict=True)
                if change[2] is not None
            ]
            for measure in group.measures
        ]
        if not changes or not all({"query", "value"} <= {site for _, site, _ in run} for run in changes):
            continue
        layers = sorted({layer for run in changes for layer, *_ in run})
        middle = layers[len(layers) // 2]
        sites = [
            [statistics.fmean(d for _, s, d in run if s == site) for site in ("query", "value")]
            for run in changes
        ]
        halves = [
            [statistics.fmean(d for n, _, d in run if (n >= middle) is late) for late in (False, True)]
            for run in changes
        ]
        ends = [
            [statistics.fmean(d for n, _, d in run if n == layer) for layer in (layers[0], layers[-1])]
            for run in changes
        ]
        query, value = map(statistics.median, zip(*sites, strict=True))
        early, late = map(statistics.median, zip(*halves, strict=True))
        first, last = map(statistics.median, zip(*ends, strict=True))
        where = _where(group.measures, plural(len(changes), "run"))
        for claim, here, readings in (
            (
                "d changes more in query than in value",
                f"mean over layers, median of the runs: query {query:.3g}, value {value:.3g}",
                [[of_query - of_value for of_query, of_value in sites]],
            ),
            (
                "d changes more in later layers",
                f"mean of the first half of the layers, median of the runs: {early:.3g}, of the second"
                f" {late:.3g}; of the first layer {first:.3g}, of the last {last:.3g}",
                [[after - before for before, after in parts] for parts in (halves, ends)],
            ),
        ):
            holds = [min(of_run) > 0 for of_run in zip(*readings, strict=True)]
            words, cells = {is_positive(apart) for apart in readings}, _cells(ledger, group.measures)
            agrees = words.pop() if len(words) == 1 else None
            yield claim_of(claim, "figure 3", where, here, holds, agrees, len(holds), cells)


def _similarities(ledger: Ledger) -> Iterator[Claim]:
    """Figure 5, pair of runs by pair, over the query matrices; with the band of random matrices."""
    for group in measured(ledger, "similarity"):
        cosines = [
            [_queries(measure["values"], pair) for pair in ("lora_vera", "lora_random")]
            for measure in group.measures
        ]
        # A pair without a query matrix, or with a change that is zero, has no cosine.
        means = [[statistics.fmean(values) for values in pair] for pair in cosines if all(pair)]
        if not means:
            continue
        together, random = map(statistics.median, zip(*means, strict=True))
        here = (
            "mean cosine over layers of query matrices, median of the pairs:"
            f" LoRA and VeRA {together:.1e}, LoRA and random {random:.1e}"
        )
        if (band := null_band(group.measures)) is not None:
            here += f"; 95% of such means with a random matrix lie within +-{band:.1e}"
        claim = "LoRA's and VeRA's changes resemble each other more than random ones"
        apart = [of_both - of_random for of_both, of_random in means]
        where, holds = _where(group.measures, f"{plural(len(means), 'pair')} of runs"), [d > 0 for d in apart]
        cells = _cells(ledger, group.measures)
        yield claim_of(claim, "figure 5", where, here, holds, is_positive(apart), len(means), cells)


def null_band(measures: Sequence[Record]) -> float | None:
    """Half the width of the band that holds 95% of the means over layers where one side is a random matrix:
    1.96 standard errors, from the spread of every such cosine. None for fewer than two cosines."""
    random = [_queries(m["values"], pair) for m in measures for pair in ("lora_random", "vera_random")]
    values = [value for of_pair in random for value in of_pair]
    if len(values) < 2:
        return None
    return 1.96 * math.sqrt(statistics.fmean(value**2 for value in values) / max(map(len, random)))


def _queries(values: dict[str, list[Any]], pair: str) -> list[float]:
    """The cosines of the query matrices, by layer."""
    return [
        value
        for value, site in zip(values[pair], values["site"], strict=True)
        if site == "query" and value is not None
    ]


def _fits(ledger: Ledger) -> Iterator[Claim]:
    """Figure 6, count by count. The finding is of every count: one that differs refutes it."""
    (figure,) = figure6.make(ledger)
    lines = [dict(zip(figure.header, row, strict=True)) for row in texts(figure.rows)]
    errors = {(line["method"], int(line["parameters"])): float(line["mse mean"]) for line in lines}
    counts = sorted(count for method, count in errors if method == "LoRA" and ("VeRA", count) in errors)
    if not counts:
        return
    pairs = [(count, errors["VeRA", count], errors["LoRA", count]) for count in counts]
    equal = tuple(abs(vera - lora) <= max(0.1 * lora, FITTED) for _, vera, lora in pairs)
    lower = sum(vera < lora for (_, vera, lora), same in zip(pairs, equal, strict=True) if not same)
    numbers = ", ".join(f"{count}: {vera:.3f} and {lora:.3f}" for count, vera, lora in pairs)
    here = (
        f"of {len(pairs)} counts equal at {sum(equal)}, VeRA's error lower at {lower} (VeRA and LoRA at"
        f" {numbers})"
    )
    claim = "VeRA and LoRA fit random matrices equally well at equal counts"
    measures = tuple(dict.fromkeys(name for line in lines for name in line["runs"].split()))
    runs = (Runs("both", "10 x 10 matrices", measures),)
    firm = len(measures) >= FIRM_PAIRS
    yield Claim(claim, "figure 6", "10 x 10 matrices", here, equal, all(equal), firm, runs=runs)
