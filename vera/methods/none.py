"""Nothing: the base model as it is, for rows that judge it (table 4)."""

from dataclasses import dataclass

from torch import nn

from vera.methods.contract import Method


@dataclass(frozen=True)
class NoMethod(Method, kind="none"):
    """Trains nothing, not even a head."""

    def adapt(self, model: nn.Module) -> None:
        super().adapt(model)
        model.requires_grad_(False)

    def install(self, model: nn.Module) -> None:
        pass

    def count(self, model: nn.Module) -> int:
        """Zero."""
        return 0
