"""SSF: scales and shifts of features, y = gamma * f(x) + beta, after the linear layers,
the LayerNorms and the patch embedding of an image model (Lian et al. 2022, arXiv
2210.08823; dongzelian/SSF).

gamma starts from N(1, 0.02^2) and beta from N(0, 0.02^2), as in that code, so the model
starts next to the base model, and not on it. Both fold into the layer before them: W' =
gamma * W by rows, and b' = gamma * b + beta."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.contract import Method
from vera.methods.layers import Added, add_child
from vera.methods.lora import Placement, placement_of
from vera.sites import (
    ALL_LINEAR,
    find_norms,
    find_sites,
    is_linear,
    is_transposed,
    layer_widths,
    outside_head,
)


class ScaleShift(Added):
    """gamma and beta (width), a child named "ssf" of the module whose output they
    change."""

    def __init__(self, width: int, axis: int, placement: Placement) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width, **placement).normal_(1.0, 0.02))
        self.beta = nn.Parameter(torch.empty(width, **placement).normal_(0.0, 0.02))
        self.axis = axis

    def forward(self, y: Tensor) -> Tensor:
        shape = [1] * y.dim()
        shape[self.axis] = -1
        return (self.gamma.view(shape) * y + self.beta.view(shape)).to(y.dtype)


def _scale(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
    """A forward hook that scales and shifts the output, unless the adapter is switched off
    or merged."""
    ssf: Any = module.ssf
    return ssf(output) if ssf.enabled and not ssf.merged else output


def scale_and_shift(module: Any) -> None:
    """Adds a scale and a shift of the outputs of a linear layer, norm or convolution,
    and trains them."""
    # Channels come last, but for images: (samples, channels, rows, columns)
    is_on_images = isinstance(module, nn.Conv2d) or type(module).__name__.endswith("2d")
    axis = 1 if is_on_images else -1
    add_child(module, "ssf", ScaleShift(_outputs(module), axis, placement_of(module)))
    module.register_forward_hook(_scale)


def _outputs(module: Any) -> int:
    """The number of channels that a linear layer, norm or convolution gives."""
    if is_linear(module):
        _, outputs = layer_widths(module)
        return outputs
    return int(module.weight.shape[0])


def _scaled_modules(model: nn.Module) -> Iterator[tuple[Any, ScaleShift]]:
    """The modules whose outputs change, each with its scale and shift."""
    for module in model.modules():
        if isinstance(ssf := getattr(module, "ssf", None), ScaleShift):
            yield module, ssf


@dataclass(frozen=True)
class SSF(Method, kind="ssf"):
    """Trains a scale and a shift after each linear layer, LayerNorm and convolution
    outside the head."""

    def install(self, model: nn.Module) -> None:
        convolutions = []
        for path, module in outside_head(model):
            if isinstance(module, nn.Conv2d):
                convolutions.append(path)
        if not convolutions:
            raise AdapterError(
                f"a {type(model).__name__} has no patch embedding: SSF is for image models"
            )
        linears = find_sites(model, (ALL_LINEAR,))
        for path in [*linears, *find_norms(model), *convolutions]:
            scale_and_shift(model.get_submodule(path))

    def count(self, model: nn.Module) -> int:
        """Twice the sum of the widths of these layers' outputs."""
        return 2 * sum(_outputs(module) for module, _ in _scaled_modules(model))

    def merge_targets(self, model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
        return ((module, ssf.enabled) for module, ssf in _scaled_modules(model))

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for module, _ in _scaled_modules(model):
            if getattr(module, "bias", None) is None:
                raise AdapterError(
                    f"a {type(module).__name__} of this model has no bias to take the shift"
                )
        for module, ssf in _scaled_modules(model):
            weight = module.weight.T if is_transposed(module) else module.weight
            shape = [-1] + [1] * (weight.dim() - 1)
            weight.copy_(ssf.gamma.view(shape) * weight)
            module.bias.copy_(ssf.gamma * module.bias + ssf.beta)
            ssf.merged = True
