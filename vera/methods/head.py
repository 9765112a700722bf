"""The head alone: the backbone stays frozen."""

from dataclasses import dataclass

from torch import nn

from vera.methods.base import Method


@dataclass(frozen=True)
class Head(Method, kind="head"):
    """Trains the classification head and nothing else (for BERT with its pooler)."""

    def install(self, model: nn.Module) -> None:
        pass

    def count(self, model: nn.Module) -> int:
        """Zero: the head is counted apart."""
        return 0
