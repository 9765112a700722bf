"""The contract of an adaptation method, and the layer that VeRA and LoRA share.

A method is a small frozen dataclass of its settings. The model carries all the state: `adapt` changes the model in
place, and every later call finds what it needs inside the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.sites import head_parameters

#: Every method by its kind. Filled as the files of this folder are imported.
METHODS: dict[str, type["Method"]] = {}


@dataclass(frozen=True)
class Method(ABC):
    """One way of adapting a pretrained model. Subclasses: `class VeRA(Method, kind="vera")`."""

    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind = kind
            METHODS[kind] = cls

    def __post_init__(self) -> None:
        rank, dropout = getattr(self, "rank", 1), getattr(self, "dropout", 0.0)
        if not isinstance(rank, int) or rank < 1:
            raise AdapterError(f"rank must be a whole number of at least 1, got {rank}")
        if not 0 <= dropout < 1:
            raise AdapterError(f"dropout must be in [0, 1), got {dropout}")

    def config(self) -> dict[str, Any]:
        """The settings as plain values, with the kind; `make_method(**config)` gives the method back."""
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}

    def adapt(self, model: nn.Module) -> None:
        """Freezes the model, installs the method in place, and leaves its parameters and the head trainable.

        Raises AdapterError where the model is adapted already, or lacks the method's sites.
        """
        if any(isinstance(m, AdaptedLinear) for m in model.modules()):
            raise AdapterError("this model is adapted already: start from a fresh copy of the base model")
        model.requires_grad_(False)
        self.install(model)
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)

    @abstractmethod
    def install(self, model: nn.Module) -> None:
        """Adds the method's own parameters to a frozen model, or unfreezes those it trains."""

    @abstractmethod
    def count(self, model: nn.Module) -> int:
        """Trainable parameters without the head, by the method's closed formula, from an adapted model's shapes."""

    def adapter_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The method's trainable parameters by name, without the head's."""
        head = head_parameters(model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad and name not in head}

    def parameter_groups(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Named parameters of an adapted model in two groups, "adapter" and "head", for their own learning rates."""
        return {"adapter": self.adapter_parameters(model), "head": head_parameters(model)}

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 - most methods need nothing here
        """Called after each optimizer step (from 1), for methods that change as they train."""

    def fixed(self, model: nn.Module) -> dict[str, Any]:
        """What the adapter relies on and does not train, for the adapter file; compared when it is loaded."""
        return {}

    def merge(self, model: nn.Module) -> None:
        """Folds the adapter into the base weights: inference costs what the base model costs."""
        for layer in adapted_layers(model):
            layer.merge()

    def unmerge(self, model: nn.Module) -> None:
        """Puts the base weights back, bit for bit."""
        for layer in adapted_layers(model):
            layer.unmerge()


class AdaptedLinear(nn.Module):
    """A frozen linear layer `base` plus a low-rank change of its weight. Subclasses give `delta` and `change`.

    Shapes: x (..., in), output (..., out), delta_weight (out, in). The dtype of the output is the base layer's;
    the change is computed in float32 or better, so that small updates do not round away over half-precision weights.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.enabled = True
        self._unmerged_weight: Tensor | None = None

    @property
    def adapter_dtype(self) -> torch.dtype:
        return torch.promote_types(self.base.weight.dtype, torch.float32)

    @property
    def merged(self) -> bool:
        return self._unmerged_weight is not None

    def change(self, x: Tensor) -> Tensor:
        """The change of the output for x, (..., in) -> (..., out)."""
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        """The change of the weight, (out, in)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        return (y + self.change(x.to(self.adapter_dtype))).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        if not self.merged:
            weight = self.base.weight
            self._unmerged_weight = weight.detach().clone()
            weight.copy_(weight.to(self.adapter_dtype) + self.delta_weight())

    @torch.no_grad()
    def unmerge(self) -> None:
        # The weight itself was kept: subtracting the change again would be off by a rounding.
        if self._unmerged_weight is not None:
            self.base.weight.copy_(self._unmerged_weight)
            self._unmerged_weight = None


def adapted_layers(model: nn.Module) -> Iterator[AdaptedLinear]:
    """The adapted layers of a model, in its own order."""
    return (m for m in model.modules() if isinstance(m, AdaptedLinear))


def replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts `layer` where the module `path` was."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def disable(model: nn.Module, disabled: bool = True) -> None:
    """Switches the adapted layers off (the base model answers) or on again."""
    for layer in adapted_layers(model):
        layer.enabled = not disabled
