"""Methods that add nothing to the model: full fine-tuning, its biases (BitFit, Zaken et
al. 2022), the head alone, and the base model as it is."""

from dataclasses import dataclass

from torch import nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.sites import head_parameters, head_prefixes


@dataclass(frozen=True)
class Full(Method, kind="full"):
    """Trains the whole backbone and the head."""

    def install(self, model: nn.Module) -> None:
        if not all(p.is_floating_point() for p in model.parameters()):
            raise AdapterError(
                "full fine-tuning cannot train quantised weights: load them unquantised"
            )
        model.requires_grad_(True)

    def count(self, model: nn.Module) -> int:
        """All parameters minus the head's."""
        all_parameters = sum(p.numel() for p in model.parameters())
        in_head = sum(p.numel() for p in head_parameters(model).values())
        return all_parameters - in_head


@dataclass(frozen=True)
class Head(Method, kind="head"):
    """Trains the classification head and nothing else (for BERT with its pooler)."""

    def install(self, model: nn.Module) -> None:
        if not head_parameters(model):
            raise AdapterError(
                f"a {type(model).__name__} has no classification head to train"
            )

    def count(self, model: nn.Module) -> int:
        """Zero: the head is counted apart."""
        return 0


@dataclass(frozen=True)
class NoMethod(Method, kind="none"):
    """Trains nothing, not even a head: for rows that judge the base model (table 4)."""

    def adapt(self, model: nn.Module) -> None:
        super().adapt(model)
        model.requires_grad_(False)

    def install(self, model: nn.Module) -> None:
        pass

    def count(self, model: nn.Module) -> int:
        """Zero."""
        return 0


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
    """The parameters outside the head that are biases by their names: a layer's "bias", an
    attention's "q_bias" (DeBERTa, BEiT)."""
    head = head_prefixes(model)
    biases = []
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not name.startswith(head):
            biases.append(parameter)
    return biases
