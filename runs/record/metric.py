"""A metric: its direction, and how tables print it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A metric of dev rows. scale: the factor that tables print a value with, 100 for fractions."""

    name: str
    higher_is_better: bool = True
    scale: float = 100.0

    @classmethod
    def of_task(cls, task: Any) -> "Metric":
        """The metric of a task (tasks/base.py)."""
        return cls(task.metric, task.higher_is_better, task.scale)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Metric":
        """The metric of a finished record."""
        result = record["result"]
        return cls(str(result["metric"]), result["higher_is_better"], result["scale"])

    @property
    def worst(self) -> float:
        """The value of a run that diverged before its first evaluation."""
        return 0.0 if self.higher_is_better else math.inf

    @property
    def decimals(self) -> int:
        """The decimals of a value in a table."""
        return 1 if self.scale == 100 else 2

    def best(self, values: Sequence[float]) -> int:
        """Index of the best of these values, the earliest of equals; 0 where there are none."""
        return values.index((max if self.higher_is_better else min)(values)) if values else 0

    def text(self, value: float) -> str:
        """A value as tables print it."""
        return f"{self.scale * value:.{self.decimals}f}"
