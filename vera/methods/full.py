"""Full fine-tuning: every parameter trains."""

from dataclasses import dataclass

from torch import nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.sites import head_parameters


@dataclass(frozen=True)
class Full(Method, kind="full"):
    """Trains the whole backbone and the head."""

    def install(self, model: nn.Module) -> None:
        if not all(p.is_floating_point() for p in model.parameters()):
            raise AdapterError("full fine-tuning cannot train quantised weights: load them unquantised")
        model.requires_grad_(True)

    def count(self, model: nn.Module) -> int:
        """All parameters less the head's."""
        return sum(p.numel() for p in model.parameters()) - sum(
            p.numel() for p in head_parameters(model).values()
        )
