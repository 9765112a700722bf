"""Statistics beside the paper's own: intervals over seeds, paired differences, probability of improvement, verdicts.

    python -m analysis.stats [table2 | paper=table2_base] [--row vera] [--output outputs] [--format md|latex|csv]

Without a word: every cell of the ledger. Everything is seeded: the same records give the same numbers.

- Interval of the median: percentile bootstrap over seeds (Efron and Tibshirani 1993, chapter 13). With 5 seeds or fewer its
  95% interval is the range of the seeds, which covers the true median with probability 1 - 2 * (1/2)^n: 94% at n=5, 75% at
  n=3 (order statistics; David and Nagaraja 2003, section 7.1). BCa is not used: its acceleration comes from a jackknife,
  which is not consistent for the median.
- Sign test on differences paired by task and seed, exact, two-sided, ties dropped (Dixon and Mood 1946). With n pairs it
  cannot go below 2 * (1/2)^n: 0.0625 at n=5.
- Probability of improvement P(X > Y) + P(X = Y) / 2, the mean over tasks; its interval resamples the runs of each task
  (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", sections 4.1 and 4.3).
"""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from analysis.cells import Cell, Key, row_of
from analysis.command import Parser, entry_point, open_ledger
from analysis.inference import Estimate, difference
from runs.record import Record, reported

RESAMPLES = 9999
#: For probabilities of improvement: they take a resample of both sides in each task.
IMPROVEMENT_RESAMPLES = 2000
LEVEL = 0.95
#: Seeds that a verdict needs, and that the paper's medians and means are over.
VERDICT_SEEDS = 5
#: How wide half of the interval of a reproduced cell may be: for accuracy, Matthews, Pearson, BLEU, METEOR and ROUGE-L in
#: points, for NIST and CIDEr, and for a judge's scores from 1 to 10.
MARGIN, MARGIN_OF_10, MARGIN_OF_JUDGES = 1.0, 0.1, 0.2
#: Metrics that are not fractions, and of which less is better.
PERPLEXITY = "perplexity"


# --- intervals and tests


@cache
def _draws(n: int) -> Any:
    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Percentile bootstrap of the median; None for a single value."""
    if len(values) < 2:
        return None
    medians = np.median(np.asarray(values, dtype=float)[_draws(len(values))], axis=1)
    low, high = np.percentile(medians, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def sign_test(differences: Iterable[float]) -> float:
    """The exact two-sided p of as many signs one way, zeros left out; 1 where nothing is left."""
    signs = [difference > 0 for difference in differences if difference != 0]
    n, k = len(signs), min(sum(signs), len(signs) - sum(signs))
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def smallest_p(n: int) -> float:
    """What the sign test cannot go below with n pairs."""
    return min(1.0, 2.0 ** (1 - n))


def improvement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs of runs, the mean over tasks. One (x, y) a task, each a value a run."""
    return float(np.mean([_above(np.asarray(x, dtype=float)[None], np.asarray(y, dtype=float)[None])[0] for x, y in pairs]))


def improvement_interval(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], level: float = LEVEL
) -> tuple[float, float] | None:
    """Stratified percentile bootstrap: the runs of each side and task are resampled. None where a side has one run."""
    if any(len(x) < 2 or len(y) < 2 for x, y in pairs):
        return None
    random, means = np.random.default_rng(0), np.zeros(IMPROVEMENT_RESAMPLES)
    for x, y in pairs:
        both = [np.asarray(side, dtype=float) for side in (x, y)]
        means += _above(*(side[random.integers(0, len(side), (IMPROVEMENT_RESAMPLES, len(side)))] for side in both))
    low, high = np.percentile(means / len(pairs), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _above(x: Any, y: Any) -> Any:
    """For each resample (first axis) the share of pairs in which x is above y."""
    x, y = x[:, :, None], y[:, None, :]
    return ((x > y) + 0.5 * (x == y)).mean(axis=(1, 2))


# --- the number that a cell reports


@dataclass(frozen=True)
class Series:
    """The number that a cell's table reports, by seed, in points: its name, and whether less is better.

    unknown: seeds that finished without that number. They are in no statistic, and are named beside it.
    """

    name: str
    values: dict[int, float]
    less: bool = False
    unknown: tuple[int, ...] = ()


def series(cell: Cell, which: str | None = None, select: str | None = None) -> Series:
    """By seed: BLEU of the last epoch where texts were scored, else the metric of the last epoch of images and texts, and of
    the best one elsewhere. `which` ("best", "last") and `select` ("paper", "crossfit"; the cell's own) ask for another epoch.

    A diverged seed counts by what it had before, or 0, as in the tables; of perplexity, as infinity.
    """
    first = cell.records[0]
    if which is None and any(record.get("texts") for record in cell.records):
        values = dict(zip((r["cell"]["seed"] for r in cell.records), map(_bleu, cell.records), strict=True))
        return _series("BLEU, last epoch", values, False)
    metric = str(first["result"]["metric"])
    family = first["config"]["task"].get("family")
    which = which or ("last" if family in ("images", "instruct", "e2e") else "best")
    less = metric == PERPLEXITY
    found: dict[int, float | None] = {}
    for record in cell.records:
        value = reported(record, select or cell.select).get(which)
        if value is not None and not math.isfinite(value):
            value = None
        if value is None and record["status"] == "diverged":
            value = math.inf if less else 0.0
        found[record["cell"]["seed"]] = value if value is None or less else 100 * value
    return _series(f"{metric}, {which} epoch", found, less)


def _bleu(record: Record) -> float | None:
    if record["status"] == "diverged" and not record.get("texts"):
        return 0.0
    entries = [e for e in (record.get("texts") or {}).get("scores", []) if e["which"] == "last"]
    return entries[0].get("bleu") if entries else None


def _series(name: str, values: Mapping[int, float | None], less: bool) -> Series:
    known = {seed: value for seed, value in values.items() if value is not None and not math.isnan(value)}
    return Series(name, known, less, tuple(seed for seed in values if seed not in known))


# --- verdicts


@dataclass(frozen=True)
class Verdict:
    """One of verdicts.WORDS, and what it rests on. interval: the 95% interval of `difference`, ours less the paper's, from
    both sides, or from ours alone where the paper prints no spread."""

    word: str
    ours: float | None = None
    printed: float | None = None
    margin: float = MARGIN
    difference: float | None = None
    interval: tuple[float, float] | None = None
    seeds: int = 0
    deviations: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


def verdict(
    cell: Cell | None,
    printed: float | None,
    printed_spread: float | None = None,
    paper_model: bool = True,
    values: Sequence[float] | None = None,
    margin: float = MARGIN,
    quoted: bool = False,
    middle: Any = statistics.median,
    same_size: bool = True,
) -> Verdict:
    """Whether a cell of the paper is reproduced, over at least 5 seeds of the paper's model.

    Where the paper prints a spread: "reproduced" (the interval of the difference holds 0, and half of it is at most the
    margin), "consistent, wide" (it holds 0 and is wider), "not reproduced" (it does not hold 0). Else the paper's number
    is "inside our interval" or "outside our interval".

    values: of each seed, in the unit of the table (the best epoch's, unless given). quoted: the paper itself took the number
    from earlier work. middle: the mean where the paper prints one. same_size: our row trains as many numbers as the
    paper's. Fewer than 5 seeds, or a seed without the number, are "incomplete", however close.
    """
    if cell is None:
        return Verdict("quoted" if quoted else "not run", printed=printed, margin=margin)
    if values is None:
        values = list(series(cell, "best").values.values())
    ours = float(middle(values)) if values else None
    bounds, gap = None, None
    if not paper_model:
        word = "other model"
    elif printed is None:
        word = "not in the paper"
    elif not same_size:
        word = "other size"
    elif ours is None or len(values) < max(VERDICT_SEEDS, cell.seeds):
        word, gap = "incomplete", None if ours is None else ours - printed
    else:
        found = difference(*sides(values, printed, printed_spread, middle))
        word, bounds, gap = str(found.word(margin)), found.interval, found.value
    words = dict.fromkeys(word for record in cell.records for word in record["deviations"])
    ids = tuple(record["id"] for record in cell.records)
    return Verdict(word, ours, printed, margin, gap, bounds, len(values), tuple(words), ids)


#: Half of the last digit of a spread as the paper prints it: a spread of "0.1" may be 0.05, and one of "0.0" is not none.
HALF_DIGIT = 0.05


def sides(
    values: Sequence[float], printed: float, spread: float | None, middle: Any = statistics.median
) -> tuple[Estimate, Estimate]:
    """Ours and the paper's number, each with what it varies by."""
    spread = None if spread is None else max(spread, HALF_DIGIT)
    return Estimate.of(values, middle), Estimate.printed(printed, spread, VERDICT_SEEDS, middle)


# --- comparisons


@dataclass(frozen=True)
class Comparison:
    """One row against another on a task, or pooled over tasks (task "all"). Positive: the first is better, less is better
    or not. `p` cannot go below smallest_p(pairs)."""

    model: str
    row: str
    other: str
    task: str
    labels: tuple[str, str]
    differences: tuple[float, ...]  # of each pair, by task and seed
    wins: int
    losses: int
    difference: float
    interval: tuple[float, float] | None
    p: float
    improvement: float
    improvement_interval: tuple[float, float] | None
    less: bool  # less is better of what is compared: perplexity
    ids: tuple[str, ...] = field(default=(), repr=False)

    @property
    def pairs(self) -> int:
        return len(self.differences)


def compare(found: Mapping[Key, Cell], row: str = "vera") -> list[Comparison]:
    """A row against every other of the same model: on each task where both have runs, and over these tasks together.

    Differences are paired by task and seed; a seed that one side lacks is in nothing. Tasks are taken together where both rows
    have one size on them, and their numbers one sign. The pooled sign test takes the pairs of all tasks as independent: runs of
    one seed on two tasks share no draw but the seed's number.
    """
    out = []
    for model in sorted({key[0] for key in found}):
        tasks = [key[2] for key in found if key[:2] == (model, row)]
        for other in sorted({key[1] for key in found if key[0] == model} - {row}):
            lines = [
                (task, found[model, row, task], found[model, other, task]) for task in tasks if (model, other, task) in found
            ]
            usable = [(task, *_both(a, b), a, b) for task, a, b in lines]
            usable = [line for line in usable if line[1]]
            for task, differences, sides, a, b in usable:
                out.append(_comparison(model, row, other, task, [differences], [sides], [(a, b)]))
            alike: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
            for line in usable:
                a, b = line[3:]
                alike[a.label, b.label, series(a).less].append(line)
            for of_size in alike.values():
                if len(of_size) > 1:
                    both = [(a, b) for *_, a, b in of_size]
                    out.append(_comparison(model, row, other, "all", [u[1] for u in of_size], [u[2] for u in of_size], both))
    return out


def _both(a: Cell, b: Cell) -> tuple[list[float], tuple[list[float], list[float]]]:
    """The paired differences of two cells, and the values of each side over the seeds of the pairs; the sign such that more is
    better."""
    mine, others = series(a), series(b)
    if mine.name != others.name:  # one has texts scored, the other has not
        return [], ([], [])
    sign = -1.0 if mine.less else 1.0
    shared = sorted(set(mine.values) & set(others.values))
    apart = [sign * (mine.values[s] - others.values[s]) if mine.values[s] != others.values[s] else 0.0 for s in shared]
    return apart, ([sign * mine.values[s] for s in shared], [sign * others.values[s] for s in shared])


def _comparison(
    model: str,
    row: str,
    other: str,
    task: str,
    differences: list[list[float]],
    sides: list[tuple[list[float], list[float]]],
    cells_: list[tuple[Cell, Cell]],
) -> Comparison:
    flat = [difference for of_task in differences for difference in of_task]
    return Comparison(
        model,
        row,
        other,
        task,
        (cells_[0][0].label, cells_[0][1].label),
        tuple(flat),
        sum(d > 0 for d in flat),
        sum(d < 0 for d in flat),
        statistics.median(flat),
        interval(flat),
        sign_test(flat),
        improvement(sides),
        improvement_interval(sides),
        all(series(cell).less for both in cells_ for cell in both),
        tuple(record["id"] for both in cells_ for cell in both for record in cell.records),
    )


def main(arguments: list[str]) -> int:
    from analysis import verdicts  # which asks the tables for the paper's cells, and they ask this file for verdicts

    parser = Parser("stats", __doc__)
    parser.add_argument("what", nargs="?", default="", help="a table (table2), or a preset's runs (paper=table2_base)")
    parser.add_argument("--row", help="the row that the others are compared with (vera)")
    parser.add_argument("--format", choices=("md", "latex", "csv"), default="md")
    options = parser.read(arguments)
    ledger = open_ledger(options.output)
    try:
        part = verdicts.part(ledger, options.what, options.row or "vera")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not part.records:
        of = f" of {options.what}" if options.what else ""
        way = "make help lists what runs them" if of else "make demo"
        print(f"error: no records{of} in {options.output}/records yet ({way})", file=sys.stderr)
        return 2
    rows = sorted({row_of(record) for record in part})
    if options.row and options.row not in rows:
        print(f"error: no records of row {options.row!r}. There are: {', '.join(rows)}", file=sys.stderr)
        return 2
    print("\n\n".join(table.render(options.format) for table in verdicts.statistics_tables(part, options.row or "vera")))
    return 0


if __name__ == "__main__":
    entry_point(main)
