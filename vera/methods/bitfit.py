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
        biases = _biases(model)
        if not biases:
            raise AdapterError(f"a {type(model).__name__} has no biases to train")
        for bias in biases:
            bias.requires_grad_(True)

    def count(self, model: nn.Module) -> int:
        """Sum of the lengths of all biases outside the head."""
        return sum(bias.numel() for bias in _biases(model))


def _biases(model: nn.Module) -> list[nn.Parameter]:
    """Parameters by their names: a layer's "bias", an attention's "q_bias" (DeBERTa, BEiT)."""
    head = head_prefixes(model)
    return [p for n, p in model.named_parameters() if n.endswith("bias") and not n.startswith(head)]
