"""Pearson correlation, STS-B's metric."""

import datasets
import evaluate
from scipy.stats import pearsonr


class Pearson(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("float32"), "references": datasets.Value("float32")}
        )
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        # A constant prediction has no correlation. 0, as Matthews is there: a collapsed run is a result, not
        # a gap.
        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return {"pearson": 0.0}
        return {"pearson": pearsonr(references, predictions).statistic}
