"""Which epoch's number a record reports: the best on the dev set, as the paper, or one chosen on other
rows."""

from typing import Any

from runs.record.metric import Metric
from runs.record.schema import Record


def crossfit(curve: dict[str, list[Any]], dev_rows: int, metric: Metric) -> dict[str, Any] | None:
    """The best epoch without the flattery of choosing it on the rows reported: chosen on half A of dev and
    reported on half B, chosen on B and reported on A, and the mean of the two weighted by rows.

    best, last (the same mean at the last epoch), best_epoch (the two epochs chosen), and optimism: the same
    mean at the epoch that is best on the whole of dev, less `best`. It is an upper estimate: half of the rows
    choose worse than all. Values are as the curve has them; None without a curve. curve: metric_select is of
    half A (dev_rows // 2 rows), metric_report of B."""
    a, b = curve.get("metric_select") or [], curve.get("metric_report") or []
    if not a or len(a) != len(b) or None in (*a, *b, *curve["metric"]):
        return None
    by_a, by_b, whole = (metric.best(values) for values in (a, b, curve["metric"]))
    share = (dev_rows // 2) / dev_rows

    def mean(of_a: float, of_b: float) -> float:
        return share * of_a + (1 - share) * of_b

    best = mean(a[by_b], b[by_a])
    optimism = mean(a[whole], b[whole]) - best
    return {
        "best": best,
        "best_epoch": [curve["epoch"][by_a], curve["epoch"][by_b]],
        "last": mean(a[-1], b[-1]),
        "optimism": optimism if metric.higher_is_better else -optimism,
    }


def best_and_last(record: Record, select: str) -> dict[str, Any]:
    """A record's best and last number by a protocol, "paper" or "crossfit"; empty where it has none."""
    if select == "paper":
        return dict(record["result"].get("protocols", {}).get("paper") or {})
    return crossfit_of(record) or {}


def crossfit_of(record: Record) -> dict[str, Any] | None:
    """What `crossfit` says of a finished record."""
    return crossfit(record["curve"], record["data"]["dev_rows"], Metric.of_record(record))
