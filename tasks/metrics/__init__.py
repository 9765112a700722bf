"""Metrics as modules of the `evaluate` library, loaded by path: no hub needed. Each file here is one metric.

Importing this imports evaluate, and with it torch: only the training process does.
"""

from functools import cache
from pathlib import Path
from typing import Any

import evaluate

from tasks.base import Array


@cache
def _metric(name: str) -> Any:
    # keep_in_memory: no file of predictions is written, so runs side by side cannot meet in one.
    return evaluate.load(str(Path(__file__).parent / f"{name}.py"), keep_in_memory=True)


def score(name: str, predictions: Array, labels: Array) -> float:
    """The metric `name` of predictions (rows,) against labels (rows,), as a fraction."""
    result = _metric(name).compute(predictions=predictions, references=labels)
    return float(result[name])
