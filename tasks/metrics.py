"""The metrics of texts and images. They are wrapped in a class of the `evaluate` library,
which needs no hub. The name of its configuration chooses the metric (METRICS).

Importing this imports evaluate and with it torch."""

from functools import cache, partial
from typing import Any

import datasets
import evaluate
import numpy.typing as npt
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score


def _pearson(references: list[float], predictions: list[float]) -> float:
    """Pearson correlation, or 0 where one side is constant."""
    # Like Matthews correlation, and no NaN: a collapsed run is a result, not a gap
    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return 0.0
    return float(pearsonr(references, predictions).statistic)


def _balanced_accuracy(references: list[int], predictions: list[int]) -> float:
    """The mean of the classes' recalls, over the classes that have a row."""
    # sklearn's balanced_accuracy_score warns where a class without a row is predicted,
    # which happens when only half of the dev rows are scored
    return float(
        recall_score(references, predictions, labels=[*{*references}], average="macro")
    )


#: A function of references and predictions by each metric's name.
METRICS: dict[str, Any] = {
    "accuracy": accuracy_score,
    "matthews": matthews_corrcoef,
    "macro_f1": partial(f1_score, average="macro", zero_division=0),
    "balanced_accuracy": _balanced_accuracy,
    "pearson": _pearson,
}


class Metric(evaluate.Metric):
    """One of METRICS, by the name of the configuration."""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("float32" if self.config_name == "pearson" else "int64")
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(
            description=__doc__, citation="", inputs_description="", features=features
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {self.config_name: METRICS[self.config_name](references, predictions)}


@cache
def _metric(name: str) -> Any:
    """The metric of this name, built once."""
    # keep_in_memory: runs side by side would otherwise write predictions to the same
    # file. evaluate.load would copy this module into its cache under a lock, which some
    # file systems do not have
    return Metric(config_name=name, keep_in_memory=True)


def score(name: str, predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """The metric `name` of predictions (rows,) against labels (rows,): an accuracy is a
    fraction."""
    return float(
        _metric(name).compute(predictions=predictions, references=labels)[name]
    )
