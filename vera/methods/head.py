"""The head alone: the backbone stays frozen."""

from dataclasses import dataclass

from torch import nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.sites import head_parameters


@dataclass(frozen=True)
class Head(Method, kind="head"):
    """Trains the classification head and nothing else (for BERT with its pooler)."""

    def install(self, model: nn.Module) -> None:
        if not head_parameters(model):
            raise AdapterError(f"a {type(model).__name__} has no classification head to train")

    def count(self, model: nn.Module) -> int:
        """Zero: the head is counted apart."""
        return 0
