"""Whether a run predicts one class for every row, by the hash of its predictions."""

import hashlib
import math
import sys
from functools import cache

from runs.record.cell import ReportedMetric, epoch_of_table, seed_value
from runs.record.schema import Record

#: Predictions of one class are recognised for the classes 0 to 127. The paper's data
#: sets have 102 at most.
MOST_CLASSES = 128


def one_class(record: Record) -> str | None:
    """Says, for a run that is done and predicts one class for every dev row, how large
    that class is, such as "52.7% of dev, the larger class"; "" if the metric is no accuracy,
    which does not tell. None for other runs."""
    score = one_class_score(record)
    if score is None:
        return None
    if math.isnan(score):
        return ""
    share = ReportedMetric.of_record(record).text(score)
    larger = ", the larger class" if score >= 0.5 else ""
    return f"{share}% of dev{larger}"


def one_class_score(record: Record) -> float | None:
    """The accuracy of a run that is done and predicts one class for every dev row: the
    share of rows with that class. NaN if the metric is no accuracy, which does not
    tell; None for other runs. The epoch is the one that tables report.

    Records have a hash of the predictions (runs/training/loop.py), which are int64."""
    result = record["result"]
    epoch = epoch_of_table(record["config"]["train"], result["reported"])
    predictions = (record.get("predictions") or {}).get(epoch)
    hashes = _hashes_of_one_class(record["data"]["dev_rows"])
    if record["status"] != "done" or predictions not in hashes:
        return None
    if result["metric"] != "accuracy":
        return math.nan
    return seed_value(record, epoch)


@cache
def _hashes_of_one_class(rows: int) -> frozenset[str]:
    answers = (
        number.to_bytes(8, sys.byteorder) * rows for number in range(MOST_CLASSES)
    )
    return frozenset(hashlib.sha256(answer).hexdigest()[:16] for answer in answers)
