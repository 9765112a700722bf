"""Matthews correlation, CoLA's metric; 0 where every row is predicted alike."""

import datasets
import evaluate
from sklearn.metrics import matthews_corrcoef


class Matthews(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        )
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"matthews": matthews_corrcoef(references, predictions)}
