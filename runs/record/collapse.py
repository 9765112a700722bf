"""Whether a run predicts one class for every row, by the hash of its predictions."""

import hashlib
import math
import sys
from functools import cache

from runs.record.cell import ReportedMetric, epoch_of_table, score_of_record
from runs.record.schema import Record

#: Predictions of one class are recognised for the classes 0 to 127. The paper's data
#: sets have 102 at most.
MOST_CLASSES = 128


def describe_one_class(record: Record) -> str | None:
    """How many dev rows have the one class that a run predicts for all of them, in words:
    "52.7% of dev, the larger class". "" where only an accuracy would say how many
    (`one_class_score`) and the run has another metric. None for a run that predicts
    several classes, or is not done."""
    accuracy = one_class_score(record)
    if accuracy is None:
        return None
    if math.isnan(accuracy):
        return ""
    # Exactly the rows of the predicted class are right, so the accuracy is their share
    percent = ReportedMetric.of_record(record).text(accuracy)
    larger = ", the larger class" if accuracy >= 0.5 else ""
    return f"{percent}% of dev{larger}"


def one_class_score(record: Record) -> float | None:
    """The accuracy of a run that is done and predicts one class for every dev row, at the
    epoch that tables report. It equals the share of rows with that class, since only
    those are right. NaN for such a run if its metric is another one, such as Matthews
    correlation. None for a run that predicts several classes, or is not done.

    A record has a hash of its predictions, and not the predictions themselves: they are
    of one class if the hash is one that so many equal predictions would have."""
    result = record["result"]
    epoch = epoch_of_table(record["config"]["train"], result["reported"])
    prediction_hash = (record.get("predictions") or {}).get(epoch)
    hashes = _hashes_of_one_class(record["data"]["dev_rows"])
    if record["status"] != "done" or prediction_hash not in hashes:
        return None
    if result["metric"] != "accuracy":
        return math.nan
    return score_of_record(record, epoch)


@cache
def _hashes_of_one_class(rows: int) -> frozenset[str]:
    """The hashes by which a record shows that a run predicted one class: that of `rows`
    predictions of class 0, that of `rows` of class 1, and so on (runs/training/loop.py
    hashes them as int64)."""
    hashes = set()
    for number in range(MOST_CLASSES):
        predictions = number.to_bytes(8, sys.byteorder) * rows
        hashes.add(hashlib.sha256(predictions).hexdigest()[:16])
    return frozenset(hashes)
