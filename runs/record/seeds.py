"""The seeds of one cell: one record for each, the number of each, and the interval of their median. Tables,
statistics and the card of a published adapter read the same ones."""

import hashlib
import math
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from runs.record.metric import Metric
from runs.record.schema import Record
from runs.record.selection import best_and_last

LEVEL, RESAMPLES = 0.95, 9999
#: Below so many seeds an interval of theirs is called what it is, their range.
INTERVAL_SEEDS = 5
#: A prediction of one class is looked for among so many classes: the paper's data sets have 102 at most.
CLASSES = 128


def one_each(records: Iterable[Record]) -> dict[int, Record]:
    """A record for each seed, of several the one with the fewest deviations and then of the first id."""
    found = {
        record["cell"]["seed"]: record  # the last one counts
        for record in sorted(records, key=lambda r: (len(r["deviations"]), r["id"]), reverse=True)
    }
    return dict(sorted(found.items()))


def seed_value(record: Record, epoch: str | None = None, select: str = "paper") -> float:
    """The metric of a finished record, unscaled; NaN for a run that finished without it. epoch: best or last;
    by default the one that the task's table reports."""
    value = best_and_last(record, select).get(epoch or record["result"]["reported"])
    if value is not None and math.isfinite(value):
        return float(value)
    return Metric.of_record(record).worst if record["status"] == "diverged" else math.nan


def sample_deviation(values: Collection[float]) -> float | None:
    """Sample standard deviation; None for a single value, and where a value is not finite: the perplexity of
    a diverged run is infinite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def epoch_of_table(train: Mapping[str, Any], reported: str) -> str:
    """best or last: the epoch that a table reports of runs with these settings, where their task's table
    reports `reported`. Where one epoch is evaluated, none is chosen: it is the last."""
    return reported if train["epochs"] > (train.get("evaluate_every") or 1) else "last"


def text_score(record: Record, key: str) -> float | None:
    """A score of the last epoch's texts, of the protocol's variant of decoding, which is the first; None
    where it has no such score (no Java), and 0 where it diverged before it had texts."""
    entries = [e for e in (record.get("texts") or {}).get("scores", []) if e["which"] == "last"]
    score = entries[0].get(key) if entries else 0.0 if record["status"] == "diverged" else None
    return None if score is None else float(score)


def one_class(record: Record) -> str | None:
    """Of a run that is done and predicts one class for every dev row, at the epoch that its table reports:
    the share of the rows that class has, in words; "" where the metric does not say it. None for other runs.

    Records have a hash of the predictions (runs/training/loop.py), which are int64."""
    result = record["result"]
    epoch = epoch_of_table(record["config"]["train"], result["reported"])
    kept, rows = (record.get("predictions") or {}).get(epoch), record["data"]["dev_rows"]
    if record["status"] != "done" or kept not in _hashes_of_one_class(rows):
        return None
    if result["metric"] != "accuracy":
        return ""
    value = seed_value(record, epoch)
    return f"{'the larger class is' if value >= 0.5 else 'a class of'} {Metric.of_record(record).text(value)}"


@cache
def _hashes_of_one_class(rows: int) -> frozenset[str]:
    answers = (number.to_bytes(8, sys.byteorder) * rows for number in range(CLASSES))
    return frozenset(hashlib.sha256(answer).hexdigest()[:16] for answer in answers)


def interval_name(counts: Iterable[int], of: str = "seeds") -> str:
    """What a table calls intervals over so many seeds: "95%", or "range of 2 seeds" below INTERVAL_SEEDS,
    where they are no more than that."""
    several = sorted(count for count in counts if count > 1)
    if not several or several[0] >= INTERVAL_SEEDS:
        return f"{LEVEL:.0%}"
    least, most = several[0], several[-1]
    if most >= INTERVAL_SEEDS:
        return f"{LEVEL:.0%}, or range below {INTERVAL_SEEDS} {of}"
    return f"range of {least}{f' to {most}' if most > least else ''} {of}"


@cache
def _draws(n: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Percentile bootstrap of the median (Efron and Tibshirani 1993, chapter 13); None for a single value.

    Not scipy.stats.bootstrap, whose resamples these are: its interval is not a number where a value is
    infinite, as the perplexity of a diverged run is."""
    import numpy as np

    if len(values) < 2:
        return None
    if min(values) == max(values):  # such as a count of parameters: every resample says the same
        return float(values[0]), float(values[0])
    medians = np.median(np.asarray(values, dtype=float)[_draws(len(values))], axis=1)
    bounds = []
    for percent in (50 * (1 - level), 50 * (1 + level)):
        below, above = (np.percentile(medians, percent, method=side) for side in ("lower", "higher"))
        # Between two infinities there is nothing to interpolate
        bounds.append(float(below if below == above else np.percentile(medians, percent)))
    return bounds[0], bounds[1]
