"""Whether two records of one run have the same result."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from runs.record.schema import Record

#: Metrics of regressions. Their predictions are sums of floats, which two processors
#: round differently, so their scores agree within a tolerance.
REGRESSION_METRICS = ("pearson", "spearman")
#: Scores of a regression that differ by less agree. Two processors differed by 2e-8.
REGRESSION_TOLERANCE = 1e-6
#: The keys of a result that commands add after the run.
KEYS_ADDED_LATER = ("lm_eval",)


def difference_of_results(first: Record, second: Record) -> float | None:
    """How far the results of two records of one run lie apart: the largest difference
    between their numbers; infinity if anything but numbers differs; None if they agree.

    The hash of the predictions is not compared: for a regression it differs with the
    last bits."""
    first_result = _result_of_run(first)
    second_result = _result_of_run(second)
    if first_result == second_result:
        return None
    difference = _largest_difference(first_result, second_result)
    metric = (first.get("result") or {}).get("metric")
    if metric in REGRESSION_METRICS and difference < REGRESSION_TOLERANCE:
        return None
    return difference


def _result_of_run(record: Record) -> dict[str, Any]:
    """A record's result without KEYS_ADDED_LATER."""
    result = record.get("result") or {}
    return {key: value for key, value in result.items() if key not in KEYS_ADDED_LATER}


def _largest_difference(first: Any, second: Any) -> float:
    """The largest difference between the numbers at the same keys and indices of two
    JSON values; infinity if anything but numbers differs."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return math.inf
        pairs = [(first[key], second[key]) for key in first]
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return math.inf
        pairs = list(zip(first, second, strict=True))
    elif isinstance(first, int | float) and isinstance(second, int | float):
        return abs(first - second)
    else:
        return 0.0 if first == second else math.inf
    return max((_largest_difference(*pair) for pair in pairs), default=0.0)


def conflict_note(conflicts: Mapping[str, float], origins: Iterable[str]) -> str:
    """A note on runs with two records whose results differ: that the record which the
    ledger read first counts, and how large the largest difference is.

    Args:
        conflicts: by the run's id, how much the two results differ
            (`difference_of_results`).
        origins: where the ledger's records of these runs come from: "ours", or a study.
    """
    runs_have = f"{len(conflicts)} runs have"
    if len(conflicts) == 1:
        (run_id,) = conflicts
        runs_have = f"run {run_id} has"
    largest = max(conflicts.values())
    by_how_much = ""
    if math.isfinite(largest):
        by_how_much = f" (the largest difference is {largest:.2g})"
    places = ", ".join(sorted({*origins}))
    return (
        f"{runs_have} another result here than in {places}, which counts{by_how_much}"
    )
