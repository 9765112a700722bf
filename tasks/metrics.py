"""Metrics as a module of the `evaluate` library, loaded by path: no hub needed. Its configuration's name is
the metric.

Importing this imports evaluate, and with it torch: only the training process does.
"""

from functools import cache
from typing import Any

import datasets
import evaluate
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, matthews_corrcoef

from tasks.base import Array


def _pearson(references: list[float], predictions: list[float]) -> float:
    # A constant prediction has no correlation. 0, as Matthews is there: a collapsed run is a result, not a
    # gap.
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return 0.0
    return float(pearsonr(references, predictions).statistic)


#: Of references and predictions. accuracy: the share of rows predicted right. matthews: Matthews correlation,
#: CoLA's; 0 where every row is predicted alike. pearson: Pearson correlation, STS-B's.
METRICS = {"accuracy": accuracy_score, "matthews": matthews_corrcoef, "pearson": _pearson}


class Metric(evaluate.Metric):
    """One of METRICS, by the configuration's name."""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float32" if self.config_name == "pearson" else "int64")
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {self.config_name: METRICS[self.config_name](references, predictions)}


@cache
def _metric(name: str) -> Any:
    # keep_in_memory: no file of predictions is written, so runs side by side cannot meet in one.
    return evaluate.load(__file__, name, keep_in_memory=True)


def score(name: str, predictions: Array, labels: Array) -> float:
    """The metric `name` of predictions (rows,) against labels (rows,), as a fraction."""
    return float(_metric(name).compute(predictions=predictions, references=labels)[name])
