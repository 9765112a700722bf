"""BitFit: every bias of the backbone trains (Zaken et al. 2022)."""

from dataclasses import dataclass

from torch import nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.sites import head_prefixes


@dataclass(frozen=True)
class BitFit(Method, kind="bitfit"):
    """Trains all biases of the backbone, LayerNorms' included."""

    def install(self, model: nn.Module) -> None:
        head = head_prefixes(model)
        parameters = model.named_parameters()
        biases = [p for name, p in parameters if name.endswith("bias") and not name.startswith(head)]
        if not biases:
            raise AdapterError(f"a {type(model).__name__} has no biases to train")
        for bias in biases:
            bias.requires_grad_(True)

    def count(self, model: nn.Module) -> int:
        """Sum of the widths of all biased layers outside the head."""
        head = head_prefixes(model)
        modules = ((name, m) for name, m in model.named_modules() if getattr(m, "bias", None) is not None)
        return sum(m.bias.numel() for name, m in modules if not f"{name}.".startswith(head))
