"""The epoch that a record reports: the best one on the dev set, as in the paper, or one that was chosen on
other rows."""

from typing import Any

from runs.record.metric import Metric
from runs.record.schema import Record


def crossfit(curve: dict[str, list[Any]], dev_rows: int, metric: Metric) -> dict[str, Any] | None:
    """Cross-fitted selection, which does not choose an epoch on the rows that it reports: chosen on half A of
    dev and reported on half B, chosen on B and reported on A, and the mean of the two, weighted by rows.

    curve: metric_select is of half A (dev_rows // 2 rows), metric_report of half B. Returns, on the scale of
    the curve: best; last, the same mean at the last epoch; best_epoch, the two epochs chosen; and optimism,
    the mean at the epoch that is best on all of dev, minus `best`. That is an upper estimate, since half of
    the rows choose worse than all of them. None for a curve without values of both halves."""
    a, b = curve.get("metric_select") or [], curve.get("metric_report") or []
    if not a or len(a) != len(b) or None in (*a, *b, *curve["metric"]):
        return None
    by_a, by_b, by_all = (metric.best(values) for values in (a, b, curve["metric"]))
    share = (dev_rows // 2) / dev_rows

    def mean(of_a: float, of_b: float) -> float:
        return share * of_a + (1 - share) * of_b

    best = mean(a[by_b], b[by_a])
    optimism = mean(a[by_all], b[by_all]) - best
    return {
        "best": best,
        "best_epoch": [curve["epoch"][by_a], curve["epoch"][by_b]],
        "last": mean(a[-1], b[-1]),
        "optimism": optimism if metric.higher_is_better else -optimism,
    }


def best_and_last(record: Record, select: str) -> dict[str, Any]:
    """A record's best and last number by paper, crossfit or half (A chooses, B reports); empty without."""
    if select == "paper":
        return dict(record["result"].get("protocols", {}).get("paper") or {})
    found, curve = crossfit_of(record) or {}, record["curve"]
    if select == "half" and found:
        best = curve["metric_report"][curve["epoch"].index(found["best_epoch"][0])]
        return {"best": best, "last": curve["metric_report"][-1]}
    return found


def crossfit_of(record: Record) -> dict[str, Any] | None:
    """`crossfit` of a finished record."""
    return crossfit(record["curve"], record["data"]["dev_rows"], Metric.of_record(record))
