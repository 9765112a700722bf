"""What the paper's figures 3, 5 and 6 show, held to our measures."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from analysis import figures
from analysis.cells import Cell
from analysis.figures import figure3, figure5, figure6
from analysis.inference import is_above
from analysis.results.claim import Claim, Runs, is_firm, runs_of, trained
from analysis.table import texts
from runs.record import Ledger, Record
from runs.record.text import plural

#: A mean squared error below which a fit of N(0, 1) is whole.
FITTED = 1e-3


def of_figures(ledger: Ledger) -> list[Claim]:
    """What figures 3, 5 and 6 show."""
    return [*_moved(ledger), *_alike(ledger), *_fit(ledger)]


def _lines(figure: figures.Figure) -> list[dict[str, str]]:
    return [dict(zip(figure.header, row, strict=True)) for row in texts(figure.rows)]


def _of(figure: figures.Figure) -> str:
    """The model and task of a figure, by its title."""
    return figure.title.rpartition(", ")[2].replace(" on ", ", ")


def _moved(ledger: Ledger) -> Iterator[Claim]:
    """Of each run by itself: what figure 3 shows is the median of them."""
    for figure in figure3.make(ledger):
        runs = sorted({name for line in _lines(figure) for name in line["runs"].split()})
        measures = [
            m["values"]
            for m in ledger.measures.values()
            if m["kind"] == "magnitude" and m["of"][0]["id"] in runs
        ]
        moved = [
            [p for p in zip(m["layer"], m["site"], m["d"], strict=True) if p[2] is not None] for m in measures
        ]
        place = f"{_of(figure)}, {plural(len(runs), 'run')}"
        if not moved or not all({"query", "value"} <= {site for _, site, _ in run} for run in moved):
            continue
        sites = [
            [statistics.fmean(d for _, s, d in run if s == site) for site in ("query", "value")]
            for run in moved
        ]
        layers = sorted({layer for run in moved for layer, *_ in run})
        middle = layers[len(layers) // 2]
        halves = [
            [statistics.fmean(d for n, _, d in run if (n >= middle) is late) for late in (False, True)]
            for run in moved
        ]
        query, value = (statistics.median(pair[i] for pair in sites) for i in (0, 1))
        words = f"mean over layers, median of the runs: query {query:.3g}, value {value:.3g}"
        early, late = (statistics.median(pair[i] for pair in halves) for i in (0, 1))
        rows = _rows(ledger, runs)
        epochs, behind = trained(rows) if rows else "-", runs_of(rows)
        for claim, told, apart in (
            ("d changes more in query than in value (figure 3)", words, [q - v for q, v in sites]),
            (
                "d changes more in later layers (figure 3)",
                (
                    f"mean of the first half of the layers, median of the runs: {early:.3g}, of the second"
                    f" {late:.3g}"
                ),
                [b - a for a, b in halves],
            ),
        ):
            yield Claim(
                claim,
                place,
                told,
                tuple(d > 0 for d in apart),
                is_above(apart),
                is_firm(len(apart)),
                epochs,
                behind,
            )


def _rows(ledger: Ledger, runs: Sequence[str]) -> list[Cell]:
    """The runs that a figure measures, by row, where their records are there."""
    records = [ledger.records[run] for run in runs if run in ledger.records]
    by_row: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_row[record["cell"]["row"]].append(record)
    return [Cell(of_row, len(of_row)) for of_row in by_row.values()]


def _alike(ledger: Ledger) -> Iterator[Claim]:
    """Of each pair of runs by itself, over the query matrices; with the band in which random matrices lie."""
    for figure in figure5.make(ledger):
        runs = {name for line in _lines(figure) for name in line["runs"].split()}
        measures = [
            m
            for m in ledger.measures.values()
            if m["kind"] == "similarity" and {o["id"] for o in m["of"]} <= runs
        ]
        means = [[_query_mean(m["values"], pair) for pair in ("lora_vera", "lora_random")] for m in measures]
        found = [
            (together, random) for together, random in means if together is not None and random is not None
        ]
        if not found:
            continue
        together, random = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        told = f"LoRA and VeRA {together:.1e}, LoRA and random {random:.1e}"
        words = f"mean cosine over layers of query matrices, median of the pairs: {told}"
        if (band := null_band(measures)) is not None:
            words += f"; 95% of such means with a random matrix lie within +-{band:.1e}"
        claim = "LoRA's and VeRA's changes resemble each other more than random ones (figure 5)"
        apart = [together - random for together, random in found]
        holds = tuple(difference > 0 for difference in apart)
        place = f"{_of(figure)}, {plural(len(found), 'pair')} of runs"
        rows = _rows(ledger, sorted(runs))
        yield Claim(
            claim,
            place,
            words,
            holds,
            is_above(apart),
            is_firm(len(found)),
            trained(rows) if rows else "-",
            runs_of(rows),
        )


def null_band(measures: Sequence[Record]) -> float | None:
    """Half the width of the band in which 95% of the means over layers lie where one side is a random matrix:
    1.96 standard errors, from the spread of every such cosine that was measured."""
    random = [_queries(m["values"], pair) for m in measures for pair in ("lora_random", "vera_random")]
    values = [value for of_pair in random for value in of_pair]
    if len(values) < 2:
        return None
    return 1.96 * math.sqrt(statistics.fmean(value**2 for value in values) / max(map(len, random)))


def _queries(values: dict[str, list[Any]], pair: str) -> list[float]:
    return [
        value
        for value, site in zip(values[pair], values["site"], strict=True)
        if site == "query" and value is not None
    ]


def _query_mean(values: dict[str, list[Any]], pair: str) -> float | None:
    """The mean over layers; None where there is no query matrix, or a change is zero."""
    found = _queries(values, pair)
    return statistics.fmean(found) if found else None


def _fit(ledger: Ledger) -> Iterator[Claim]:
    (figure,) = figure6.make(ledger)
    errors = {(line["method"], int(line["parameters"])): float(line["mse mean"]) for line in _lines(figure)}
    counts = [count for method, count in errors if method == "LoRA" and ("VeRA", count) in errors]
    if counts:
        pairs = [(count, errors["VeRA", count], errors["LoRA", count]) for count in sorted(counts)]
        equal = tuple(abs(vera - lora) <= max(0.1 * lora, FITTED) for _, vera, lora in pairs)
        lower = sum(vera < lora for (_, vera, lora), same in zip(pairs, equal, strict=True) if not same)
        told = ", ".join(f"{count}: {vera:.3f} and {lora:.3f}" for count, vera, lora in pairs)
        words = (
            f"of {len(pairs)} counts equal at {sum(equal)}, VeRA's error lower at {lower} (VeRA and LoRA at"
            f" {told})"
        )
        claim = "VeRA and LoRA fit random matrices equally well at equal counts (figure 6)"
        # One count that differs refutes it
        ids = dict.fromkeys(name for line in _lines(figure) for name in line["runs"].split())
        behind = (Runs("both", "10 x 10 matrices", tuple(ids)),)
        yield Claim(claim, "10 x 10 matrices", words, equal, all(equal), True, runs=behind)
